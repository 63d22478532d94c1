"""What a compressed model weighs and computes against its reference, and what making it took, stage by stage.

A token costs 2 FLOPs a parameter to read and 6 to learn from (J. Kaplan et al., arXiv 2001.08361, section 2.1). That
paper counts parameters without embeddings; a record counts all that were loaded, each tied tensor once. With tied
embeddings that is what a token multiplies with, the output layer included; without, it counts the input embedding too
much. A distilling stage therefore takes (6 student + 2 teacher parameters) x tokens, and those FLOPs over its seconds
are what this machine achieved. At a larger size of the same shape, with the same tokens and the same FLOP/s, the
seconds grow as the parameters do: a number that is extrapolated and was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.record import StageCost
from harness.reporters.export import Flat
from harness.reporters.findings import WORDS
from harness.reporters.sections import REFERENCE
from harness.reporters.text import NOTHING, estimate, megabytes, number, plain, seconds, table, times
from harness.reporters.variants import SCORE, Names, Variant, aligned, kind, reference_of
from harness.statistics.contrasts import Pairs
from harness.statistics.paired import Estimate, retention


@dataclass(frozen=True)
class Cost:
    """A variant beside its family's reference in the same place; the reference is None where it was not measured."""

    variant: Variant
    reference: Variant | None

    @property
    def parameters(self) -> int | None:
        """The parameters that were loaded, tied ones once."""
        return self.variant.row.identity.parameters if self.variant.row.identity else None

    @property
    def reference_parameters(self) -> int | None:
        """The parameters of the reference."""
        identity = self.reference.row.identity if self.reference else None
        return identity.parameters if identity else None

    @property
    def compression(self) -> float | None:
        """The reference's bytes over the variant's; those it would have if packed where it is emulated."""
        theirs = self.reference.row.size_bytes if self.reference else None
        own = self.variant.row.size_bytes
        return theirs / own if theirs and own else None

    @property
    def flop_ratio(self) -> float | None:
        """2 x parameters over 2 x the reference's parameters, a token."""
        if self.parameters is None or not self.reference_parameters:
            return None
        return (2 * self.parameters) / (2 * self.reference_parameters)

    def steps(self, seed: int) -> tuple[StageCost, ...]:
        """Gives what was done under a seed after the source was fetched, conversions for the runtime included."""
        artifact = self.variant.rows[seed].artifact
        return artifact.costs[1:] if artifact else ()

    @property
    def deploy_s(self) -> float | None:
        """Seconds of all steps, the mean over seeds."""
        known = [row.deploy_s for row in self.variant.rows.values() if row.deploy_s is not None]
        return sum(known) / len(known) if known else None

    def training_flops(self, step: StageCost) -> float | None:
        """Gives (6 student + 2 teacher) x tokens of a distilling step; the student as it was measured in the end."""
        if not _is_training(step) or self.parameters is None or self.reference_parameters is None:
            return None
        return (6.0 * self.parameters + 2.0 * self.reference_parameters) * step.tokens

    def extrapolated_s(self, step: StageCost, size: float) -> float | None:
        """Gives the seconds of a distilling step were the reference of that size and the student in proportion."""
        flops = self.training_flops(step)
        if flops is None or self.parameters is None or self.reference_parameters is None:
            return None
        achieved = flops / step.wall_s
        student = size * self.parameters / self.reference_parameters
        return (6 * student + 2 * size) * step.tokens / achieved


def _is_training(step: StageCost) -> bool:
    return step.step.startswith("distill.") and step.tokens > 0 and step.wall_s > 0


def costs(found: Sequence[Variant]) -> list[Cost]:
    """Gives every variant's cost."""
    return [Cost(variant, reference_of(variant, found)) for variant in found]


def cost_section(found: Sequence[Variant], names: Names, *, extrapolate_to: float | None) -> Iterator[str]:
    """Yields size and cost of every variant, then the steps that made it; nothing when all came as they are."""
    if not any(variant.stages for variant in found):
        return
    known = costs(found)
    yield (
        "Compression is the reference's bytes over the variant's. FLOPs are those of reading a token, 2 × parameters, "
        "over the reference's; parameters are all that were loaded, embeddings included, tied tensors once. "
        "In parentheses: emulated, the size the weights would have if packed."
    )
    yield table([_size(cost, names) for cost in known], left=WORDS)
    made = [_making(cost, names, extrapolate_to) for cost in known if cost.deploy_s]
    if made:
        yield "### Seconds and tokens"
        if extrapolate_to is not None:
            yield (
                f"The last column is extrapolated, not measured: distilling a reference of {extrapolate_to / 1e9:.3g} "
                "billion parameters into a student of the same proportion, with the same tokens, at the FLOP/s that "
                "this machine achieved, in proportion to (6 × student + 2 × reference parameters) × tokens."
            )
        yield table(made, left=(*WORDS, "Steps"))


def _size(cost: Cost, names: Names) -> dict[str, str]:
    row = cost.variant.row
    return {
        "Pipeline": names.label(cost.variant),
        "Parameters (M)": NOTHING if cost.parameters is None else f"{cost.parameters / 1e6:.4g}",
        "Size (MB)": _nominal(cost, megabytes(row.size_bytes)),
        "Compression": _nominal(cost, times(cost.compression)),
        "FLOPs a token": times(cost.flop_ratio),
        "Retention [95 %]": REFERENCE if row.is_reference else estimate(_retention(cost)),
    }


def _retention(cost: Cost, *, seed: int | None = None) -> Estimate | None:
    """Gives the share of the reference's score, over the seeds that both have or under one of them."""
    both = [variant for variant in (cost.variant, cost.reference) if variant]
    if len(both) < 2 or (seed is not None and not all(seed in variant.rows for variant in both)):
        return None
    shared = aligned(both if seed is None else [variant.at(seed) for variant in both], SCORE)
    tasks = shared.tasks if shared else ()
    found = [Pairs(candidate=task.columns[0], reference=task.columns[1]) for task in tasks]
    return retention(found) if found else None


def _nominal(cost: Cost, shown: str) -> str:
    return f"({shown})" if cost.variant.row.is_emulated and shown != NOTHING else shown


def _making(cost: Cost, names: Names, size: float | None) -> dict[str, str]:
    steps = cost.steps(min(cost.variant.rows))
    told = [f"{plain(_short(step))} {seconds(step.wall_s)}{_tokens(step)}" for step in steps]
    cells = {
        "Pipeline": names.label(cost.variant),
        "Steps": " → ".join(told) or "none",
        "Tokens": f"{sum(step.tokens for step in steps):,}",
        "Time to deploy": seconds(cost.deploy_s),
    }
    flops = [found for step in steps if (found := cost.training_flops(step))]
    training_s = sum(step.wall_s for step in steps if _is_training(step))
    cells["Training TFLOP"] = number(sum(flops) / 1e12) if flops else NOTHING
    cells["Achieved GFLOP/s"] = number(sum(flops) / training_s / 1e9) if flops else NOTHING
    if size is not None:
        there = [found for step in steps if (found := cost.extrapolated_s(step, size)) is not None]
        cells[f"Distilling at {size / 1e9:.3g} B (extrapolated, not measured)"] = seconds(sum(there) if there else None)
    return cells


def _short(step: StageCost) -> str:
    return step.step.partition("(")[0]


def _tokens(step: StageCost) -> str:
    return f" ({step.tokens:,} tokens)" if step.tokens else ""


def cost_rows(found: Sequence[Variant], *, extrapolate_to: float | None) -> list[Flat]:
    """Gives one row a step of every variant and seed, and a row `total` with the sum of its steps."""
    rows: list[Flat] = []
    for cost in costs(found):
        for seed in sorted(cost.variant.rows):
            steps = cost.steps(seed)
            rows += [{**_told(cost, seed), **_step(cost, step, extrapolate_to)} for step in steps]
            rows.append({**_told(cost, seed), "step": "total", **_total(steps)})
    return rows


def _told(cost: Cost, seed: int) -> Flat:
    row = cost.variant.rows[seed]
    kept = None if row.is_reference else _retention(cost, seed=seed)
    return {
        "family": row.family,
        "model": row.cell.model.source,
        "pipeline": row.label,
        "runtime": row.runtime,
        "hardware": row.cell.hardware.name,
        "seed": seed,
        "kinds": " ".join(kind(stage) for stage in cost.variant.stages),
        "parameters": cost.parameters,
        "bytes": row.size_bytes,
        "is_emulated": row.is_emulated,
        "compression": cost.compression,
        "flop_ratio": cost.flop_ratio,
        "retention": kept.value if kept else None,
        "retention_low": kept.interval.low if kept and kept.interval else None,
        "retention_high": kept.interval.high if kept and kept.interval else None,
    }


def _step(cost: Cost, step: StageCost, size: float | None) -> Flat:
    flops = cost.training_flops(step)
    there = {} if size is None else {"extrapolated_to": size, "extrapolated_s": cost.extrapolated_s(step, size)}
    return {
        "step": step.step,
        "tokens": step.tokens,
        "wall_s": step.wall_s,
        "cpu_s": step.cpu_s,
        "peak_bytes": step.peak_bytes,
        "training_flops": flops,
        "achieved_flops_per_s": flops / step.wall_s if flops else None,
        **there,
    }


def _total(steps: Sequence[StageCost]) -> Flat:
    return {
        "tokens": sum(step.tokens for step in steps),
        "wall_s": sum(step.wall_s for step in steps),
        "cpu_s": sum(step.cpu_s for step in steps),
        "peak_bytes": max((step.peak_bytes for step in steps), default=None),
    }
