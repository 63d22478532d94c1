"""What is best at equal size: distilled and quantized, quantized alone, or another way to the same bytes.

A smaller model at more bits and a larger one at fewer may weigh the same; only then does "which is better" have an
answer that is not "the larger". Sizes are bytes of weights on disk; emulated weights count with the bytes they would
have if packed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.reporters.export import Flat
from harness.reporters.findings import WORDS, cells, flat, signed, table_of
from harness.reporters.text import NOTHING, megabytes, number, plain, table
from harness.reporters.variants import KL, SCORE, Aligned, Measure, Names, Variant, aligned, places
from harness.statistics.attribution import effect
from harness.statistics.paired import Estimate

TOLERANCE = 0.10
"""Sizes that differ by no more than this share of the larger are called equal."""
AS_IT_CAME = "as it came"
ORDER = ("prune", "distill", "quantize")
SAID = {"prune": "pruned", "distill": "distilled", "quantize": "quantized"}


def way(variant: Variant) -> str:
    """Names how a variant came to its size: `pruned + quantized`, `quantized only`."""
    kinds = [SAID[kind] for kind in ORDER if kind in variant.kinds]
    if not kinds:
        return AS_IT_CAME
    return f"{kinds[0]} only" if len(kinds) == 1 else " + ".join(kinds)


@dataclass(frozen=True)
class Pair:
    """Two variants of equal size: one only quantized, one distilled and quantized."""

    plain: Variant
    taught: Variant

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The quantized one first, so that the difference is what distilling gained."""
        return (self.plain, self.taught)

    def answer(self, shared: Aligned, _: Measure) -> Estimate:
        """Gives taught - plain."""
        return effect(shared.tasks)


def pairs(found: Sequence[Variant]) -> Iterator[Pair]:
    """Yields every distilled and quantized variant with each one that was only quantized and weighs the same."""
    for here in places(found):
        for taught in here:
            if {"distill", "quantize"} <= taught.kinds:
                for other in here:
                    if other.kinds == {"quantize"} and _weigh_the_same(taught, other):
                        yield Pair(other, taught)


def _weigh_the_same(one: Variant, other: Variant) -> bool:
    own, theirs = one.row.size_bytes, other.row.size_bytes
    return bool(own and theirs) and abs((own or 0) - (theirs or 0)) <= TOLERANCE * max(own or 0, theirs or 0)


def classes(here: Sequence[Variant]) -> list[list[Variant]]:
    """Gives the variants of a place by size, classes starting at their smallest and reaching a tolerance above it."""
    found: list[list[Variant]] = []
    for variant in sorted((one for one in here if one.row.size_bytes), key=lambda one: one.row.size_bytes or 0):
        if found and _weigh_the_same(found[-1][0], variant):
            found[-1].append(variant)
        else:
            found.append([variant])
    return found


def iso_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields the best of each size class with rivals, then every pair of equal size."""
    best = [_best(members, names) for here in places(found) for members in classes(here) if _are_rivals(members)]
    told = [(pair, shown) for pair in pairs(found) if (shown := cells(pair, signed))]
    if best:
        yield (
            f"Classes of sizes within {100 * TOLERANCE:.0f} % of their smallest, reached in more than one way, "
            "and what is best in them on the items that all share. These are point estimates: the paired differences "
            "below say what is more than luck."
        )
        yield table(best, left=(*WORDS, "Best score", "Lowest KL", "Ways"))
    if told:
        yield "### Distilled and quantized against quantized only"
        yield (
            f"Sizes within {100 * TOLERANCE:.0f} %. Distilled and quantized minus quantized only, on the same items, "
            "95 % interval: a score above 0, or a KL below, speaks for distilling."
        )
        yield table_of([_line(pair, shown, names) for pair, shown in told])


def iso_rows(found: Sequence[Variant]) -> list[Flat]:
    """Gives every pair of equal size as flat rows."""
    rows: list[Flat] = []
    for pair in pairs(found):
        rows += flat(pair, {"what": "equal bytes", "asked": way(pair.taught), "given": pair.plain.row.label})
    return rows


def _are_rivals(members: Sequence[Variant]) -> bool:
    return len({way(variant) for variant in members}) > 1


def _best(members: Sequence[Variant], names: Names) -> dict[str, str]:
    ends = dict.fromkeys(megabytes(variant.row.size_bytes) for variant in (members[0], members[-1]))
    return {
        "Size class": names.pipeline(members[0], f"{' to '.join(ends)} MB"),
        "Variants": str(len(members)),
        "Best score": _first(members, SCORE),
        "Lowest KL": _first(members, KL),
    }


def _first(members: Sequence[Variant], measure: Measure) -> str:
    """Names the best variant on the items that all that were measured share."""
    able = [variant for variant in members if any(answers.get(measure) for answers in variant.answers.values())]
    shared = aligned(able, measure) if able else None
    if shared is None:
        return NOTHING
    pick = max if measure.higher_is_better else min
    value = pick(shared.means)
    winner = able[shared.means.index(value)]
    return f"{plain(winner.row.label)} ({way(winner)}): {number(value)}"


def _line(pair: Pair, shown: dict[str, str], names: Names) -> dict[str, str]:
    return {
        "Pipeline": names.label(pair.taught),
        "Against": plain(pair.plain.row.label),
        "Sizes (MB)": f"{_size(pair.taught)} / {_size(pair.plain)}",
        **shown,
    }


def _size(variant: Variant) -> str:
    shown = megabytes(variant.row.size_bytes)
    return f"({shown})" if variant.row.is_emulated else shown
