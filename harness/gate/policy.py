"""What a team tolerates, as YAML: margins by suite and task, what is critical, error rates and looks.

    name: nightly
    against: cell
    alpha: {accept: 0.05, breach: 0.001}
    suites:
      - {suite: "accuracy-*", kind: accuracy, margin: 0.01, looks: 5, tasks: [{task: offline_cloze, critical: false}]}
      - {suite: "*", kind: fidelity, limits: [{metric: kl_mean, at_most: 0.1}]}
      - {suite: "perf-*", kind: speed, limits: [{metric: decode_tps, margin: 0.05}]}

Two error rates, because the two mistakes cost differently. `accept` bounds how often a loss of the margin is waved
through; `breach` bounds how often a night on which nothing was lost fails a build, over all tasks and cells together.
The first suite rule that fits a suite by name and has the kind of the number counts.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, model_validator

from harness.gate.verdict import Kind
from harness.spec import Value
from harness.statistics.windows import SUMS


class Alpha(Value):
    """One-sided error rates: of accepting a loss at the margin, and of failing a night without any loss."""

    accept: float = Field(default=0.05, gt=0, lt=0.5)
    breach: float = Field(default=0.001, gt=0, lt=0.5)


class TaskRule(Value):
    """What differs for the tasks that the pattern fits; the first that fits counts."""

    task: str = "*"
    critical: bool | None = None
    margin: float | None = Field(default=None, gt=0, lt=1)


class Limit(Value):
    """A bound on one metric: in its own unit (`at_most`, `at_least`) or as a share of the baseline's (`margin`).

    Without a bound the metric is shown and not judged. With `margin`, `slack` is tolerated on top, in the metric's own
    unit: a divergence of next to nothing doubles with every rounding, and a share of it says nothing.
    """

    metric: str
    task: str = "*"
    at_most: float | None = None
    at_least: float | None = None
    margin: float | None = Field(default=None, gt=0, lt=1)
    slack: float = Field(default=0.0, ge=0)

    @property
    def bound(self) -> float | None:
        """The one bound that is given, whatever it is a bound of."""
        return next((one for one in (self.margin, self.at_most, self.at_least) if one is not None), None)

    @property
    def is_bound(self) -> bool:
        """True when the metric is judged, and not only shown."""
        return self.bound is not None

    @model_validator(mode="after")
    def _one_bound(self) -> Limit:
        if sum(bound is not None for bound in (self.at_most, self.at_least, self.margin)) > 1:
            raise ValueError("give one of at_most, at_least and margin, or none to show the metric without judging it")
        return self


class SuiteRule(Value):
    """How the numbers of one kind are judged in the suites whose name fits.

    `rule` says what the suite needs: `pooled` that the tasks together are non-inferior and no critical task regressed,
    `every_critical` that each critical task is non-inferior. `looks` cuts the items into that many equal parts in one
    fixed random order; after each the comparison may stop, with O'Brien-Fleming's bounds. A nightly run asks suites of
    a lower `tier` first and spares a cell that regressed there the others; for `speed` it times `blocks` blocks of four
    launches, by turns with the baseline's.
    """

    suite: str = "*"
    kind: Kind = "accuracy"
    scale: Literal["retention", "difference"] = "retention"
    margin: float = Field(default=0.01, gt=0, lt=1)
    rule: Literal["pooled", "every_critical"] = "pooled"
    critical: bool = True
    tier: int = Field(default=1, ge=1)
    blocks: int = Field(default=5, ge=5)
    looks: int = Field(default=1, ge=1, le=20)
    tasks: tuple[TaskRule, ...] = ()
    limits: tuple[Limit, ...] = ()

    @model_validator(mode="after")
    def _limits_fit(self) -> SuiteRule:
        if self.kind == "accuracy" and self.limits:
            raise ValueError("scores are judged by margin, scale and tasks; limits are for the other kinds")
        if self.kind != "accuracy" and not self.limits:
            raise ValueError(f"a rule of kind {self.kind} needs limits")
        unknown = [limit.metric for limit in self.limits if limit.metric not in SUMS]
        if self.kind == "fidelity" and unknown:
            raise ValueError(f"fidelity has no {unknown[0]}; it has {', '.join(sorted(SUMS))}")
        if self.kind == "speed" and any((limit.at_most or limit.at_least) is not None for limit in self.limits):
            raise ValueError("speed is judged by margin: times of two machines or nights have no common scale")
        if self.kind in ("memory", "size") and any(limit.at_least is not None for limit in self.limits):
            raise ValueError("bytes are bounded from above: give at_most or margin")
        return self

    def of_task(self, task: str) -> tuple[float, bool]:
        """Gives the margin of a task and whether it is critical."""
        found = next((rule for rule in self.tasks if fnmatchcase(task, rule.task)), TaskRule())
        margin = self.margin if found.margin is None else found.margin
        return margin, self.critical if found.critical is None else found.critical


class Policy(Value):
    """A gate's policy.

    `against` says what a cell is held against: the baseline's cell of the same name, or the baseline's reference of the
    same family (on the same runtime where there is one). `allow_different` names fields in which the sides may differ
    although they should not; each stays in the report. `max_unanswered` is the share of the baseline's items that the
    candidate may leave unanswered, `max_extra_truncated` how much larger its share of cut answers may be.
    """

    name: str
    version: str = "1"
    against: Literal["cell", "reference"] = "cell"
    alpha: Alpha = Alpha()
    power: float = Field(default=0.8, gt=0.5, lt=1)
    allow_different: tuple[str, ...] = ()
    max_unanswered: float = Field(default=0.0, ge=0, lt=1)
    max_extra_truncated: float = Field(default=0.02, ge=0, le=1)
    suites: tuple[SuiteRule, ...] = Field(min_length=1)

    def rule(self, suite: str, kind: Kind) -> SuiteRule | None:
        """Gives the rule for the numbers of a kind in a suite, or None when the policy does not judge them."""
        return next((rule for rule in self.suites if rule.kind == kind and fnmatchcase(suite, rule.suite)), None)
