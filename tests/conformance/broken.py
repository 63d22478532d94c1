"""A quantizer that is right, and the same quantizer with one fault of many: what the suite has to tell apart."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, final, get_args

from harness.errors import Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Need

Fault = Literal[
    "none",
    "no-op",
    "wrong bits",
    "scales off by one group",
    "zeroed head",
    "zeroed layer",
    "noisy layer",
    "passes NaN on",
    "ignores ignore",
    "no seed",
    "quantizes the head",
    "changes the embedding",
    "breaks tying",
    "writes a pickle",
    "touches its source",
    "writes beside",
    "crashes on odd columns",
    "refuses without a reason",
    "loses the tokenizer",
    "leaves threads and environment",
    "takes any group",
]
GROUP = 64


@final
@dataclass(frozen=True)
class Broken:
    """Rounds linear weights to asymmetric grids, or does it wrong.

    Does: what `fault` says. Needs: torch. Why: tests. Known: all of it. Source: ours.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    extra: ClassVar[str | None] = None
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ()
    fault: Fault = "none"
    bits: int = 4
    ignore: Sequence[str] = ("lm_head",)
    group: int = GROUP

    def __post_init__(self) -> None:
        if self.bits not in range(2, 9):
            raise ValueError(f"bits is {self.bits!r}; allowed: 2 to 8")
        if self.group < 1 and self.fault != "takes any group":
            raise ValueError(f"group is {self.group!r}; allowed: from 1")
        if self.fault not in get_args(Fault):
            raise ValueError(f"fault is {self.fault!r}; allowed: {', '.join(get_args(Fault))}")

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import numpy as np
        import torch
        from transformers import AutoModelForCausalLM

        from harness.stages.hf_folder import load_model, save_model
        from harness.stages.quantize.grid import Codes, Grid, dequantize, quantize_groups

        if self.fault == "passes NaN on":
            model: Any = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32, local_files_only=True)
        else:
            model = load_model(source, dtype=torch.float32, hardware=context.hardware)
        kept = () if self.fault == "ignores ignore" else self.ignore
        kept = (
            [name for name in kept if name != "lm_head"] if self.fault == "quantizes the head" else [*kept, "lm_head"]
        )
        grid = Grid(8 if self.fault == "wrong bits" else self.bits, self.group, symmetric=False)
        for name, layer in model.named_modules():
            if not isinstance(layer, torch.nn.Linear) or name in kept or self.fault == "no-op":
                continue
            if layer.in_features % self.group and self.fault == "crashes on odd columns":
                layer.weight.reshape(layer.out_features, -1, self.group)
            if layer.in_features % self.group and self.fault == "refuses without a reason":
                raise Unsupported("")
            codes = quantize_groups(layer.weight.data, grid)
            if self.fault == "scales off by one group":
                codes = Codes(codes.codes, codes.scales.roll(1, dims=1), codes.zeros.roll(1, dims=1))
            weight = dequantize(codes, grid)
            if self.fault == "no seed":
                weight *= float(np.random.default_rng().uniform(1, 1.001))
            if self.fault == "zeroed layer" and name == "model.layers.1.mlp.down_proj":
                weight = torch.zeros_like(weight)
            if self.fault == "noisy layer" and name == "model.layers.0.self_attn.v_proj":
                weight = weight.flip(0)  # right sizes, wrong places
            layer.weight.data = weight
        self._spoil(model, source, out)
        save_model(model, out, like=source)
        if self.fault == "loses the tokenizer":
            for file in out.glob("tokenizer*"):
                file.unlink()

    def _spoil(self, model: Any, source: Artifact, out: Path) -> None:
        import torch

        match self.fault:
            case "zeroed head":
                model.lm_head.weight.data.zero_()
            case "changes the embedding":
                model.model.embed_tokens.weight.data[0, 0] += 1e-3
            case "breaks tying":
                model.config.tie_word_embeddings = False
                model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.data.clone())
            case "writes a pickle":
                torch.save(model.state_dict(), out / "pytorch_model.bin")
            case "touches its source":
                (source.path / "cache.json").write_text(os.urandom(8).hex())
            case "writes beside":
                (out.parent / "calibration.json").write_text("{}")
            case "leaves threads and environment":
                torch.set_num_threads(torch.get_num_threads() + 1)
                os.environ["QUANTIZER_SEEN"] = "1"


Lie = Literal["none", "says 4 stores 8", "packs nothing", "scales off by one group", "zeroed layer", "packs the head"]


@final
@dataclass(frozen=True)
class BrokenPacked:
    """Packs linear weights as symmetric integers in groups, or does it wrong.

    Does: what `lie` says, in the layout pack-quantized. Needs: torch. Why: tests. Known: all of it. Source: ours.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "compressed_tensors")
    extra: ClassVar[str | None] = None
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ()
    lie: Lie = "none"

    def __post_init__(self) -> None:
        if self.lie not in get_args(Lie):
            raise ValueError(f"lie is {self.lie!r}; allowed: {', '.join(get_args(Lie))}")

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import json

        import torch
        from safetensors.torch import save_file

        from harness.stages.hf_folder import copy_companions, load_model, stored_dtype

        dtype = stored_dtype(source.path)
        model: Any = load_model(source, dtype=dtype, hardware=context.hardware)
        tied = model.config.tie_word_embeddings
        stored = {
            name: tensor for name, tensor in model.state_dict().items() if not (tied and name == "lm_head.weight")
        }
        for name, layer in model.named_modules():
            wanted = isinstance(layer, torch.nn.Linear) and (name != "lm_head" or self.lie == "packs the head")
            if not wanted or self.lie == "packs nothing":
                continue
            if layer.in_features % GROUP:
                raise Unsupported(f"{name} has {layer.in_features} columns", remedy=f"multiples of {GROUP}")
            weight = stored.pop(f"{name}.weight").float()
            if self.lie == "zeroed layer" and name == "model.layers.1.mlp.down_proj":
                weight.zero_()
            for part, tensor in self._packed(weight).items():
                stored[f"{name}.{part}"] = tensor.to(dtype) if part == "weight_scale" else tensor
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, out / "model.safetensors")
        config = json.loads((source.path / "config.json").read_text())
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
        group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": [] if self.lie == "packs the head" else ["lm_head"],
        }
        (out / "config.json").write_text(json.dumps(config))
        copy_companions(source.path, out)

    def _packed(self, weight_RC: Any) -> dict[str, Any]:
        """Codes from bit 0 of 32-bit words on, moved up by half their range, as compressed-tensors has it."""
        import torch

        bits = 8 if self.lie == "says 4 stores 8" else 4
        rows, columns = weight_RC.shape
        grouped_RGK = weight_RC.reshape(rows, columns // GROUP, GROUP)
        scales_RG = (grouped_RGK.abs().amax(dim=2) / (2 ** (bits - 1) - 1)).clamp(min=1e-9)
        codes_RC = (grouped_RGK / scales_RG[..., None]).round().reshape(rows, columns).long() + 2 ** (bits - 1)
        words_RWN = codes_RC.reshape(rows, -1, 32 // bits)
        words_RW = sum(words_RWN[..., place] << (bits * place) for place in range(32 // bits))
        words_RW = torch.where(words_RW >= 2**31, words_RW - 2**32, words_RW)
        if self.lie == "scales off by one group":
            scales_RG = scales_RG.roll(1, dims=1)
        return {
            "weight_packed": words_RW.to(torch.int32),
            "weight_scale": scales_RG,
            "weight_shape": torch.tensor([rows, columns]),
        }
