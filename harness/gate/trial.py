"""A number that was tested and has no verdict yet: breaches of a whole night are corrected together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.gate.measured import Measured
from harness.gate.policy import Alpha
from harness.gate.verdict import Finding, Place, Verdict
from harness.statistics.multiplicity import holm
from harness.statistics.noninferiority import MoreItems


@dataclass(frozen=True)
class Trial:
    """A finding with its p-values, before `decided` gives it its verdict.

    `p_breach` counts among the tests of the decision; None where nothing can be tested. A `settled` verdict (missing
    items, a size over its limit) needs no test, and hides no proven regression where there is one beside it. Only where
    `can_accept` is a small enough `p_accept` a pass. `plan` gives the items that an open comparison still needs, from
    the two error rates.
    """

    finding: Finding
    p_accept: float | None = None
    p_breach: float | None = None
    can_accept: bool = True
    settled: Verdict | None = None
    plan: Callable[[float, float], MoreItems | None] | None = None

    def verdict(self, *, adjusted: float | None, alpha: Alpha) -> Verdict:
        """Gives what is proven; `adjusted` is the breach's p after the correction for all tests."""
        if adjusted is not None and adjusted <= alpha.breach:
            return Verdict.REGRESSED
        if self.settled is not None:
            return self.settled
        if not self.can_accept:
            return Verdict.NOT_JUDGED
        accepted = self.p_accept is not None and self.p_accept <= alpha.accept
        return Verdict.NON_INFERIOR if accepted else Verdict.INCONCLUSIVE

    def decided(self, *, adjusted: float | None, tests: int, alpha: Alpha) -> Finding:
        """Gives the finding its verdict; `adjusted` is the breach's p after the correction for all `tests`."""
        verdict = self.verdict(adjusted=adjusted, alpha=alpha)
        if self.settled is not None and self.p_breach is None:
            return self.finding.model_copy(update={"verdict": verdict})
        still_open = verdict in (Verdict.INCONCLUSIVE, Verdict.NOT_JUDGED)
        more = self.plan(alpha.accept, alpha.breach / max(1, tests)) if self.plan and still_open else None
        told = {
            "verdict": verdict,
            "p_adjusted": adjusted,
            "alpha_accept": alpha.accept,
            "alpha_breach": alpha.breach,
            "more_items": more.n if more else None,
            "towards": more.towards if more else None,
        }
        return self.finding.model_copy(update=told)


def corrected(trials: Sequence[Trial], *, tests: int = 0) -> list[float | None]:
    """Gives each trial's p against a breach after Holm's correction for all of them; None where nothing is tested.

    Where fewer trials than `tests` are there yet, the others count as if they would show nothing.
    """
    found = [trial.p_breach for trial in trials if trial.p_breach is not None]
    adjusted = iter(holm([*found, *[1.0] * (tests - len(found))]))
    return [None if trial.p_breach is None else next(adjusted) for trial in trials]


def place_of(candidate: Measured, baseline: Measured, what: tuple[str, str, str]) -> Place:
    """Gives where a finding about an evaluation's task and metric belongs."""
    return Place(
        label=candidate.label,
        candidate=candidate.cell.id,
        baseline=baseline.cell.id,
        suite=candidate.cell.suite.name,
        evaluation=what[0],
        task=what[1],
        metric=what[2],
    )
