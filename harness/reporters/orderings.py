"""Whether the order of the stages matters, and whether it still does when quantized weights can be trained.

Orders that quantize before they train are at a disadvantage that has nothing to do with order where the quantized
weights get no gradient (arXiv 2511.19495 compares orders that way). So every order is read twice: with the weights
frozen that an earlier stage put on a grid, and with those weights trained straight through the rounding. An order that
trains nothing after its quantizer is the same in both. Seeds are blocks: each shifts all orders alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.reporters.export import Flat
from harness.reporters.text import NOTHING, number, plain, table
from harness.reporters.variants import KL, SCORE, Measure, Names, Variant, aligned, groups, kind
from harness.spec import Use, digest
from harness.statistics.blocks import OrderEffect, order_effect

FROZEN, TRAINABLE = "frozen", "straight_through"
MODES = {FROZEN: "frozen", TRAINABLE: "trainable"}
ARGUMENT = "quantized"
ALPHA = 0.05
LETTERS = {"prune": "P", "distill": "D", "quantize": "Q"}
MEASURES = (SCORE, KL)


@dataclass(frozen=True)
class Contest:
    """Orders of the same stages under the same seeds, by what happened to quantized weights: mode, then order."""

    variants: Mapping[str, Mapping[str, Variant]]

    @property
    def first(self) -> Variant:
        """Any of them, for the names of family and place."""
        return next(variant for orders in self.variants.values() for variant in orders.values())

    @property
    def orders(self) -> list[str]:
        """All orders, by name."""
        return sorted({order for orders in self.variants.values() for order in orders})


@dataclass(frozen=True)
class Blocks:
    """One number an order and seed, and what they say; orders that lack a seed of the others are left out."""

    orders: tuple[str, ...]
    seeds: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]
    effect: OrderEffect

    def of(self, order: str) -> tuple[float, ...]:
        """Gives an order's numbers by seed, none when it was left out."""
        return self.values[self.orders.index(order)] if order in self.orders else ()


def contests(found: Sequence[Variant]) -> list[Contest]:
    """Gives all sets of at least two orders of the same three or more stages, of which every kind occurs once."""
    sets: dict[str, dict[str, dict[str, Variant]]] = defaultdict(lambda: defaultdict(dict))
    for group in groups(found):
        for variant in group.variants:
            kinds = [kind(stage) for stage in variant.stages]
            if len(kinds) < 3 or len(set(kinds)) < len(kinds) or not set(kinds) <= set(LETTERS):
                continue
            same = digest([*variant.place, variant.model.id, *sorted(_bare(stage).id for stage in variant.stages)])
            for mode in _modes(variant):
                sets[same][mode].setdefault("-".join(LETTERS[name] for name in kinds), variant)
    made = [Contest({mode: dict(orders) for mode, orders in modes.items()}) for modes in sets.values()]
    return [contest for contest in made if len(contest.orders) > 1 and _seeds(contest) > 1]


def _bare(stage: Use) -> Use:
    """Gives a stage without what it does to quantized weights, which is a column and not another stage."""
    return Use(use=stage.use, args={key: value for key, value in stage.args.items() if key != ARGUMENT})


def _modes(variant: Variant) -> tuple[str, ...]:
    """Gives the columns a variant belongs to: both, unless it trains after it quantized."""
    kinds = [kind(stage) for stage in variant.stages]
    if "quantize" not in kinds:
        return tuple(MODES)
    after = [stage for stage in variant.stages[kinds.index("quantize") :] if kind(stage) == "distill"]
    # Stages that train do so straight through the rounding unless they are told to leave quantized weights alone.
    return (
        (FROZEN if any(stage.args.get(ARGUMENT) == FROZEN for stage in after) else TRAINABLE,)
        if after
        else tuple(MODES)
    )


def _seeds(contest: Contest) -> int:
    return max(len(variant.answers) for orders in contest.variants.values() for variant in orders.values())


def blocks(contest: Contest, mode: str, measure: Measure) -> Blocks | None:
    """Gives the numbers of one mode and measure; None for fewer than two orders or two seeds."""
    able = {
        order: variant
        for order, variant in sorted(contest.variants.get(mode, {}).items())
        if any(answers.get(measure) for answers in variant.answers.values())
    }
    most = max((len(variant.answers) for variant in able.values()), default=0)
    able = {order: variant for order, variant in able.items() if len(variant.answers) == most}
    together = aligned(list(able.values()), measure) if len(able) > 1 else None
    if together is None or len(together.seeds) < 2:
        return None
    by_seed = [aligned([variant.at(seed) for variant in able.values()], measure) for seed in together.seeds]
    columns = [found.means for found in by_seed if found]
    values = tuple(tuple(row) for row in zip(*columns, strict=True))
    return Blocks(tuple(able), together.seeds, values, order_effect(values))


def order_section(found: Sequence[Variant], names: Names) -> Iterator[str]:
    """Yields, for every contest, the answer, the table of orders and the tests behind the answer."""
    for contest in contests(found):
        seen = {(mode, measure): blocks(contest, mode, measure) for mode in MODES for measure in MEASURES}
        known = {key: value for key, value in seen.items() if value}
        if not known:
            continue
        stages = {stage.use for orders in contest.variants.values() for v in orders.values() for stage in v.stages}
        yield f"### {names.model(contest.first)}: {', '.join(plain(name) for name in sorted(stages))}"
        yield "\n".join(f"- {sentence}" for measure in MEASURES for sentence in _answer(known, measure))
        yield (
            "Mean over seeds [least, most]. Frozen: stages that train leave quantized weights as they are; trainable: "
            "they train them straight through the rounding. An order that trains nothing after quantizing is the same "
            "in both. KL is counted from the family's reference."
        )
        yield table([_order_line(order, known) for order in contest.orders], left=("Order",))
        yield table([_test_line(mode, measure, value) for (mode, measure), value in known.items()], left=TEST_WORDS)


TEST_WORDS = ("Quantized weights", "Measure", "Farthest apart", "Note")


def _order_line(order: str, known: Mapping[tuple[str, Measure], Blocks]) -> dict[str, str]:
    cells = {"Order": order}
    for (mode, measure), value in known.items():
        values = value.of(order)
        shown = (
            f"{number(sum(values) / len(values))} [{number(min(values))}, {number(max(values))}]" if values else NOTHING
        )
        cells[f"{measure.name}, {MODES[mode]}"] = shown
    return cells


def _test_line(mode: str, measure: Measure, value: Blocks) -> dict[str, str]:
    tested = value.effect
    low, high = value.orders[tested.lowest], value.orders[tested.highest]
    return {
        "Quantized weights": MODES[mode],
        "Measure": measure.name,
        "Orders × seeds": f"{len(value.orders)} × {len(value.seeds)}",
        "F": NOTHING if tested.f is None else f"{number(tested.f)} ({tested.degrees[0]}, {tested.degrees[1]})",
        "p": _p(tested.p),
        "Farthest apart": f"{low} and {high}: {number(tested.difference)}",
        "Tukey p": _p(tested.tukey_p),
        "Friedman p": _p(tested.friedman_p),
        "Note": tested.reason or NOTHING,
    }


def _p(value: float | None) -> str:
    return NOTHING if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _answer(known: Mapping[tuple[str, Measure], Blocks], measure: Measure) -> Iterator[str]:
    """Yields one sentence on a measure, from the tests alone."""
    told = [
        f"{_verdict(value.effect)} when quantized weights are {MODES[mode]} ({_evidence(value)})"
        for (mode, of), value in known.items()
        if of is measure
    ]
    if told:
        subject = measure.name.partition(" (")[0]
        yield f"{subject[0].upper()}{subject[1:]}: the order of the stages {', and '.join(told)}."


def _verdict(tested: OrderEffect) -> str:
    if tested.p is None:
        return "cannot be tested"
    return "matters" if tested.p < ALPHA else "is not shown to matter"


def _evidence(value: Blocks) -> str:
    tested = value.effect
    low, high = value.orders[tested.lowest], value.orders[tested.highest]
    span = f"{low} {number(tested.means[tested.lowest])}, {high} {number(tested.means[tested.highest])}"
    if tested.f is None:
        return f"{tested.reason}; farthest apart {span}"
    p = f"p {'' if (tested.p or 0) < 1e-4 else '= '}{_p(tested.p)}"
    return (
        f"F({tested.degrees[0]}, {tested.degrees[1]}) = {number(tested.f)}, {p}; farthest apart {span}, "
        f"Tukey p {_p(tested.tukey_p)}"
    )


def order_rows(found: Sequence[Variant]) -> list[Flat]:
    """Gives one row an order, mode, measure and seed, with the test of that mode and measure repeated in each."""
    rows: list[Flat] = []
    for contest in contests(found):
        for mode in MODES:
            for measure in MEASURES:
                value = blocks(contest, mode, measure)
                for order in value.orders if value else ():
                    assert value is not None
                    shared: Flat = {"quantized_weights": MODES[mode], "measure": measure.key, "order": order}
                    rows += [
                        {
                            **_told(contest.variants[mode][order]),
                            **shared,
                            "seed": seed,
                            "value": number_,
                            **_flat(value),
                        }
                        for seed, number_ in zip(value.seeds, value.of(order), strict=True)
                    ]
    return rows


def _told(variant: Variant) -> Flat:
    row = variant.row
    return {
        "family": row.family,
        "model": row.cell.model.source,
        "pipeline": row.label,
        "runtime": row.runtime,
        "hardware": row.cell.hardware.name,
    }


def _flat(value: Blocks) -> Flat:
    tested = value.effect
    return {
        "f": tested.f,
        "degrees_between": tested.degrees[0],
        "degrees_error": tested.degrees[1],
        "p": tested.p,
        "largest_difference": tested.difference,
        "lowest": value.orders[tested.lowest],
        "highest": value.orders[tested.highest],
        "tukey_p": tested.tukey_p,
        "friedman_p": tested.friedman_p,
        "note": tested.reason,
    }
