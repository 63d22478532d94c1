"""HQQ, half-quadratic quantization: the zero points are moved until large errors are few, without looking at any text.

Plain rounding takes a group's grid from its smallest and largest weight. HQQ keeps the step and looks for the zero
point z under which the errors e = W - s (Q - z) are smallest in the sum of |e|^p with p < 1, a measure that lets a few
outliers be wrong if the many come closer. It splits the problem in two that have closed solutions and takes turns:
shrink the errors towards nought, then set z to the mean of Q - (W - e) / s.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.stages.quantize.proof.architecture import Architecture
    from harness.stages.quantize.recipe import Assignment

BITS = (1, 2, 3, 4, 8)
PACKED_ROWS = {1: 8, 2: 4, 4: 2, 8: 1}
"""Codes in a byte; the library packs ten 3-bit codes in a word of 32 bits and fills up the last one itself."""


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeHqq(QuantizationRecipe):
    """Rounds the linear weights to integers with zero points found by half-quadratic splitting, and packs them.

    Does:   takes the step s of every group from its range, then at most 20 times the errors e = shrink(W - s (Q - z))
            and z = mean(Q - (W - e) / s), with p = 0.7, beta = 10 growing by 1% a turn, until the mean error grows.
            With `axis` 1 a group is `group` columns of a row (null: the whole row), with `axis` 0 it is `group` weights
            that lie as far apart as there are groups (null: a whole column). Scales and zero points are stored in the
            model's type.
    Needs:  hqq; no text; groups of a multiple of 8 that divide the columns (`axis` 1) or the weights (`axis` 0) of
            every layer.
    Why:    the best-known quantizer that needs no data: seconds or minutes where GPTQ takes hours; its authors report
            quality near GPTQ's at 4 bits and far ahead of plain rounding at 2.
    Known:  with beta = 10 every error below 10^(-1/1.3) = 0.17 shrinks to nought, so for weights of usual size z is the
            least-squares zero point. On normally distributed weights in groups of 64 the sum of |e|^0.7 falls by 1% to
            2% against plain rounding with real zero points, that of squares by 6% to 8%; at 4 bits in groups of 32 the
            former even grows by 1%. With outliers the gain is larger. 3-bit codes lie ten in 32 bits, so each takes 3.2
            bits on disk; the notes give `stored_code_bits`. Scales and zero points of 16 bits in groups of 64 add half
            a bit. In bfloat16 a zero point above 128 is rounded to a whole number, which costs 8 bits some of their
            precision. On a GPU the library optimizes in float16, on the host in float32, so codes may differ. The
            runtime keeps the codes packed and unpacks them by tensor operations in every pass: small in memory, slower
            than plain weights, so the outcome is `emulated`. The library's own files are pickles and transformers 5
            cannot open them: the folder is safetensors of its own, for the `transformers` runtime of this harness.
            Quantized scales, CUDA kernels and torch.compile of the library are not used.
    Source: Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023,
            https://mobiusml.github.io/hqq_blog; `Quantizer` and `optimize_weights_proximal_legacy` of hqq 0.2.8.post1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("hqq", "torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "quantizers"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("bits", "group", "axis")

    bits: int = 4
    group: int | None = 64
    axis: int = 1

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}")
        if self.group is not None and (self.group < 8 or self.group % 8):
            raise ValueError(f"group is {self.group!r}; allowed: a multiple of 8, or null for a whole row or column")
        if self.axis not in (0, 1):
            raise ValueError(f"axis is {self.axis!r}; allowed: 1 (groups along rows), 0 (groups across rows)")
        refuse(self.problems())

    @property
    def calibrates(self) -> bool:
        return False

    @property
    def scheme(self) -> Scheme:
        along_rows = self.group if self.axis == 1 else None
        return {"weights": {"group_size": along_rows}, "bits": self.bits, "group": self.group, "axis": self.axis}

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import load_model, reproducible, require_unpacked, stored_dtype
        from harness.stages.quantize.native_folder import save_native, schemes_by_layer
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.proof.packing import write_packed
        from harness.stages.quantize.recipe import assign

        require_unpacked(source)
        architecture = read_architecture(source.path)
        assignment = assign(self, architecture)
        _require_whole_bytes(assignment, architecture)
        dtype, device = stored_dtype(source.path), context.hardware.device
        layers: dict[str, dict[str, Any]] = {}
        packed: dict[str, dict[str, Tensor]] = {}
        with reproducible(context):
            model = load_model(source, dtype=dtype, hardware=context.hardware)
            for name, scheme, fraction in schemes_by_layer(assignment):
                context.progress(fraction, f"hqq: {name}")
                layer = _quantize(model.get_submodule(name), scheme, dtype=dtype, device=device)
                model.set_submodule(name, layer, strict=True)
                layers[name], packed[name] = _description(layer), _parts(layer)
            said = {"quant_method": "hqq", "layers": layers}
            context.report.notes["stored_code_bits"] = _stored_bits(layers, packed)
            write_packed(
                model,
                out,
                lambda: save_native(model, packed, said, source=source.path, out=out),
                source=source,
                context=context,
            )


def _require_whole_bytes(assignment: Assignment, architecture: Architecture) -> None:
    """Raises Unsupported for a layer whose groups are too few, or too uneven, to fill whole bytes with their codes."""
    for scheme, names in assignment.schemes:
        for name in names:
            rows, columns = architecture.linears[name]
            weights, group = rows * columns, scheme["group"] or (columns if scheme["axis"] == 1 else rows)
            lines = weights // group if scheme["axis"] == 1 else group
            if weights % group or lines % PACKED_ROWS.get(scheme["bits"], 1):
                raise Unsupported(
                    f"{name} has {rows} x {columns} weights, and groups of {group} of them do not fill whole bytes "
                    f"with codes of {scheme['bits']} bits",
                    remedy="choose another group or axis, or keep this layer with `overrides`",
                )


def _quantize(linear: Any, scheme: Scheme, *, dtype: torch.dtype, device: str) -> Any:
    """Gives the library's own layer, packed."""
    from hqq.core.quantize import HQQLinear, hqq_base_quant_config

    asked = hqq_base_quant_config(nbits=scheme["bits"], group_size=scheme["group"], axis=scheme["axis"])
    return HQQLinear(linear, asked, compute_dtype=dtype, device=device)


def _description(layer: Any) -> dict[str, Any]:
    meta = layer.meta
    return {"bits": int(meta["nbits"]), "group_size": int(meta["group_size"]), "axis": int(meta["axis"])}


def _parts(layer: Any) -> dict[str, Tensor]:
    import torch

    from harness.stages.quantize.native_folder import SHAPE

    shape = torch.tensor(tuple(layer.meta["shape"]), dtype=torch.int64)
    parts = {"W_q": layer.W_q.data, "scale": layer.meta["scale"], "zero": layer.meta["zero"], SHAPE: shape}
    return parts if layer.bias is None else {**parts, "bias": layer.bias}


def _stored_bits(layers: dict[str, dict[str, Any]], packed: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Gives the bits that a code takes on disk, padding and all, by the bits that it stands for."""
    code_bytes: dict[str, int] = {}
    weights: dict[str, int] = {}
    for name, said in layers.items():
        key = str(said["bits"])
        code_bytes[key] = code_bytes.get(key, 0) + packed[name]["W_q"].nbytes
        weights[key] = weights.get(key, 0) + int(packed[name]["weight_shape"].prod())
    return {key: 8 * code_bytes[key] / weights[key] for key in sorted(code_bytes)}
