"""GPTQ as GPTQModel does it, written in the layout of AutoGPTQ: the form in which most GPTQ checkpoints are passed on.

The method is that of `quantize.gptq`: columns are rounded one after another, and those to the right make up for each
rounding. What differs is the code that does it, what it does between the layers of a block, and how codes lie on disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final, get_args

from harness.errors import Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._gptqmodel import EXTRA, REQUIREMENTS, SHORTEST, exactly, quantize_gptqmodel
from harness.stages.quantize.recipe import Assignment, QuantizationRecipe, Scheme
from harness.stages.quantize.schemes import BITS, integers

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = (16, 32, 64, 128, 256, 512, 1024)
Layout = Literal["gptq", "gptq_v2"]


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeGptqmodel(QuantizationRecipe):
    """Rounds the linear weights to integers by GPTQModel's GPTQ and packs them as AutoGPTQ does.

    Does:   runs the calibration text through one decoder layer after another and, inside it, through query, key and
            value, then output, then gate and up, then down projections, each time with what was rounded before. Takes
            H = 2/n X X^T plus `damping` times its mean diagonal, and rounds columns in order of diag(H) (`act_order`),
            by groups in that order (`group_aware`), or as they lie. With `static_groups` a column keeps the group of
            its place and scales come from the weights before any update; without, groups follow the order and take
            their scale when their turn comes. Codes, zero points, 16-bit scales and a group index for each column are
            written (`format`: `gptq` stores zero points minus one, `gptq_v2` as they are).
    Needs:  GPTQModel, and optimum for transformers to read the files; text (the corpus, or `data_free`) in blocks of 11
            tokens and more; rows and columns that 32 divides; groups that divide the columns of every layer; memory for
            two copies of the model in bfloat16 and one Hessian (columns squared, float32) for each layer of a block.
    Why:    the other implementation of the reference method, so that a result does not hang on one library; and the
            layout that other engines read.
    Known:  the model is rounded to bfloat16 first, as the CPU kernels of the layout compute in 16 bits; reports say so
            when it was stored otherwise. Layers can be kept, and made asymmetric, one by one; other bits or groups for
            some are refused, since transformers reads one width for all. Packed layers are named in
            `modules_in_block_to_quantize` (for transformers), kept ones in `dynamic` (GPTQModel). A zero point of 0 has
            no place in `gptq`: it would borrow from its neighbour in every reader but GPTQModel's, so the stage refuses
            it and `gptq_v2` holds it. A symmetric group whose weights all have one sign gets steps half as wide as it
            needs and is cut off, as in the authors' code. Where GPTQModel would round plainly, or put a floor under a
            Hessian that cannot be inverted, the stage fails instead. Weights stay packed in transformers: at 4 bits and
            groups up to 128 a fast CPU kernel, which rounds scales and activations to bfloat16, else one that writes
            the weights out in every call (`emulated`), is several times slower, and is compiled at the first
            (torch.compile, which wants a C++ compiler). Tried on CPUs only.
    Source: GPTQ, arXiv 2210.17323, algorithm 1; GPTQModel 7.6.0 (`quantization/gptq.py`); AutoGPTQ 0.7.1 for the
            layout.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("bits", "group", "symmetric")
    backend: ClassVar[str] = "gptq_torch"
    rows_at_once: ClassVar[int] = 32

    bits: int = 4
    group: int | None = 128
    symmetric: bool = True
    act_order: bool = True
    static_groups: bool = True
    group_aware: bool = False
    damping: float = 0.01
    format: Layout = "gptq"

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise ValueError(f"bits is {self.bits!r}; allowed: {', '.join(map(str, BITS))}")
        if self.group is not None and self.group not in GROUPS:
            raise ValueError(f"group is {self.group!r}; allowed: {', '.join(map(str, GROUPS))}, or null for a row")
        if not 0 < self.damping < 1:
            raise ValueError(f"damping is {self.damping!r}; allowed: a fraction of the mean diagonal, between 0 and 1")
        if self.format not in get_args(Layout):
            raise ValueError(f"format is {self.format!r}; allowed: {', '.join(get_args(Layout))}")
        if self.sequence < SHORTEST:
            raise ValueError(f"sequence is {self.sequence!r}; allowed: from {SHORTEST}, shorter blocks are left out")
        refuse([*self._clashes(), *self.problems()])

    def _clashes(self) -> list[str]:
        if not self.group_aware:
            return []
        found = []
        if self.act_order or self.static_groups:
            found.append("group_aware orders whole groups; allowed with it: act_order false and static_groups false")
        if self.group is None:
            found.append("group_aware orders whole groups; allowed with it: a group, and not null")
        return found

    @property
    def scheme(self) -> Scheme:
        return integers(self.bits, group=self.group, symmetric=self.symmetric)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        quantize_gptqmodel(self, source, out, context=context)

    def config(self, assignment: Assignment, device: str) -> Any:
        """Gives GPTQModel's configuration. Raises Unsupported when layers differ in bits or groups."""
        from gptqmodel import GPTQConfig

        return GPTQConfig(
            bits=self.bits,
            group_size=self.group or -1,
            sym=self.symmetric,
            desc_act=self.act_order,
            static_groups=self.static_groups,
            act_group_aware=self.group_aware,
            damp_percent=self.damping,
            damp_auto_increment=0.0,
            format=self.format,
            dynamic=self.exceptions(assignment) or None,
            device=device,
            offload_to_disk=False,
            fallback=None,
        )

    def exceptions(self, assignment: Assignment) -> dict[str, dict[str, bool]]:
        """Gives GPTQModel's `dynamic`: layers to keep, and those that are symmetric where the others are not."""
        found: dict[str, dict[str, bool]] = {f"-:{exactly(layer)}": {} for layer in assignment.kept}
        usual = self.scheme["weights"]
        for scheme, layers in assignment.schemes:
            weights = scheme["weights"]
            if (weights["num_bits"], weights["group_size"]) != (usual["num_bits"], usual["group_size"]):
                raise Unsupported(
                    f"{layers[0]} was to get other bits or groups than the rest, and transformers reads one width for "
                    "all layers of this layout",
                    remedy="use `quantize.gptq`, whose layout holds several, or give the others to a layer with `keep`",
                )
            if weights["symmetric"] != usual["symmetric"]:
                found |= {f"+:{exactly(layer)}": {"sym": weights["symmetric"]} for layer in layers}
        return found

    def declaration(self, assignment: Assignment) -> Mapping[str, Any]:
        """Gives the full names of all packed layers, which transformers takes for the ends of names."""
        return {"modules_in_block_to_quantize": [assignment.layers]}

    def check(self, layer: str, zeros: Tensor) -> None:
        """Raises Unsupported for a zero point of 0 where it is stored minus one."""
        if self.format == "gptq" and bool((zeros == 0).any()):
            raise Unsupported(
                f"{layer} has a zero point of 0, which the layout `gptq` cannot store: it would change its neighbour",
                remedy="use `format: gptq_v2`, or `symmetric: true`",
            )
