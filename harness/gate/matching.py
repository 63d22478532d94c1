"""Which cell is held against which: by name in another run, or against the reference of its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from harness.gate.measured import Measured
from harness.gate.policy import Policy
from harness.gate.verdict import Kind


@dataclass(frozen=True)
class Match:
    """A candidate and what it is held against; at most one of them is absent."""

    candidate: Measured | None
    baseline: Measured | None

    @property
    def side(self) -> Measured:
        """The side that is there, the candidate if both are."""
        found = self.candidate or self.baseline
        assert found is not None
        return found


def match(candidates: Sequence[Measured], baselines: Sequence[Measured], policy: Policy) -> list[Match]:
    """Matches the cells of the suites that the policy judges; cells without a counterpart stand alone.

    Against references the baseline's compressed cells are of no account, and neither are the candidate's references.
    """
    ours, theirs = ([side for side in sides if _is_judged(side, policy)] for sides in (candidates, baselines))
    if policy.against == "reference":
        references = [side for side in theirs if side.cell.is_reference]
        return [Match(one, nearest(one, references)) for one in ours if not one.cell.is_reference]
    by_key = {side.key: side for side in theirs}
    found = [Match(one, by_key.pop(one.key, None)) for one in ours]
    return [*found, *(Match(None, left) for left in by_key.values())]


def nearest(candidate: Measured, references: Sequence[Measured]) -> Measured | None:
    """Gives the family's reference under the same suite: on the same runtime, device and seed where there is one."""
    mine = candidate.cell
    able = [
        one
        for one in references
        if one.cell.model.family == mine.model.family and one.cell.suite.name == mine.suite.name
    ]

    def distance(one: Measured) -> tuple[object, ...]:
        theirs = one.cell
        return (
            theirs.runtime != mine.runtime,
            theirs.hardware != mine.hardware,
            theirs.seed != mine.seed,
            one.key,
        )

    return min(able, key=distance, default=None)


def _is_judged(side: Measured, policy: Policy) -> bool:
    return any(policy.rule(side.cell.suite.name, kind) for kind in get_args(Kind))
