"""Launches and windows of text drawn by chance, and judged by the gate's own functions for speed and fidelity.

A launch is fast or slow as a whole, so its rate is log-normal with a stated spread, and so is what a block of four
launches has in common. Within a block the machine slows down or speeds up steadily, by as much a launch. Speed is
judged from such launches by turns as the gate does: its own noise, a margin of three standard deviations where that is
more, Student's t over blocks. A window's divergence from the reference is log-normal over windows; of the candidate it
differs a little from the baseline's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from harness.gate.limits import fidelity_trials
from harness.gate.measured import Measured
from harness.gate.policy import Policy, SuiteRule
from harness.gate.simulation import Bench, exit_of
from harness.gate.speed import Speeds, speed_trials
from harness.record import Identity, Metric, Observation, Outcome, Record
from harness.spec import Cell, Hardware, Model, Pipeline, Suite, Use
from harness.statistics.launches import CANDIDATE, Launch, abba

TIMES = frozenset({"ttft_s", "tpot_s", "e2e_s", "load_cold_s", "load_warm_s"})
"""What is better when it is less; the rest of what speed is judged by are rates."""
NAME = "simulated"
"""Of all that has a name and does not exist."""


@dataclass(frozen=True)
class Machine:
    """What a machine does to a launch, as standard deviations of a logarithm: to it alone, and to its whole block.

    `drift` is that of the steady change from a launch to the next within a block.
    """

    launch_sd: float = 0.01
    block_sd: float = 0.03
    drift: float = 0.005


@dataclass(frozen=True)
class Texts:
    """Windows of a fidelity evaluation: how many, their divergence, its spread over windows and between two runs."""

    windows: int = 8
    tokens: int = 255
    kl: float = 0.02
    spread: float = 0.5
    noise: float = 0.05


def simulated_side(
    *, rows: tuple[Observation, ...] = (), metrics: tuple[Metric, ...] = (), weights: str = ""
) -> Measured:
    """Gives a side of a comparison that no machine measured; `weights` stands for the digest of what it ran."""
    cell = Cell(
        model=Model(family=NAME, source=f"path:{NAME}"),
        pipeline=Pipeline(name="candidate"),
        runtime=Use(use=NAME),
        hardware=Hardware(),
        suite=Suite(name=NAME, version="1", evaluations=(Use(use=NAME),)),
    )
    identity = Identity(
        weights_digest=weights, weights_disk_bytes=1, weights_memory_bytes=1, parameters=1, tensor_types={"f32": 1},
        kernel=NAME, tokenizer_hash=NAME,
    )  # fmt: skip
    return Measured((Record(cell=cell, outcome=Outcome.OK, metrics=metrics, identity=identity),), (rows,))


def speed_bench(rule: SuiteRule, machine: Machine, *, slower: float, generator: np.random.Generator) -> Bench:
    """Gives the trials of one cell whose every rate is lower by the share `slower`, its times longer to match."""
    names = [limit.metric for limit in rule.limits]
    side = simulated_side(metrics=tuple(_metric(name) for name in names))
    launches = {
        (NAME, NAME, name): _launches(rule.blocks, machine, slower, (name in TIMES, generator)) for name in names
    }
    return Bench(rule, list(speed_trials(side, side, rule, speeds=Speeds(launches))))


def fidelity_bench(rule: SuiteRule, texts: Texts, *, generator: np.random.Generator) -> Bench:
    """Gives the trials of one cell whose divergence from the reference is that of its baseline but for noise."""
    kl_W = texts.kl * np.exp(generator.normal(0.0, texts.spread, texts.windows))
    sides = [kl_W * np.exp(generator.normal(0.0, texts.noise, texts.windows)) for _ in range(2)]
    candidate, baseline = (simulated_side(rows=_windows(side.tolist(), texts.tokens)) for side in sides)
    return Bench(rule, list(fidelity_trials(candidate, baseline, rule)))


def other_benches(rules: Sequence[SuiteRule], generator: np.random.Generator) -> Iterator[Bench]:
    """Yields what a cell measures besides scores, in a night that changes nothing."""
    for rule in rules:
        if rule.kind == "speed":
            yield speed_bench(rule, Machine(), slower=0.0, generator=generator)
        if rule.kind == "fidelity":
            yield fidelity_bench(rule, Texts(), generator=generator)


@dataclass(frozen=True)
class Race:
    """A night of speed alone: cells, the machine, and by what share of its speed one of the cells is slower."""

    cells: int
    machine: Machine
    slower: float

    def exit_codes(
        self, rule: SuiteRule, policy: Policy, *, nights: int, generator: np.random.Generator
    ) -> Counter[int]:
        """Judges that many nights and gives how often each exit code came out."""
        found: Counter[int] = Counter()
        for _ in range(nights):
            shares = [self.slower, *[0.0] * (self.cells - 1)]
            benches = [speed_bench(rule, self.machine, slower=share, generator=generator) for share in shares]
            found[exit_of(benches, policy)] += 1
        return found


def _metric(name: str) -> Metric:
    is_time = name in TIMES
    unit = "s" if is_time else "tokens/s"
    return Metric(evaluation=NAME, task=NAME, name=name, unit=unit, value=1.0, n=1, higher_is_better=not is_time)


def _launches(
    blocks: int, machine: Machine, slower: float, drawn: tuple[bool, np.random.Generator]
) -> tuple[Launch, ...]:
    is_time, generator = drawn
    sides = abba(blocks)
    size = len(sides) // blocks
    block_B = generator.normal(0.0, machine.block_sd, blocks)
    drift_B = generator.normal(0.0, machine.drift, blocks)
    noise_L = generator.normal(0.0, machine.launch_sd, len(sides))
    found = []
    for at, side in enumerate(sides):
        block, turn = divmod(at, size)
        log_rate = block_B[block] + drift_B[block] * turn + noise_L[at]
        log_rate += math.log1p(-slower) if side == CANDIDATE else 0.0
        found.append(Launch(side, block, (math.exp(-log_rate if is_time else log_rate),)))
    return tuple(found)


def _windows(divergences: list[float], tokens: int) -> tuple[Observation, ...]:
    return tuple(
        Observation(
            evaluation=NAME,
            task=NAME,
            sample=str(index),
            values={"tokens": tokens, "nll": 0.0, "nll_ref": 0.0, "kl_mean": kl, "top1_same": tokens},
        )
        for index, kl in enumerate(divergences)
    )
