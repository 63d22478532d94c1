"""Nights as series: a step is noted on its night, a slow machine is not, a number that never moves is pointed at."""

import csv
import random
from datetime import UTC, datetime, timedelta

import pytest

from harness.reporters.trend import Trend, by_night
from harness.spec import Use
from tests.reporters.world import FakeResults, answers, cell, identity, metric, record

STAGES = (Use(use="quantize.rtn", args={"bits": 4}),)
FIRST = datetime(2026, 1, 1, 22, 0, tzinfo=UTC)


def nights(count: int, *, losses=lambda night: 0, slow=lambda night: 1.0, noise: float = 0.01) -> FakeResults:
    """Nights of a reference and its compressed version: items lost, and how slow the machine or the version was."""
    results, draw = FakeResults(), random.Random(7)
    for night in range(count):
        machine = slow(night)
        for name, stages, lost, factor in (("reference", (), 0, 1.0), ("q4", STAGES, losses(night), 1.5)):
            rows = answers("sums", [1.0] * (80 - lost - draw.randrange(2)) + [0.0] * (20 + lost))
            speed = 100.0 * factor / machine * (1 + noise * draw.gauss(0, 1))
            speeds = [metric("decode_tps", speed, "probes.speed", "decode 128x1", unit="tokens/s")]
            at = (FIRST + timedelta(days=night)).isoformat(timespec="seconds")
            made = record(cell(name, stages=stages), rows, metrics=speeds, identity=identity(4), started_at=at)
            results.kept.append(made)
    return results


def written(results: FakeResults, folder) -> tuple[str, list[dict[str, str]]]:
    files = list(Trend().render(results, folder))
    assert {file.name for file in files} == {"trend.md", "trend.csv", "trend.png", "trend.svg"}
    with (folder / "trend.csv").open(newline="") as file:
        return (folder / "trend.md").read_text(), list(csv.DictReader(file))


def changed(rows: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(row["measure"], row["night"]) for row in rows if row["level_changed"] == "True"}


def test_a_loss_is_noted_on_the_night_it_came(tmp_path):
    text, rows = written(nights(30, losses=lambda night: 8 if night >= 20 else 0), tmp_path)
    assert changed(rows) == {("score", "2026-01-21")}  # the twentieth night after the first of January
    assert "2026-01-21" in text


def test_a_machine_that_slows_down_is_no_change_and_a_version_that_does_is_one(tmp_path):
    slow = nights(30, slow=lambda night: 1.5 if night >= 15 else 1.0)
    _, rows = written(slow, tmp_path)
    assert changed(rows) == set()


def test_a_number_that_never_moves_is_pointed_at(tmp_path):
    text, _ = written(nights(6, noise=0.0), tmp_path)
    assert "the very same number for 6 nights" in text


def test_one_night_is_no_trend(tmp_path):
    assert list(Trend().render(nights(1), tmp_path)) == []


@pytest.mark.parametrize(
    ("began", "night"), [("23:30", "2026-03-01"), ("02:00", "2026-02-28"), ("13:00", "2026-03-01")]
)
def test_a_night_runs_from_noon_to_noon(began, night):
    made = record(cell("q4"), started_at=f"2026-03-01T{began}:00+00:00")
    assert list(by_night([made])) == [night]
