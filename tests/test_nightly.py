"""Nights from the command line: the first, a good one, a bad one, a killed one, and two at once."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import testing
from harness.errors import StoreError
from harness.gate.verdict import Decision
from harness.nightly import answer, answered, part_of
from harness.nights import Night, Nights, read, write
from harness.record import Outcome
from harness.spec import Suite, Use
from harness.store import Store

ROOT = Path(__file__).parent.parent
SUITE = "name: s\nversion: 1\nevaluations: [{{use: fake.greedy, args: {{items: 800, seconds: {seconds}}}}}]\n"
POLICY = """\
name: test
suites: [{suite: s, kind: accuracy, scale: difference, margin: 0.02, looks: LOOKS}]
"""


def matrix(noise: float) -> str:
    return (
        'name: tiny\nmodels: [{family: fake, source: "fake:table"}]\n'
        "pipelines: [{name: reference}, {name: blurred, stages: [{use: fake.blur, args: {noise: "
        f"{noise}}}}}]}}]\nruntimes: [{{use: fake}}]\nsuites: [./s.yaml]\n"
    )


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    written(tmp_path)
    with testing.installed(tmp_path / "plugins"):
        yield tmp_path


def written(folder: Path, *, noise: float = 0.001, looks: int = 1, seconds: float = 0.0) -> None:
    (folder / "tiny.yaml").write_text(matrix(noise))
    (folder / "s.yaml").write_text(SUITE.format(seconds=seconds))
    (folder / "policy.yaml").write_text(POLICY.replace("LOOKS", str(looks)))


def harness(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *args], cwd=folder, capture_output=True, text=True, check=False
    )


def night(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return harness(folder, "nightly", "tiny.yaml", "--policy", "policy.yaml", *args)


def nights(folder: Path) -> Nights:
    return Nights(folder / "results" / "tiny-nights")


def pinned(folder: Path) -> None:
    """Makes the last night the baseline."""
    done = harness(folder, "baseline", "set", "tiny", str(nights(folder).folders[-1]))
    assert done.returncode == 0, done.stderr


def decided(folder: Path) -> Decision:
    return Decision.model_validate_json((nights(folder).folders[-1] / "decision.json").read_text())


def test_the_first_night_measures_and_says_how_to_make_it_the_baseline(folder: Path) -> None:
    first = night(folder)
    assert first.returncode == 4, first.stderr
    (only,) = nights(folder).folders
    assert f"harness baseline set tiny {only}" in first.stdout
    assert len(Store(only).records) == 2
    assert read(only).exit_code == 4


def test_a_night_like_the_baseline_is_good_and_a_night_with_a_loss_is_not(folder: Path) -> None:
    night(folder)
    pinned(folder)
    good = night(folder)
    assert good.returncode == 0, good.stdout + good.stderr
    assert (folder / "reports" / "nightly" / nights(folder).folders[-1].name / "junit.xml").exists()
    # A good night does not become the baseline by itself.
    baseline = json.loads((folder / "results" / "baselines" / "tiny" / "current.json").read_text())
    assert len(baseline["history"]) == 1
    written(folder, noise=2.0)
    bad = night(folder)
    assert bad.returncode == 1, bad.stdout + bad.stderr
    assert "REGRESSED" in bad.stdout
    assert len(nights(folder).folders) == 3


def test_a_killed_night_goes_on_where_it_stopped_and_says_the_same(folder: Path) -> None:
    night(folder)
    pinned(folder)
    whole = night(folder)
    expected = decided(folder)
    child = subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "nightly", "tiny.yaml", "--policy", "policy.yaml"],
        cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    until = time.monotonic() + 60
    while time.monotonic() < until and not _has_a_record(nights(folder), count=3):
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    killed = nights(folder).folders[-1]
    assert read(killed).ended_at is None
    again = night(folder)
    assert nights(folder).folders[-1] == killed
    assert (again.returncode, decided(folder).verdict) == (whole.returncode, expected.verdict)
    assert _numbers(decided(folder)) == _numbers(expected)


def _has_a_record(found: Nights, *, count: int) -> bool:
    folders = found.folders
    return len(folders) == count and any(folders[-1].glob("*/attempt-0001/record.json"))


def _numbers(decision: Decision) -> list[tuple[object, ...]]:
    return [
        (one.place.task, one.verdict, one.p_accept, one.p_breach, one.counts, one.retention)
        for one in decision.findings
    ]


def test_two_nights_at_once_are_refused(folder: Path) -> None:
    with nights(folder).locked():
        second = night(folder)
    assert second.returncode == 2
    assert "another night is running" in second.stderr
    assert f"process {os.getpid()}" in second.stderr


def test_a_suite_stops_at_the_first_look_that_decides(folder: Path) -> None:
    written(folder, looks=4)
    night(folder)
    pinned(folder)
    parts = {record.cell.suite.evaluations[0].args["part"][0] for record in Store(nights(folder).folders[0]).records}
    assert parts == {1, 2, 3, 4}  # without a baseline there is nothing to stop for
    good = night(folder)
    assert good.returncode == 0, good.stdout + good.stderr
    tonight = Store(nights(folder).folders[-1]).records
    (finding, _) = [one for one in decided(folder).findings if "blurred" in one.place.label]
    assert finding.looks == 4
    asked = [record for record in tonight if record.cell.pipeline.name == "blurred"]
    assert len(asked) == finding.look < 4


def test_a_part_asks_what_can_be_cut_and_the_first_also_what_cannot() -> None:
    with_load = Suite(
        name="s", version="1", evaluations=(Use(use="probes.load"), Use(use="tasks.lm_eval", args={"task": "x"}))
    )
    first, second = (part_of(with_load, look, 2) for look in (1, 2))
    assert [use.use for use in first.evaluations] == ["probes.load", "tasks.lm_eval"]
    assert [use.args for use in second.evaluations] == [{"task": "x", "part": [2, 2]}]


def test_old_nights_keep_their_records_and_lose_their_rows(tmp_path: Path) -> None:
    found = Nights(tmp_path)
    for day in range(3):
        attempt = tmp_path / f"2026-01-0{day + 1}" / "cell" / "attempt-0001"
        attempt.mkdir(parents=True)
        launch = attempt.parent.parent / "by-turns" / "cell" / "attempt-0001"
        launch.mkdir(parents=True)
        for name in ("record.json", "observations.parquet", "log.txt"):
            (attempt / name).write_text("{}")
            (launch / name).write_text("{}")
        began = f"2026-01-0{day + 1}T22:00:00+00:00"
        write(attempt.parent.parent, Night(began_at=began, ended_at=began, exit_code=0))
    found.thin_out(keep=2)
    for where in ("*", "by-turns/*"):
        left = [sorted(file.name for file in night.glob(f"{where}/attempt-0001/*")) for night in found.folders]
        assert left[0] == ["record.json"]
        assert left[1] == left[2] == ["log.txt", "observations.parquet", "record.json"]


def test_a_night_that_was_killed_long_ago_is_not_gone_on_with(tmp_path: Path) -> None:
    old = tmp_path / "2020-01-01"
    old.mkdir()
    write(old, Night(began_at="2020-01-01T22:00:00+00:00"))
    assert Nights(tmp_path).begin() != old


@pytest.mark.parametrize(("hours", "same"), [(12.0, True), (23.999, False)])
def test_the_next_night_at_the_same_hour_is_never_the_killed_one(tmp_path: Path, hours: float, same: bool) -> None:
    killed = tmp_path / "earlier"
    killed.mkdir()
    write(killed, Night(began_at=(datetime.now(UTC) - timedelta(hours=hours)).isoformat()))
    assert (Nights(tmp_path).begin() == killed) is same


def test_a_disk_that_refuses_a_night_is_a_mistake_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--results"), Nights(tmp_path / "file" / "nights").locked():
        pass


def test_a_cell_that_failed_outside_the_policy_is_in_the_decision_with_the_exit_code(folder: Path) -> None:
    night(folder)
    pinned(folder)
    night(folder)
    good, failed = decided(folder), Store(nights(folder).folders[-1]).records[:1]
    broken = [failed[0].model_copy(update={"outcome": Outcome.FAILED})]
    found = answered(good, answer(good, broken), broken)
    assert (good.exit_code, found.exit_code) == (0, 4)
    assert str(broken[0].cell) in found.warnings[-1]
    assert answered(good, 0, []) == good


@pytest.mark.slow
def test_changed_artifacts_are_timed_by_turns_and_unchanged_ones_are_not(folder: Path) -> None:
    probe = "{use: probes.speed, args: {prompt_tokens: [8], decode_tokens: 4, repeats: 2, warmup_s: 0.0}}"
    (folder / "s.yaml").write_text(f"name: s\nversion: 1\nevaluations: [{probe}]\n")
    limits = "[{metric: decode_tps, margin: 0.9}]"
    (folder / "policy.yaml").write_text(f"name: test\nsuites: [{{suite: s, kind: speed, limits: {limits}}}]\n")
    night(folder)
    pinned(folder)
    same = night(folder)
    assert same.returncode == 2, same.stdout + same.stderr  # nothing was judged: the policy asks for speed alone
    written_matrix = (folder / "tiny.yaml").read_text()
    (folder / "tiny.yaml").write_text(written_matrix.replace("noise: 0.001", "noise: 0.5"))
    other = night(folder)
    assert other.returncode in (0, 1), other.stdout + other.stderr
    by_label = {one.place.label.split(" / ")[1]: one for one in decided(folder).findings}
    assert "very bytes" in by_label["reference"].reason
    timed = by_label["blurred"]
    assert timed.counts is not None
    assert timed.counts.n == 5  # blocks
    assert timed.ratio is not None
    assert timed.ratio.value is not None
    launches = list((nights(folder).folders[-1] / "by-turns").glob("*/attempt-*/record.json"))
    assert len(launches) >= 20  # five blocks of four, and those that were run again
