"""Round-to-nearest quantization: the baseline that every cleverer quantizer has to beat.

Each weight of the decoder's linear layers goes to the nearest point of an integer grid whose scale comes from the range
of its group (see `grid.py`). It needs no data and takes seconds. The result is written back dequantized in the stored
type: its accuracy is that of the packed model, its size and speed are not, so the stage is emulated and reports the
size the packed weights would have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.errors import Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Need

if TYPE_CHECKING:
    from pydantic import JsonValue
    from torch import Tensor

    from harness.stages.grids import Gridded
    from harness.stages.quantize.grid import Grid

ALLOWED_BITS = (2, 3, 4, 8)


@final
@dataclass(frozen=True)
class QuantizeRtn:
    """Rounds every linear weight of the decoder to the nearest of 2^bits values per group.

    Does:   asymmetric (or symmetric) min/max grids over `group` consecutive columns of a row, or over the whole row
            when `group` is null; codes = round(w / scale) + zero; writes the dequantized weights in the stored type,
            and their grids beside them (format `grid`), so that a stage that trains or prunes later can keep to
            them. The embedding, the norms and the layers in `skip` stay as they are.
    Needs:  a Hugging Face folder with safetensors files; no data, and memory for one file at a time.
    Why:    the cheapest post-training quantization, and the control for GPTQ, AWQ, AutoRound and distillation.
    Known:  when `group` does not divide the columns the last group of a row is shorter, as in GPTQ's code and GPTQModel
            (llm-compressor, AWQ and torchao refuse such layers). Scales are not rounded to 16 bits, which is below the
            rounding of a bfloat16 file. `symmetric` divides by (2^bits - 1) / 2 as GPTQ and llm-compressor do; others
            divide by 2^(bits-1) - 1. Layers that are no `Linear` modules (fused experts, GPT-2's Conv1D) stay as they
            are; the notes say what fraction was quantized.
    Source: `Quantizer` in IST-DASLab/gptq (`quant.py`); `calculate_qparams` in compressed-tensors 0.19.
    """

    version: ClassVar[str] = "2"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "grid"
    emulated: ClassVar[bool] = True

    bits: int
    group: int | None = 128
    symmetric: bool = False
    skip: Sequence[str] = field(default=("lm_head",))

    def __post_init__(self) -> None:
        if self.bits not in ALLOWED_BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, ALLOWED_BITS))}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        if isinstance(self.skip, str):
            raise ValueError(f"skip is {self.skip!r}; allowed: a list of module names, such as [lm_head]")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.grids import report_grids
        from harness.stages.hf_folder import copy_companions, require_unpacked, using_threads
        from harness.stages.linear_layers import linear_layers
        from harness.stages.quantize.grid import Grid

        require_unpacked(source)
        chosen = {f"{layer}.weight" for layer in linear_layers(source.path, skip=self.skip)}
        tally = _Tally(Grid(self.bits, self.group, self.symmetric))
        with using_threads(context.hardware):
            for file in sorted(source.path.glob("*.safetensors")):
                _rewrite(file, out / file.name, chosen, tally, context)
        if missing := chosen - set(tally.grids):
            raise Unsupported(
                f"{len(missing)} linear weights are not in the files under the model's own names, first {min(missing)}",
                remedy="skip tied layers (`skip: [lm_head]`), or save the model again with `save_pretrained`",
            )
        index = source.path / "model.safetensors.index.json"
        if index.exists():
            (out / index.name).write_bytes(index.read_bytes())
        copy_companions(source.path, out)
        report_grids(out, tally.grids, report=context.report)
        context.report.notes |= tally.notes()


class _Tally:
    """Adds up what was quantized while the files are rewritten one after another."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.grids: dict[str, Gridded] = {}
        self.weights = self.parameters = 0
        self.squared_error = self.squared_weight = 0.0

    def quantized(self, name: str, before_RC: Tensor, after_RC: Tensor) -> None:
        self.weights += before_RC.numel()
        self.squared_error += float((before_RC.double() - after_RC.double()).square().sum())
        self.squared_weight += float(before_RC.double().square().sum())

    def notes(self) -> dict[str, JsonValue]:
        return {
            "weights_quantized": self.weights,
            "fraction_quantized": self.weights / self.parameters,
            "mean_squared_error": self.squared_error / self.weights,
            "relative_squared_error": self.squared_error / self.squared_weight,
        }


def _rewrite(file: Path, out: Path, chosen: set[str], tally: _Tally, context: StageContext) -> None:
    """Copies one safetensors file with the chosen tensors quantized and dequantized."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from harness.stages.grids import Gridded
    from harness.stages.hf_folder import require_numbers
    from harness.stages.quantize.grid import dequantize, quantize_groups

    tensors: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as stored:
        metadata, names = stored.metadata(), list(stored.keys())
        for number, name in enumerate(names):
            context.progress(number / len(names), f"{file.name}: {name}")
            tensor = stored.get_tensor(name)
            tally.parameters += tensor.numel()
            if name in chosen:
                require_numbers(name, tensor)
                codes = quantize_groups(tensor.to(context.hardware.device), tally.grid)
                tensors[name] = dequantize(codes, tally.grid).to(device="cpu", dtype=tensor.dtype).contiguous()
                tally.grids[name] = Gridded(tally.grid, codes.scales, codes.zeros, tensor)
                tally.quantized(name, tensor, tensors[name])
            else:
                tensors[name] = tensor
    save_file(tensors, out, metadata=metadata)
