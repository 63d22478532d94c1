"""AutoScheme: gives every layer as many bits as it needs, within an average, and rounds by AutoRound.

Layers differ in how much a model suffers when they lose bits. AutoScheme asks the gradient: it quantizes all layers in
each of a few precisions, lets the model read text, and scores a layer by how far its weights moved times how much the
loss cares. Then it picks one precision for each layer so that the scores add up to the least while the bits, with the
scales and zero points that come with them, stay within the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, final

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._auto_round import (
    EXTRA,
    REQUIREMENTS,
    AutoRoundRecipe,
    quantize_auto_round,
    whole_numbers,
)
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.coverage import FILE, Coverage
from harness.stages.quantize.recipe import KEEP, Scheme
from harness.stages.quantize.schemes import BITS, integers

if TYPE_CHECKING:
    from harness.sources.corpus import Blocks

PLAIN: Final = 16
SCALE_BITS: Final = 16
ROUNDING: Final = 1e-3
"""By how much the library's own search may miss the average."""


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeAutoscheme(AutoRoundRecipe):
    """Chooses bits for every layer within an average, rounds by AutoRound, and packs.

    Does:   scores every linear layer in each of `options` bits (16: left as it is) by the sum of |dL/dw * (w - q(w))|
            over the calibration text, and chooses by dynamic programming the assignment with the least sum whose bits
            are at most `average_bits` a weight; then rounds as `quantize.autoround` does (layout autoround). The bits
            of a weight count its share of a 16-bit scale and of a zero point: 4 bits in symmetric groups of 128 are
            4.16. The notes hold the bits of every layer and the average that the tensors show.
    Needs:  auto-round; text (the corpus, or `data_free`), `batch` blocks at a time, also with `iters: 0`; memory for
            gradients of one decoder layer; rows and columns that are multiples of 32, and groups that divide them.
    Why:    more accuracy at the same size than one precision for all (Llama-3.1-8B between MXFP4 and MXFP8: 93.6 % of
            the average of its tasks at 4 bits, 96.9 % at 5, 98.6 % at 6).
    Known:  layers that `ignore` or `overrides` keep count as 16 bits in the average, the head and the embedding do not
            count. Scores come from plain rounding, before any tuning. The library stores scores in the home directory
            by a model's folder name and would give them to another model of that name; here they stay in the build.
            What is known of `quantize.autoround` holds here too.
    Source: `AutoScheme` of auto-round 0.15.1 (`auto_scheme/delta_loss.py`, `docs/auto_scheme_acc.md`).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False

    average_bits: float = 5.0
    options: Sequence[int] = field(default=(2, 4, 8))

    def __post_init__(self) -> None:
        allowed = (*BITS, PLAIN)
        if isinstance(self.options, str) or len(set(self.options)) < 2 or set(self.options) - set(allowed):
            raise ValueError(f"options is {self.options!r}; allowed: at least two of {', '.join(map(str, allowed))}")
        least = min(self.options)
        if not least < self.average_bits < PLAIN:
            raise ValueError(f"average_bits is {self.average_bits!r}; allowed: more than {least}, less than {PLAIN}")
        refuse(self.problems())
        if set(self.overrides.values()) - {KEEP}:
            raise ValueError(f"overrides is {dict(self.overrides)!r}; allowed: keep, since the bits are chosen here")

    @property
    def scheme(self) -> Scheme:
        return integers(min(self.options), group=self.group, symmetric=self.symmetric)

    def allowed(self, bits: int) -> tuple[int, ...]:
        """Gives all options: which one is the library's choice."""
        return tuple(self.options)

    def precision(self, blocks_NT: Blocks | None) -> Any:
        """Gives the library's search."""
        from auto_round import AutoScheme, QuantizationScheme
        from auto_round.schemes import BF16

        assert blocks_NT is not None
        words = [whole_numbers(bits, group=self.group, symmetric=self.symmetric) for bits in sorted(set(self.options))]
        return AutoScheme(
            avg_bits=float(self.average_bits),
            options=[BF16 if one["bits"] == PLAIN else QuantizationScheme(**one) for one in words],
            nsamples=len(blocks_NT),
            seqlen=self.sequence,
            batch_size=self.batch,
            low_cpu_mem_usage=False,
        )

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.recipe import assign

        architecture = read_architecture(source.path)
        self._require_reachable(architecture, assign(self, architecture).kept)
        bits = quantize_auto_round(self, source, out, context=context)
        coverage = Coverage.model_validate_json((out / FILE).read_text(encoding="utf-8"))
        average = average_bits(coverage)
        context.report.notes["bits"] = dict(sorted(bits.items()))
        context.report.notes["average_bits"] = average
        if average > self.average_bits + ROUNDING:
            raise ModelError(
                f"the layers take {average:.4f} bits a weight, and average_bits is {self.average_bits}: AutoScheme "
                "did not keep to it"
            )

    def _require_reachable(self, architecture: Architecture, kept: Sequence[str]) -> None:
        """Raises Unsupported when even the fewest bits are more than the average, or the most are fewer."""
        layers = {name: shape for name, shape in architecture.linears.items() if name != architecture.head}
        weights = sum(rows * columns for rows, columns in layers.values())

        def takes(bits: int) -> float:
            return sum(counted_bits(layers[name], PLAIN if name in kept else bits, self.group) for name in layers)

        least, most = takes(min(self.options)) / weights, takes(max(self.options)) / weights
        if not least <= self.average_bits <= most:
            raise Unsupported(
                f"average_bits is {self.average_bits}, and these layers take from {least:.2f} to {most:.2f} bits a "
                "weight, scales, zero points and kept layers counted",
                remedy="choose an average between the two, or other options",
            )


def counted_bits(shape: tuple[int, int], bits: int, group: int | None) -> int:
    """Gives the bits that the library counts for a layer: codes, and a 16-bit scale and a zero point for each group."""
    rows, columns = shape
    groups = 0 if bits == PLAIN else rows * (1 if group is None else columns // group)
    return rows * columns * bits + groups * (SCALE_BITS + bits)


def average_bits(coverage: Coverage) -> float:
    """Gives the bits a weight that the tensors show, over all linear layers but the head, those left alone included."""
    kept = [tensor for tensor in coverage.plain if tensor.role == "linear"]
    bits = 8 * (sum(fact.bytes for fact in coverage.quantized) + sum(tensor.bytes for tensor in kept))
    return bits / (coverage.parameters_quantized + sum(tensor.parameters for tensor in kept))
