"""Whatever happens to a child or to a disk, the run goes on, nothing is lost, and the record says what happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import testing
from harness.errors import StoreError
from harness.record import Outcome
from harness.spec import Model, Use
from harness.store import Store
from tests.world import PLAIN, World, blur, matrix

pytestmark = pytest.mark.usefixtures("fakes")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def broken(phase: str, fail: str, **limits: float):
    """A matrix whose second pipeline breaks in a phase; the reference and a last pipeline are healthy."""
    if phase == "fetch":
        return matrix([blur()], model=Model(family="fake", source="fake:table", args={"fail": fail}), **limits)
    if phase == "build":
        return matrix([blur(fail=fail)], [blur(2.0)], **limits)
    if phase == "open":
        return matrix([blur()], runtime=Use(use="fake", args={"fail": fail}), **limits)
    return matrix([blur()], evaluations=[PLAIN, Use(use="fake.greedy", args={"fail": fail})], **limits)


@pytest.mark.parametrize("phase", ["fetch", "build", "open", "observe"])
@pytest.mark.parametrize(
    ("fail", "outcome", "reason"),
    [
        ("kill", Outcome.FAILED, "killed by SIGKILL"),
        ("memory", Outcome.OUT_OF_MEMORY, "asked to run out of memory"),
        ("exit", Outcome.FAILED, "exit code 3"),
        ("raise", Outcome.FAILED, "asked to fail"),
    ],
)
def test_a_child_that_breaks_leaves_a_record_with_a_reason_and_advice(world, phase, fail, outcome, reason) -> None:
    records = world.run(broken(phase, fail))
    bad = [record for record in records if not record.outcome.is_measured]
    assert {record.outcome for record in bad} == {outcome}
    assert all(reason in record.error.reason and record.error.advice for record in bad)
    # Only where the whole model or runtime is broken can nothing be measured.
    expected = {"fetch": 0, "build": 2, "open": 0, "observe": 0}[phase]
    assert len(records) - len(bad) == expected
    assert len(world.store.records) == len(records)


def test_a_cell_that_hangs_is_ended_at_its_timeout_and_the_run_goes_on(world) -> None:
    records = world.run(broken("build", "hang", timeout_s=3))
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.TIMEOUT, Outcome.OK]


def test_a_child_over_its_memory_limit_is_recorded_as_out_of_memory(world) -> None:
    records = world.run(broken("build", "hoard", memory_gib=1.0))
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.OUT_OF_MEMORY, Outcome.OK]


def test_the_rows_seen_before_a_crash_are_kept(world) -> None:
    record = world.run(broken("observe", "kill"))[0]
    assert len(world.store.observations(record)) == PLAIN.args["items"] + 100 // 2


def test_a_model_that_answers_nan_fails_with_a_sentence_about_it(world) -> None:
    record = world.run(matrix(runtime=Use(use="fake", args={"fail": "nan"})))[0]
    assert (record.outcome, "not finite" in record.error.reason) == (Outcome.FAILED, True)


def test_an_evaluation_that_cannot_be_answered_is_a_gap_and_the_others_are_measured(world) -> None:
    record = world.run(broken("observe", "unsupported"))[0]
    assert record.outcome is Outcome.OK
    assert [gap.reason for gap in record.gaps] == ["asked to be unsupported"]
    assert record.metrics


def test_a_plugin_that_cannot_be_imported_in_the_child_fails_its_cells_only(world, tmp_path) -> None:
    (tmp_path / "brittle.py").write_text(
        "import os\nfrom harness.testing import FakeBlur\n"
        "if 'HARNESS_PROGRESS_FD' in os.environ: raise ImportError('no libfoo')\n"
    )
    points = testing.ENTRY_POINTS.replace("[harness.runtimes]", "brittle = brittle:FakeBlur\n[harness.runtimes]")
    with testing.installed(tmp_path, points):
        records = world.run(matrix([Use(use="brittle")]))
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.FAILED]
    assert "no libfoo" in records[1].error.reason


def test_a_failed_cell_is_tried_again_and_the_failure_is_kept(world) -> None:
    failing = matrix([blur(fail="raise")])
    first, again = world.run(failing), world.run(failing)
    assert [record.outcome for record in first] == [Outcome.OK, Outcome.FAILED]
    assert [record.outcome for record in again] == [Outcome.FAILED]
    attempts = sorted(path.name for path in world.store.root.glob("*--p1--*/attempt-*"))
    assert attempts == ["attempt-0001", "attempt-0002"]


def test_a_build_that_fails_is_tried_once_a_run_whatever_stands_on_it(world) -> None:
    records = world.run(matrix([blur(fail="raise")], [blur(fail="raise"), blur(2.0)]))
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.FAILED, Outcome.FAILED]
    logs = [path.read_text() for path in sorted(world.store.root.glob("*/attempt-0001/log.txt"))]
    assert sum("asked to fail" in log for log in logs) == 1


def test_an_artifact_whose_bytes_changed_is_noticed_and_built_again(world) -> None:
    truth = world.run(matrix([blur()]))
    shutil.rmtree(world.store.root)
    for table in world.cache.root.glob("artifacts/*/files/table.npy"):
        data = bytearray(table.read_bytes())
        data[-1] ^= 0xFF
        table.write_bytes(data)
    again = world.run(matrix([blur()]))
    assert [record.metrics for record in again] == [record.metrics for record in truth]
    assert all(record.outcome is Outcome.OK for record in again)


def test_an_artifact_that_was_cut_short_is_built_again(world) -> None:
    world.run(matrix())
    shutil.rmtree(world.store.root)
    table = next(world.cache.root.glob("artifacts/*/files/table.npy"))
    table.write_bytes(table.read_bytes()[:100])
    assert world.run(matrix())[0].outcome is Outcome.OK


@pytest.mark.parametrize(
    "text", ['{"schema_version": 1, "cell"', "", "{}", '{"schema_version": 99}', '{"schema_version": 0}']
)
def test_a_truncated_or_foreign_record_is_refused_by_name_with_a_remedy(world, text) -> None:
    world.run(matrix())
    file = next(world.store.root.glob("*/attempt-0001/record.json"))
    file.write_text(text)
    with pytest.raises(StoreError) as caught:
        _ = world.store.records
    assert str(file) in str(caught.value)
    assert "remedy:" in str(caught.value)


def test_damaged_rows_are_refused_by_name(world) -> None:
    record = world.run(matrix())[0]
    file = next(world.store.root.glob("*/attempt-0001/observations.parquet"))
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(StoreError, match=r"observations\.parquet"):
        world.store.observations(record)


def test_a_store_that_cannot_be_written_is_one_clear_error(world) -> None:
    world.folder.joinpath("results").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="cannot be written"):
        world.run(matrix())


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
@pytest.mark.parametrize("options", ["size=64k", "ro"])
def test_a_full_or_read_only_disk_is_one_clear_error_and_loses_nothing(world, options) -> None:
    world.store.root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", world.store.root], check=False)
    if mounted.returncode != 0:
        pytest.skip("this sandbox does not let us mount")
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            world.run(matrix(*([blur(float(n))] for n in range(1, 30))))
        kept = list(world.store.root.glob("*/attempt-*[0-9]/record.json"))
        assert all(json.loads(file.read_text())["outcome"] == "ok" for file in kept)
    finally:
        subprocess.run(["umount", "-l", world.store.root], check=True)


RUN = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests in the background has it ignored
from harness.matrix import Matrix
from tests.world import World
World(Path(sys.argv[1])).run(Matrix.model_validate_json(Path(sys.argv[2]).read_text()))
"""


def start(world: World, file: Path) -> subprocess.Popen[bytes]:
    root = Path(__file__).parent.parent
    return subprocess.Popen([sys.executable, "-c", RUN, world.folder, file], cwd=root, stderr=subprocess.DEVNULL)


def test_killing_the_run_ten_times_and_resuming_gives_the_same_results_as_one_uninterrupted_run(tmp_path) -> None:
    slow = Use(use="fake.greedy", args={"items": 30, "seconds": 0.1})
    pipelines = [[blur(float(n), seconds=0.1)] for n in range(1, 5)]
    given = matrix(*pipelines, [blur(1.0, seconds=0.1), blur(2.0, teacher=True)], evaluations=[slow])
    whole, torn = World(tmp_path / "whole"), World(tmp_path / "torn")
    for world in (whole, torn):
        world.folder.mkdir()
    whole.run(given)
    file = tmp_path / "matrix.json"
    file.write_text(given.model_dump_json())
    kills, moments = 0, random.Random(7)
    for _ in range(10):
        process = start(torn, file)
        # Starting the interpreter takes about half a second, a cell with its build about as long again.
        time.sleep(moments.uniform(0.45, 1.1))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    torn.run(given)
    assert kills >= 5
    expected = {record.cell.id: record for record in whole.store.records}
    found = {record.cell.id: record for record in torn.store.records}
    assert expected.keys() == found.keys()
    for key, record in expected.items():
        assert found[key].metrics == record.metrics
        assert found[key].artifact.digest == record.artifact.digest
        assert torn.store.observations(found[key]) == whole.store.observations(record)
    left = [path for path in torn.folder.rglob("*.partial") if "locks" not in path.parts]
    assert left == []


def test_a_polite_stop_records_the_running_cell_and_ends_its_child(tmp_path) -> None:
    given = matrix(evaluations=[Use(use="fake.greedy", args={"items": 10, "seconds": 30.0})])
    file = tmp_path / "matrix.json"
    file.write_text(given.model_dump_json())
    process = start(World(tmp_path), file)
    store = Store(tmp_path / "results")
    until = time.monotonic() + 20
    while not list(store.root.glob("*/attempt-*.partial/observations.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(timeout=20)
    record = store.records[0]
    assert (record.outcome, record.error.reason) == (Outcome.FAILED, "interrupted")
    running = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert running.stdout == ""


@pytest.mark.parametrize(("left", "outcome"), [((), None), (("cell.json",), "failed"), (("record.json",), "ok")])
def test_an_attempt_that_a_killed_harness_left_is_recovered_wherever_it_was_killed(world, left, outcome) -> None:
    world.run(matrix())
    whole = next(world.store.root.glob("*/attempt-0001"))
    record = world.store.read(whole)
    files = {"record.json": (whole / "record.json").read_text(), "cell.json": record.cell.model_dump_json()}
    shutil.rmtree(whole)
    partial = whole.with_name("attempt-0001.partial")
    partial.mkdir()
    for name in left:
        (partial / name).write_text(files[name])
    recovered = world.store.recover()
    assert [str(one.outcome) for one in recovered] == ([outcome] if outcome else [])
    assert not partial.exists()


def test_an_attempt_that_another_harness_is_running_is_left_alone_and_not_run_twice(world) -> None:
    cell = next(matrix().cells())
    with world.store.attempt(cell) as folder:
        assert world.store.recover() == []
        assert folder.exists()
        with pytest.raises(StoreError, match="another harness"):
            world.run(matrix())


def test_a_child_that_closes_its_pipe_and_hangs_is_still_ended_at_its_timeout(world, tmp_path) -> None:
    (tmp_path / "mute.py").write_text(
        "import os, time\nfrom harness.testing import FakeBlur\n"
        "if 'HARNESS_PROGRESS_FD' in os.environ:\n"
        "    os.close(int(os.environ['HARNESS_PROGRESS_FD']))\n    time.sleep(600)\n"
    )
    points = testing.ENTRY_POINTS.replace("[harness.runtimes]", "mute = mute:FakeBlur\n[harness.runtimes]")
    with testing.installed(tmp_path, points):
        records = world.run(matrix([Use(use="mute")], timeout_s=3))
    assert [record.outcome for record in records] == [Outcome.OK, Outcome.TIMEOUT]
