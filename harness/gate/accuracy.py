"""Scores, item by item: less lost than the margin, more, or still open.

Two one-sided score tests on the pairs (`statistics.noninferiority`) look for both proofs. A breach of right-or-wrong
items must also pass McNemar's exact test against "nothing was lost": where nothing was, the chance of a false alarm is
then what was asked for by a test that approximates nothing. With several looks both tests are those of O'Brien and
Fleming, over items in one fixed random order or in the parts that were run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from harness.gate.measured import Measured
from harness.gate.policy import Policy, SuiteRule
from harness.gate.trial import Trial, place_of
from harness.gate.verdict import POOLED, Counts, Finding, Number, Verdict
from harness.statistics.clusters import clustered_difference, clustered_retention
from harness.statistics.contrasts import Pairs
from harness.statistics.items import Paired, Task, in_random_order
from harness.statistics.noninferiority import LossTest, MoreItems, loss_test, more_items
from harness.statistics.paired import Estimate, chance_corrected_retention, difference, retention
from harness.statistics.sequential import overall_p


@dataclass(frozen=True)
class Asked:
    """A task's pairs with what the policy wants of it; `parts` names the part of every pair where there are several."""

    task: Task
    paired: Paired
    margin: float
    critical: bool
    parts: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Looked:
    """The tests at the looks that were taken: overall p-values and the last look's test."""

    test: LossTest
    look: int
    p_accept: float | None
    p_breach: float | None


@dataclass(frozen=True)
class Accuracy:
    """The accuracy trials of one candidate against one baseline under one rule."""

    policy: Policy
    rule: SuiteRule
    candidate: Measured
    baseline: Measured

    def trials(self, asked: Sequence[Asked]) -> tuple[list[Trial], Trial | None]:
        """Gives a trial for each task, and one for all tasks together where every task has pairs."""
        each = [self._task(one) for one in asked]
        usable = [one for one in asked if one.paired.pairs is not None]
        return each, self._pooled(usable) if usable and len(usable) == len(asked) else None

    def _task(self, asked: Asked) -> Trial:
        found = asked.paired
        place = place_of(self.candidate, self.baseline, (*asked.task, "score"))
        expected = found.missing + found.unlike + len(found.names)
        counts = Counts(n=len(found.names), missing=found.missing, extra=found.extra, unlike=found.unlike)
        empty = Finding(
            place=place, kind="accuracy", verdict=Verdict.MISSING, critical=asked.critical, scale=self.rule.scale,
            margin=asked.margin, counts=counts,
        )  # fmt: skip
        if found.pairs is None:
            reason = f"none of {expected:,} items was answered by both sides"
            return Trial(empty.model_copy(update={"reason": reason}), settled=Verdict.MISSING)
        trial = self._tested(empty, [asked])
        if found.missing > self.policy.max_unanswered * expected:
            reason = f"{found.missing:,} of the baseline's {expected:,} items were not answered"
            # What is missing may be what was lost, so nothing is accepted; a proven regression stays one.
            finding = trial.finding.model_copy(update={"reason": reason})
            return replace(trial, finding=finding, settled=Verdict.MISSING)
        return trial

    def _pooled(self, asked: Sequence[Asked]) -> Trial:
        n = sum(len(one.paired.names) for one in asked)
        place = place_of(self.candidate, self.baseline, ("", POOLED, "score"))
        whole = Finding(
            place=place, kind="accuracy", verdict=Verdict.MISSING, critical=False, scale=self.rule.scale,
            margin=self.rule.margin, counts=Counts(n=n),
        )  # fmt: skip
        return self._tested(whole, [replace(one, margin=self.rule.margin) for one in asked])

    def _tested(self, empty: Finding, asked: Sequence[Asked]) -> Trial:
        pairs = [one.paired.pairs for one in asked if one.paired.pairs is not None]
        looked = self._looked(asked)
        test, margin = looked.test, asked[0].margin
        ours, theirs = (math.fsum(map(_mean, side)) / len(pairs) for side in _sides(pairs))
        counts = empty.counts or Counts(n=test.n)
        if all(one.is_binary for one in pairs):
            won, lost = (sum(one.counts[kind] for one in pairs) for kind in (1, 2))
            counts = counts.model_copy(update={"won": won, "lost": lost})
        corrected = [one for one in pairs if one.chance is not None]
        # Of several tasks the exact test counts items and the loss weighs tasks: both must see one.
        lost_any = test.value is not None and test.value > 0
        harm = lost_any and test.p_harm is not None and test.p_harm <= self.policy.alpha.accept
        finding = empty.model_copy(
            update={
                "counts": counts,
                "harm": harm,
                "baseline": theirs,
                "candidate": ours,
                **_intervals(asked, ours - theirs),
                "corrected": _number(chance_corrected_retention(corrected)) if len(corrected) == len(pairs) else None,
                "p_accept": looked.p_accept,
                "p_breach": looked.p_breach,
                "p_harm": test.p_harm,
                "look": looked.look,
                "looks": self._looks(asked),
                "method": test.method,
                "reason": test.reason,
            }
        )

        def plan(alpha_accept: float, alpha_breach: float) -> MoreItems | None:
            def ask(alpha: float) -> MoreItems | None:
                return more_items(pairs, margin=margin, scale=self.rule.scale, alpha=alpha, power=self.policy.power)

            found = ask(alpha_accept)
            return ask(alpha_breach) if found and found.towards == "breach" else found

        return Trial(finding, p_accept=looked.p_accept, p_breach=looked.p_breach, plan=plan)

    def _looks(self, asked: Sequence[Asked]) -> int:
        in_parts = any(one.parts is not None for one in asked)
        return self.candidate.part_count if in_parts else self.rule.looks

    def _looked(self, asked: Sequence[Asked]) -> Looked:
        """Tests at each look that the items allow, and stops at the first that accepts."""
        looks = self._looks(asked)
        seen = ([_at(one, look, looks) for one in asked] for look in self._taken(asked, looks))
        tests = (self._test(each) if all(one.paired.names for one in each) else None for each in seen)
        return looked(tests, looks=looks, accept=self.policy.alpha.accept)

    @staticmethod
    def _taken(asked: Sequence[Asked], looks: int) -> Iterator[int]:
        parts = [one.parts for one in asked if one.parts is not None]
        last = max((max(each, default=1) for each in parts), default=looks)
        yield from range(1, last + 1)

    def _test(self, asked: Sequence[Asked]) -> LossTest:
        usable = [one for one in asked if one.paired.pairs is not None]
        return loss_test(
            [one.paired.pairs for one in usable if one.paired.pairs is not None],
            margin=usable[0].margin,
            scale=self.rule.scale,
            clusters=[one.paired.clusters for one in usable],
        )


def looked(tests: Iterable[LossTest | None], *, looks: int, accept: float) -> Looked:
    """Puts the tests of the looks together in the order they are taken, up to the first that accepts.

    None is a look at which a task had no items yet. A look that holds nothing to test proves nothing and ends nothing:
    a reference that has scored nothing so far may do so later.
    """
    accepts: list[float] = []
    breaches: list[float] = []
    taken: Looked | None = None
    for look, test in enumerate(tests, start=1):
        if test is None or test.p_accept is None or test.p_breach is None:
            accepts.append(1.0)
            breaches.append(1.0)
            if test is not None and (taken is None or taken.p_breach is None):
                taken = Looked(test, look, None, None)
            continue
        exact = test.p_harm if test.p_harm is not None else 0.0
        accepts.append(test.p_accept)
        breaches.append(max(test.p_breach, exact))
        p_accept, p_breach = (overall_p(values, looks=looks) for values in (accepts, breaches))
        taken = Looked(test, look, p_accept, p_breach)
        if p_accept <= accept:
            break
    assert taken is not None
    return taken


def _at(asked: Asked, look: int, looks: int) -> Asked:
    """Gives what was known at a look: the parts so far, or as many items in their fixed random order."""
    found = asked.paired
    assert found.pairs is not None
    if look == looks and asked.parts is None:
        return asked
    if asked.parts is not None:
        kept = [index for index, part in enumerate(asked.parts) if part <= look]
    else:
        place = {name: index for index, name in enumerate(found.names)}
        order = [place[name] for name in in_random_order(found.names)]
        kept = sorted(order[: math.ceil(len(order) * look / looks)])
    if not kept:
        return replace(asked, paired=replace(found, pairs=None, names=(), clusters=None))
    pairs = Pairs(
        tuple(found.pairs.candidate[index] for index in kept),
        tuple(found.pairs.reference[index] for index in kept),
        found.pairs.chance,
    )
    clusters = None if found.clusters is None else tuple(found.clusters[index] for index in kept)
    names = tuple(found.names[index] for index in kept)
    return replace(asked, paired=replace(found, pairs=pairs, names=names, clusters=clusters))


def _intervals(asked: Sequence[Asked], change: float) -> dict[str, Number]:
    """Gives difference and retention; of items in clusters with intervals that know it."""
    pairs = [one.paired.pairs for one in asked if one.paired.pairs is not None]
    if len(pairs) > 1:
        return {"difference": Number(value=change), "retention": _number(retention(pairs))}
    clusters = asked[0].paired.clusters
    if clusters is None:
        return {"difference": _number(difference(pairs[0])), "retention": _number(retention(pairs))}
    return {
        "difference": _number(clustered_difference(pairs[0], clusters)),
        "retention": _number(clustered_retention(pairs[0], clusters)),
    }


def _sides(pairs: Sequence[Pairs]) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    return [one.candidate for one in pairs], [one.reference for one in pairs]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _number(found: Estimate) -> Number:
    return Number(value=found.value, interval=found.interval, reason=found.reason)
