"""Post-training quantization through torchao: integers, 8- and 4-bit floats and block formats, in PyTorch itself.

torchao puts a tensor in the place of a weight that looks like the weight and holds codes and scales; the layer stays
a `Linear`, and what it multiplies with is the tensor's own business. So one library covers formats that elsewhere need
one library each, and the same file runs where PyTorch runs. Which kinds this machine can compute is found by trying
each on a small layer, not by asking what machine it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme

INT4_CPU: Final = "int4-cpu"
INTX: Final = "intx-weight-only"


@dataclass(frozen=True)
class Kind:
    """What a kind of quantization fixes: the numbers, how inputs are rounded, and who shares a scale.

    `groups` are the groups it allows; none at all means any, or a whole row. `block` is the group that belongs to the
    format. `bits` are absent where they are an argument. `bfloat16` says that the library takes no other type.
    """

    numbers: str
    bits: int | None
    inputs: str | None = None
    groups: tuple[int, ...] = ()
    block: int | None = None
    whole_rows: bool = False
    either_way: bool = False
    bfloat16: bool = False


KINDS: Mapping[str, Kind] = {
    "int8-weight-only": Kind("int", 8),
    "int8-dynamic": Kind("int", 8, inputs="int8", whole_rows=True),
    "int4-weight-only": Kind("int", 4, groups=(32, 64, 128, 256)),
    INT4_CPU: Kind("int", 4, groups=(32, 64, 128)),
    "int8-dynamic-int4": Kind("int", 4, inputs="int8", either_way=True),
    INTX: Kind("int", None, either_way=True),
    "fp8-weight-only": Kind("float", 8, whole_rows=True),
    "fp8-dynamic": Kind("float", 8, inputs="float8", whole_rows=True, bfloat16=True),
    "mxfp8": Kind("float", 8, inputs="mxfp8", block=32, bfloat16=True),
    "mxfp4": Kind("float", 4, inputs="mxfp4", block=32, bfloat16=True),
    "nvfp4-weight-only": Kind("float", 4, block=16),
    "nvfp4-dynamic": Kind("float", 4, inputs="nvfp4", block=16),
}


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeTorchao(QuantizationRecipe):
    """Rounds linear weights, and in some kinds their inputs as they come, to what torchao calls `kind`.

    Does:   by `kind`, plain rounding to the nearest value. int8-weight-only: 8-bit integers with a scale a row, or for
            `group` columns. int8-dynamic: a scale a row, and inputs to 8-bit integers with a scale a token.
            intx-weight-only: integers of `bits` (1 to 8) for `group` columns or a row. int8-dynamic-int4: 4-bit
            integers, and inputs to 8-bit integers with a scale and a zero point a token. int4-cpu: 4-bit integers with
            a scale and a floating-point zero point for `group` columns, two to a byte. fp8-weight-only, fp8-dynamic:
            E4M3 with a scale a row (and a token). mxfp8, mxfp4: a power of two for 32 weights or inputs. nvfp4-*: E2M1
            with an E4M3 scale for 16 and one float for the matrix. `symmetric: false` gives intx-weight-only and
            int8-dynamic-int4 zero points.
    Needs:  torchao 0.18; no text. Groups that divide the columns; for nvfp4 rows that 16 divides. mx kinds and
            fp8-dynamic are computed in bfloat16, whatever the model is stored in. int4-weight-only needs mslk and a
            GPU, fp8-dynamic compute capability 8.9, nvfp4-dynamic 10.0; elsewhere they are refused with the library's
            own reason.
    Why:    the quantizer that belongs to PyTorch, the same grids without any help from data, and kinds that few others
            have: 1 to 7 bits, and integer arithmetic on a CPU.
    Known:  int8-dynamic multiplies integers (`torch._int_mm`) and int4-cpu runs PyTorch's own 4-bit kernel. All others
            write out the whole weight in floats at every pass: *-weight-only by nature, int8-dynamic-int4 rounds its
            inputs and multiplies floats, mx kinds do where the hardware has no block scales. There the outcome is
            `emulated`, though weights stay packed in memory. One layer of 1536 x 1536 on one core with AMX, one token
            and 128 tokens, in ms: float32 0.3 and 15, int8-dynamic 5.1 and 6.4, int4-cpu 8.2 and 1021 (no fast path in
            float32: store the model in bfloat16); bfloat16 0.22 and 1.6, int8-dynamic 1.0 and 6.4, int4-cpu 0.09 and
            8.0. Open folders in the type they were written in (`dtype: auto`); int4-cpu opens in any.
            Codes of intx-weight-only and int8-dynamic-int4 lie in 8 bits each, so their files are those of 8-bit
            weights; the notes say how many values are used. mx and nvfp4 scales lie in tiles of 128 x 4 that padding
            fills, so narrow layers take more than 4.25 and 4.5 bits. mx scales are rounded up (RCEIL), where the
            standard takes the floor. Symmetric scales divide by half the range (7.5 at 4 bits), so the largest positive
            weight is cut by half a step; at 1 bit symmetric codes are 0 and -1, so take `symmetric: false`. Folders
            written where mx is emulated stay emulated elsewhere. int4-cpu is a prototype of the library whose packed
            form changes with the instruction set and which it cannot save; here plain codes are saved and packed as
            they are read, in a form that only this package reads. The library's own kernels for CPUs (da8w4, lowbit)
            are not in its wheels. Nothing is drawn at random.
    Source: torchao 0.18.0, `quantize_` and `torchao.prototype.{mx_formats,quantization.int4,safetensors}`; read back
            through `TorchAoConfig` of transformers 5.17.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torchao", "torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "quantizers"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("kind", "bits", "group", "symmetric")

    kind: str = "int8-weight-only"
    bits: int | None = None
    group: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        refuse([*self._wrong_numbers(KINDS[self.kind]), *self.problems(), *self._mixed()])

    def _wrong_numbers(self, kind: Kind) -> list[str]:
        found = []
        if kind.bits is None and self.bits not in range(1, 9):
            found.append(f"bits is {self.bits!r}; allowed with {self.kind}: 1 to 8")
        if kind.bits is not None and self.bits is not None:
            found.append(f"bits is {self.bits!r}; allowed with {self.kind}: null, since it has {kind.bits}")
        if kind.groups and self.group not in kind.groups:
            found.append(f"group is {self.group!r}; allowed with {self.kind}: {', '.join(map(str, kind.groups))}")
        if (kind.block or kind.whole_rows) and self.group is not None:
            found.append(f"group is {self.group!r}; allowed with {self.kind}: null, since the format fixes it")
        if self.group is not None and self.group < 1:
            found.append(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        if not (self.symmetric or kind.either_way):
            found.append(f"symmetric is false; allowed with {self.kind}: true")
        return found

    def _mixed(self) -> list[str]:
        kinds = {self.kind} | {
            change.get("kind", self.kind) for change in self.overrides.values() if isinstance(change, Mapping)
        }
        return [f"overrides mix {INT4_CPU} with other kinds; allowed: one of them, or keep"] * (
            INT4_CPU in kinds and len(kinds) > 1
        )

    @property
    def calibrates(self) -> bool:
        return False

    @property
    def scheme(self) -> Scheme:
        kind = KINDS[self.kind]
        weights = {
            "type": kind.numbers,
            "num_bits": kind.bits or self.bits,
            "group_size": kind.block or self.group,
            "symmetric": self.symmetric,
        }
        return {"kind": self.kind, "weights": weights} | ({"input_activations": {}} if kind.inputs else {})

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch

        from harness.stages.hf_folder import load_model, reproducible, require_unpacked, stored_dtype
        from harness.stages.quantize._torchao_tensors import quantize_layers, write
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.proof.packing import write_packed
        from harness.stages.quantize.recipe import assign

        require_unpacked(source)
        assignment = assign(self, read_architecture(source.path))
        dtype = stored_dtype(source.path)
        if dtype != torch.bfloat16 and any(KINDS[scheme["kind"]].bfloat16 for scheme, _ in assignment.schemes):
            said = str(dtype).removeprefix("torch.")
            context.report.labels.append(f"rounded from {said} to bfloat16 before quantizing")
            dtype = torch.bfloat16
        with reproducible(context):
            model: Any = load_model(source, dtype=dtype, hardware=context.hardware)
            done = quantize_layers(model, assignment, context=context)
            write_packed(model, out, lambda: write(model, out, done), source=source, context=context)
