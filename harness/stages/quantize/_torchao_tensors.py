"""torchao's side of `quantize.torchao`: a configuration for each scheme, its trial, the layers one by one, the file.

A kind that cannot run is found by quantizing and multiplying one small layer with it: what the library then says is the
reason that the user reads. The layers are quantized by name, so what `ignore` and `overrides` say holds exactly, and a
layer that the library silently left as it was fails the stage.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from torchao.core.config import AOBaseConfig
from torchao.prototype.mx_formats import (
    MXDynamicActivationMXWeightConfig,
    NVFP4DynamicActivationNVFP4WeightConfig,
    NVFP4WeightOnlyConfig,
)
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Float8WeightOnlyConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8DynamicActivationIntxWeightConfig,
    Int8WeightOnlyConfig,
    IntxUnpackedToInt8Tensor,
    IntxWeightOnlyConfig,
    MappingType,
    PerAxis,
    PerGroup,
    PerRow,
    quantize_,
)
from torchao.quantization.quant_primitives import _choose_qparams_affine_tinygemm, _quantize_affine_tinygemm
from torchao.quantization.quantize_.common import KernelPreference

from harness.errors import ModelError, Unsupported
from harness.interfaces import StageContext
from harness.runtimes._hf_torchao import CODES, METHOD, SCALE, ZERO, wrap
from harness.stages.quantize.recipe import Assignment, Scheme

REFUSALS = (AssertionError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError)
"""What the library raises for a kind that this machine, or this layer, cannot have."""
REMEDIES: Mapping[str, str] = {
    "int4-weight-only": "use int4-cpu or intx-weight-only with 4 bits on a CPU, or install mslk on a GPU machine",
    "int4-cpu": "use intx-weight-only with 4 bits, or run it on a CPU",
    "fp8-dynamic": "run it on a GPU of compute capability 8.9 or later, or emulate it by quantize.fp8",
    "nvfp4-dynamic": "run it on a GPU of compute capability 10.0 or later, or emulate it by quantize.fp4",
}
OTHERWISE = "choose another kind, or keep this layer with `overrides`"
TRIAL_ROWS, TRIAL_COLUMNS = 128, 256


@dataclass(frozen=True)
class Int4Cpu:
    """4-bit integers as the library encodes them for its kernel on CPUs, which no configuration of it can save."""

    group: int


Config: TypeAlias = AOBaseConfig | Int4Cpu


def _to_int4_cpu(layer: torch.nn.Module, config: Int4Cpu) -> None:
    """Rounds as `Int4OpaqueTensor.from_hp` does, and keeps the plain codes, which that packs, beside the weight."""
    weight_RC = cast("Tensor", layer.weight).detach()
    block, numbers = [1, config.group], (torch.int32, 0, 15)
    scale, zero = _choose_qparams_affine_tinygemm(
        weight_RC, MappingType.ASYMMETRIC, block, *numbers, eps=1e-6, zero_point_dtype=weight_RC.dtype
    )
    codes_RC = _quantize_affine_tinygemm(weight_RC, block, scale, zero, *numbers).to(torch.uint8)
    parts = {
        CODES: (codes_RC[:, ::2] | codes_RC[:, 1::2] << 4).contiguous(),
        SCALE: scale.reshape(len(codes_RC), -1),
        ZERO: zero.reshape(len(codes_RC), -1),
    }
    layer.weight = torch.nn.Parameter(wrap(parts), requires_grad=False)
    for name, part in parts.items():
        layer.register_buffer(name, part)


def _apply(config: Config, layer: torch.nn.Module) -> None:
    if isinstance(config, Int4Cpu):
        _to_int4_cpu(layer, config)
    else:
        quantize_(layer, config, filter_fn=lambda *_: True)


@dataclass
class Done:
    """What was quantized: the library's configuration of every scheme with its layers, and those left alone."""

    configs: list[tuple[Config, tuple[str, ...]]] = field(default_factory=list)
    kept: tuple[str, ...] = ()


def quantize_layers(model: torch.nn.Module, assignment: Assignment, *, context: StageContext) -> Done:
    """Quantizes the assigned layers in place. Raises Unsupported with the library's reason when one cannot be."""
    done = Done(kept=assignment.kept)
    layers, count = len(assignment.layers), 0
    for scheme, names in assignment.schemes:
        config = _choose(scheme, like=model.get_submodule(names[0]))
        most = 0
        for name in names:
            context.progress(count / layers, name)
            most = max(most, _quantize(model.get_submodule(name), config, name, scheme))
            count += 1
        done.configs.append((config, names))
        _report_levels(scheme, most, len(names), context=context)
    return done


def _choose(scheme: Scheme, *, like: torch.nn.Module) -> Config:
    """Gives the first configuration of a scheme that works on a small layer. Raises Unsupported when none does."""
    weight = cast("Tensor", like.weight)
    reasons = []
    for config in _candidates(scheme):
        columns = math.lcm(TRIAL_COLUMNS, scheme["weights"]["group_size"] or 1)
        layer = torch.nn.Linear(columns, TRIAL_ROWS, bias=False, dtype=weight.dtype, device=weight.device)
        try:
            _apply(config, layer)
            with torch.inference_mode():
                layer(torch.ones(1, 2, columns, dtype=weight.dtype, device=weight.device))
        except REFUSALS as error:
            reasons.append(_words(error))
        else:
            return config
    kind = scheme["kind"]
    raise Unsupported(f"torchao cannot compute {kind} here: {reasons[-1]}", remedy=REMEDIES.get(kind, OTHERWISE))


def _quantize(layer: torch.nn.Module, config: Config, name: str, scheme: Scheme) -> int:
    """Quantizes one layer and gives how many values its codes take, 0 where the format fixes what they are."""
    try:
        _apply(config, layer)
    except REFUSALS as error:
        raise Unsupported(f"torchao cannot quantize {name}: {_words(error)}", remedy=OTHERWISE) from error
    weight: Any = layer.weight
    if type(weight) is torch.nn.Parameter:
        raise Unsupported(f"torchao left {name} {tuple(weight.shape)} as it was, without a word", remedy=OTHERWISE)
    if not isinstance(weight, IntxUnpackedToInt8Tensor):
        return 0
    levels, allowed = int(weight.qdata.unique().numel()), 2 ** scheme["weights"]["num_bits"]
    if levels > allowed:
        raise ModelError(f"{name}: its codes take {levels} values, and {allowed} were asked for")
    return levels


def _report_levels(scheme: Scheme, most: int, layers: int, *, context: StageContext) -> None:
    """Notes how many values 8-bit codes that stand for fewer bits take; a label says that their size is another."""
    bits = scheme["weights"]["num_bits"]
    if not most or bits == 8:
        return
    told = {"layers": layers, "bits_asked_for": bits, "bits_stored": 8, "values_allowed": 2**bits, "values_used": most}
    group = scheme["weights"]["group_size"]
    name = f"{scheme['kind']} {bits} bits, {f'group {group}' if group else 'whole row'}"
    cast("dict[str, Any]", context.report.notes.setdefault("levels", {}))[name] = told
    label = f"torchao stores {bits}-bit codes in 8 bits each: sizes are those of 8-bit weights"
    if label not in context.report.labels:
        context.report.labels.append(label)


def _candidates(scheme: Scheme) -> Sequence[Config]:
    """Gives the library's configurations of a scheme, the one for fast hardware first.

    None of them may set options of the compiler (`set_inductor_config`): they are the whole process's, and one changes
    how float32 is multiplied.
    """
    kind, weights = scheme["kind"], scheme["weights"]
    group, bits = weights["group_size"], weights["num_bits"]
    plain: dict[str, Any] = {"set_inductor_config": False}
    mapping = MappingType.SYMMETRIC if weights["symmetric"] else MappingType.ASYMMETRIC
    columns = PerGroup(group) if group else PerAxis(0)
    match kind:
        case "int8-weight-only":
            return [Int8WeightOnlyConfig(granularity=PerGroup(group) if group else PerRow(), **plain)]
        case "int8-dynamic":
            return [Int8DynamicActivationInt8WeightConfig(**plain)]
        case "int4-weight-only":
            return [Int4WeightOnlyConfig(group_size=group, **plain)]
        case "int4-cpu":
            return [Int4Cpu(group)]
        case "int8-dynamic-int4":
            number = getattr(torch, f"int{bits}")
            return [Int8DynamicActivationIntxWeightConfig(number, columns, weight_mapping_type=mapping)]
        case "intx-weight-only":
            return [IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), columns, mapping_type=mapping)]
        case "fp8-weight-only":
            return [Float8WeightOnlyConfig(**plain)]
        case "fp8-dynamic":
            return [Float8DynamicActivationFloat8WeightConfig(granularity=PerRow(), **plain)]
        case "nvfp4-weight-only":
            return [NVFP4WeightOnlyConfig()]
        case "nvfp4-dynamic":
            return [NVFP4DynamicActivationNVFP4WeightConfig(use_triton_kernel=False)]
    number = torch.float8_e4m3fn if kind == "mxfp8" else torch.float4_e2m1fn_x2
    return [
        MXDynamicActivationMXWeightConfig(activation_dtype=number, weight_dtype=number, kernel_preference=preference)
        for preference in (KernelPreference.AUTO, KernelPreference.EMULATED)
    ]


def _words(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or f"{type(error).__name__} without a message"


def write(model: Any, out: Path, done: Done) -> None:
    """Saves the model as safetensors, by transformers or, for what torchao cannot save, in this package's own form."""
    if any(isinstance(config, Int4Cpu) for config, _ in done.configs):
        _write_codes(model, out, done)
        return
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    said = TorchAoConfig(declaration(done))
    model.config.quantization_config = said
    model.hf_quantizer = TorchAoHfQuantizer(said, pre_quantized=True)
    model.save_pretrained(out)
    for file in out.glob("*.safetensors"):
        _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """Puts the header's metadata, one entry a tensor, in order: safetensors writes it in another one every time."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the same entries take the same room"
        stream.seek(8)
        stream.write(text.ljust(size))


def declaration(done: Done) -> FqnToConfig:
    """Gives one configuration for the whole model: the first scheme by the last parts of names, exceptions by name."""
    (config, names), *others = done.configs
    last = sorted({name.rsplit(".", 1)[-1] for name in names})
    said: OrderedDict[str, Config | None] = OrderedDict()
    for other, exceptions in others:
        said |= dict.fromkeys(exceptions, other)
    said |= {name: None for name in done.kept if name.rsplit(".", 1)[-1] in last}
    said[rf"re:(.*\.)?({'|'.join(map(re.escape, last))})"] = config
    return FqnToConfig(said)


def _write_codes(model: Any, out: Path, done: Done) -> None:
    """Saves the plain codes that `_to_int4_cpu` left beside the weights."""
    from safetensors.torch import save_file

    layers = {name: cast("Int4Cpu", config).group for config, names in done.configs for name in names}
    left_out = {f"{name}.weight" for name in layers} | set(model.all_tied_weights_keys)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in left_out}
    model.config.quantization_config = {"quant_method": METHOD, "bits": 4, "layers": layers}
    model.config.dtype = model.dtype
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
