"""The gate tests itself: how often it cries wolf, and how often it sees the wolf.

A gate's error rates are promises, and promises can be kept count of. Every night of every scenario (see `scenarios`) is
judged by the gate's own functions (see `simulation`), under the policy that is tested, and series that lie are judged
too (see `planted`). A goal is met when the nights prove it, missed when they disprove it, and open when they were too
few.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import numpy as np

from harness.gate.planted import Planted, lying_series
from harness.gate.policy import Policy
from harness.gate.scenarios import FLIPS, Group, Scenario, Setup, scenarios
from harness.gate.simulated_measures import Machine, Race, other_benches
from harness.gate.simulation import accuracy_rule, exit_codes, first_rule
from harness.gate.verdict import EXIT_GO, EXIT_INCONCLUSIVE, EXIT_NOT_COMPARABLE, EXIT_REGRESSED
from harness.record import Interval
from harness.spec import Value
from harness.statistics.intervals import wilson_interval

SELFTEST_SCHEMA = 1
LEVEL = 0.95


class Simulated(Value):
    """How nights of one kind came out: so many of `nights` with each exit code, open ones as with `--strict`.

    `items` are those of a cell, `numbers` all that were tested in a night. `caught` is the interval of the share that
    exits with 1, `at_most` the exact upper bound of that share (one-sided).
    """

    group: Group
    name: str
    nights: int
    cells: int
    items: int | None = None
    numbers: int
    regressed: int
    not_comparable: int
    inconclusive: int
    go: int
    caught: Interval
    at_most: float
    goal: str = ""
    met: bool | None = None
    cpu_s: float


class SelfTest(Value):
    """All of a self-test; `assumptions` are sentences, `records` what came of models that were really damaged."""

    schema_version: int = SELFTEST_SCHEMA
    policy: str
    policy_id: str
    seed: int
    assumptions: tuple[str, ...]
    simulated: tuple[Simulated, ...]
    series: tuple[Planted, ...]
    records: tuple[Planted, ...] = ()
    records_policy: str = ""

    @property
    def missed(self) -> tuple[str, ...]:
        """The names of what was disproven."""
        found: tuple[Simulated | Planted, ...] = (*self.simulated, *self.series, *self.records)
        return tuple(one.name for one in found if one.met is False)

    @property
    def cpu_s(self) -> float:
        """The processor time of all simulated nights."""
        return sum(one.cpu_s for one in self.simulated)


def selftest(policy: Policy, setup: Setup, *, progress: Callable[[Simulated], None] = lambda _: None) -> SelfTest:
    """Runs every scenario; the same policy and setup give the same counts."""
    found = []
    for at, scenario in enumerate(scenarios(policy, setup)):
        nights = setup.nights if scenario.is_rare else setup.fewer
        # Each scenario draws from a stream of its own, so that a new one changes no other.
        generator = np.random.default_rng([setup.seed, at])
        found.append(simulate(scenario, policy, nights=nights, generator=generator))
        progress(found[-1])
    return SelfTest(
        policy=policy.name,
        policy_id=policy.id,
        seed=setup.seed,
        assumptions=_assumptions(policy, setup),
        simulated=tuple(found),
        series=tuple(lying_series(policy, setup.tasks)),
    )


def simulate(scenario: Scenario, policy: Policy, *, nights: int, generator: np.random.Generator) -> Simulated:
    """Draws and judges nights of one kind."""
    started, night = time.process_time(), scenario.night
    speed, fidelity = first_rule(policy, "speed"), first_rule(policy, "fidelity")
    if isinstance(night, Race):
        assert speed is not None
        codes = night.exit_codes(speed, policy, nights=nights, generator=generator)
        numbers, items = night.cells * len(speed.limits), None
    else:
        others = [rule for rule in (fidelity, speed) if rule is not None and scenario.whole]
        more = (lambda drawing: other_benches(others, drawing)) if others else None
        codes = exit_codes(night, policy, nights=nights, generator=generator, more=more)
        numbers, items = night.numbers + night.cells * sum(len(rule.limits) for rule in others), night.items
    return _told(scenario, codes, (numbers, items, time.process_time() - started))


def _told(scenario: Scenario, codes: Counter[int], known: tuple[int, int | None, float]) -> Simulated:
    numbers, items, cpu_s = known
    nights, regressed = codes.total(), codes[EXIT_REGRESSED]
    goal, met = _goal(scenario, regressed, nights)
    return Simulated(
        group=scenario.group,
        name=scenario.name,
        nights=nights,
        cells=scenario.night.cells,
        items=items,
        numbers=numbers,
        regressed=regressed,
        not_comparable=codes[EXIT_NOT_COMPARABLE],
        inconclusive=codes[EXIT_INCONCLUSIVE],
        go=codes[EXIT_GO],
        caught=wilson_interval(regressed, nights, level=LEVEL),
        at_most=upper_bound(regressed, nights),
        goal=goal,
        met=met,
        cpu_s=cpu_s,
    )


def _goal(scenario: Scenario, regressed: int, nights: int) -> tuple[str, bool | None]:
    if scenario.at_most is not None:
        most = scenario.at_most
        proven, disproven = upper_bound(regressed, nights) <= most, _lower_bound(regressed, nights) > most
        return f"at most {most:.1%}", True if proven else False if disproven else None
    if scenario.at_least is not None:
        enough = regressed >= scenario.at_least * nights
        missed = wilson_interval(regressed, nights, level=LEVEL).high < scenario.at_least
        return f"at least {scenario.at_least:.0%}", True if enough else False if missed else None
    return "", None


def upper_bound(found: int, nights: int) -> float:
    """Gives the largest share that would show so few so rarely as in 5 % of the cases (Clopper and Pearson 1934)."""
    from scipy.special import betaincinv

    return 1.0 if found == nights else float(betaincinv(found + 1, nights - found, LEVEL))


def _lower_bound(found: int, nights: int) -> float:
    from scipy.special import betaincinv

    return 0.0 if found == 0 else float(betaincinv(found, nights - found + 1, 1 - LEVEL))


def _assumptions(policy: Policy, setup: Setup) -> tuple[str, ...]:
    rule, machine = accuracy_rule(policy), Machine()
    shown = ", ".join(f"{task.name} {task.right} of {task.n}" for task in setup.tasks)
    return (
        f"{setup.cells} cells a night where nothing else is said; right items of the reference: {shown}",
        f"margin {rule.margin:.1%} ({rule.scale}), {rule.looks} look(s), rule {rule.rule}; "
        f"alpha {policy.alpha.accept:g} to accept, {policy.alpha.breach:g} to breach, Holm over all numbers of a night",
        "items flip independently, as many won as lost in expectation; a loss of d points turns d of 100 items wrong",
        f"where one cell loses, {FLIPS:.0%} of the items flip in every cell",
        f"launches by turns; in a block rates share a draw (sd {machine.block_sd:.0%}) and drift "
        f"(sd {machine.drift:.1%} a launch)",
    )
