"""Exported files are read by those they are for: lm-eval, pytest-benchmark, huggingface_hub, and by schema."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from harness.exchange.bencher import Bencher
from harness.exchange.github_action import GithubAction
from harness.exchange.lm_eval import LmEvalLog
from harness.exchange.lm_eval_results import LmEvalResults
from harness.exchange.model_index import ModelIndex
from harness.exchange.pytest_benchmark import PytestBenchmark, stats
from harness.record import Interval, Observation, Outcome
from harness.spec import Suite, Use
from tests.reporters.world import FakeResults, answers, cell, metric, probes, record

ASKED = Suite(
    name="s",
    version="1",
    evaluations=(Use(use="tasks.lm_eval", args={"task": "arc_easy", "num_fewshot": 5, "limit": 4}),),
)


def times(values_s: list[float]) -> list[Observation]:
    rows = [
        Observation(
            evaluation="probes.speed",
            task="decode 128x1",
            sample=f"repetition {n}",
            values={"tpot_s": value, "decode_tps": 1 / value, "bandwidth_bytes_per_s": 5.0},
        )
        for n, value in enumerate(values_s)
    ]
    warm = Observation(evaluation="probes.speed", task="warm-up 128x1", sample="run 0", values={"wall_s": 9.0})
    return [warm, *rows]


@pytest.fixture
def results() -> FakeResults:
    """A reference and a variant with a task and times, an emulated one, and one that failed."""
    made = FakeResults()
    for name, scores, pace in (
        ("reference", [1, 1, 0, 1], 0.02),
        ("q4", [1, 0, 0, 1], 0.01),
        ("rtn", [1, 0, 0, 0], 0.5),
    ):
        rows = answers("arc_easy", scores)
        rows = [row.model_copy(update={"values": {**row.values, "acc": row.values["score"]}}) for row in rows]
        mean = sum(scores) / 4
        interval = Interval(low=mean - 0.25, high=mean + 0.125, method="made")
        acc = metric("acc", mean, "tasks.lm_eval", "arc_easy", n=4).model_copy(
            update={"higher_is_better": True, "interval": interval}
        )
        outcome = Outcome.EMULATED if name == "rtn" else Outcome.OK
        kept = record(
            cell(name, suite=ASKED),
            rows,
            metrics=[acc, *probes(50, 300)],
            outcome=outcome,
            started_at="2026-01-02T03:04:05+00:00",
        )
        made.add(kept, [*rows, *times([pace, 2 * pace, pace * 1.5])])
    made.add(record(cell("broken", suite=ASKED)).model_copy(update={"outcome": Outcome.FAILED, "metrics": ()}))
    return made


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def test_lm_eval_prints_our_results_file_as_its_own(results: FakeResults, tmp_path: Path) -> None:
    from lm_eval.utils import make_table

    files = LmEvalResults().write(results, tmp_path)
    assert len(files) == 3
    table = make_table(read(files[0]))
    # Three of four right: the sample deviation is 1/2, and its error 1/2 over the root of 4.
    assert "arc_easy" in table
    assert "0.75|±" in table
    assert "0.25|" in table
    assert read(files[0])["n-shot"] == {"arc_easy": 5}
    assert read(files[0])["n-samples"] == {"arc_easy": {"effective": 4}}


def test_our_results_file_comes_back_through_our_own_importer(results: FakeResults, tmp_path: Path) -> None:
    files = LmEvalResults().write(results, tmp_path)
    (found,) = LmEvalLog().read(files[0])
    (acc,) = found.record.metrics
    assert (acc.name, acc.value, acc.n, acc.higher_is_better) == ("acc", 0.75, 4, True)
    # 1.959964 errors of 0.25 either way.
    assert (acc.interval.low, acc.interval.high) == pytest.approx((0.75 - 0.489991, 0.75 + 0.489991), abs=1e-6)


def test_pytest_benchmark_compares_our_times(results: FakeResults, tmp_path: Path) -> None:
    (file,) = PytestBenchmark().write(results, tmp_path)
    command = [
        sys.executable,
        "-m",
        "pytest_benchmark",
        "compare",
        str(file),
        "--columns",
        "mean,rounds",
        "--group-by",
        "group",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "probes.speed / decode 128x1 / tpot_s" in done.stdout
    assert "q4" in done.stdout
    # The mean of 0.01, 0.02 and 0.015 s is 15 ms; the emulated cell has no times to quote, warm-up runs are no times.
    assert "15.0000" in done.stdout
    assert "rtn" not in done.stdout
    assert "wall_s" not in done.stdout


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8, 21])
def test_statistics_are_those_of_pytest_benchmark(n: int) -> None:
    from pytest_benchmark.stats import Stats

    values = np.random.default_rng(n).exponential(0.01, n).tolist()
    theirs = Stats()
    for value in values:
        theirs.update(value)
    ours = stats(values)
    for key, value in theirs.as_dict().items():
        assert ours[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key


def test_bencher_takes_values_with_their_bounds(results: FakeResults, tmp_path: Path) -> None:
    (file,) = Bencher().write(results, tmp_path)
    made = read(file)
    # The schema: benchmark -> measure -> {value, lower_value?, upper_value?}, all numbers, names within 1024 and 64.
    for benchmark, measures in made.items():
        assert 0 < len(benchmark) <= 1024
        for measure, values in measures.items():
            assert 0 < len(measure) <= 64
            assert "value" in values
            assert values.keys() <= {"value", "lower_value", "upper_value"}
            assert all(isinstance(value, (int, float)) for value in values.values())
    (own,) = [values for name, values in made.items() if "/ reference /" in name and "arc_easy" in name]
    assert own["acc"] == {"value": 0.75, "lower_value": 0.5, "upper_value": 0.875}
    assert not any("rtn" in name and "probes" in name for name in made)


def test_github_action_gets_each_number_in_the_file_of_its_direction(results: FakeResults, tmp_path: Path) -> None:
    bigger, smaller = GithubAction().write(results, tmp_path)
    for file in (bigger, smaller):
        for entry in json.loads(file.read_text()):
            assert {"name", "unit", "value"} <= entry.keys() <= {"name", "unit", "value", "range", "extra"}
            assert isinstance(entry["name"], str)
            assert isinstance(entry["unit"], str)
            assert isinstance(entry["value"], (int, float))
    names = {entry["name"].rsplit(" / ")[-1]: entry for entry in json.loads(bigger.read_text())}
    assert {"acc", "decode_tps", "prefill_tps"} <= names.keys()
    assert "ttft_s" in {entry["name"].rsplit(" / ")[-1] for entry in json.loads(smaller.read_text())}
    # Half of 0.375, the width of the interval.
    assert names["acc"]["range"] == "± 0.188"


def test_a_model_card_reads_our_model_index(results: FakeResults, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index

    files = ModelIndex().write(results, tmp_path)
    assert len(files) == 3
    card = ModelCard(f"---\n{files[0].read_text()}---\n# A model\n")
    (acc,) = [one for one in card.data.eval_results if one.metric_type == "acc"]
    assert (acc.dataset_name, acc.metric_value, acc.dataset_args) == ("arc_easy", 0.75, {"num_fewshot": 5})
    again = eval_results_to_model_index(card.data.model_name, card.data.eval_results)
    assert again == yaml.safe_load(files[0].read_text())["model-index"]
    assert "tps" not in files[0].read_text()


def test_the_same_records_give_the_same_bytes(results: FakeResults, tmp_path: Path) -> None:
    for exporter in (LmEvalResults(), PytestBenchmark(), Bencher(), GithubAction(), ModelIndex()):
        first, second = (exporter.write(results, tmp_path / name / type(exporter).__name__) for name in "ab")
        assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
        assert first


def test_nothing_to_say_writes_nothing(tmp_path: Path) -> None:
    empty = FakeResults()
    empty.add(record(cell("x"), outcome=Outcome.FAILED, metrics=()).model_copy(update={"metrics": ()}))
    for exporter in (LmEvalResults(), PytestBenchmark(), Bencher(), GithubAction(), ModelIndex()):
        assert exporter.write(empty, tmp_path) == []
