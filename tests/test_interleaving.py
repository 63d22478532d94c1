"""Two artifacts launched by turns: in which order, what is kept, and what happens to nights that are killed."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from harness import testing
from harness.display import Plain
from harness.executors.local import Local
from harness.interfaces import Progress
from harness.interleaving import Arm, Interleaved, Pinned, Schedule, interleave
from harness.job import Answer, BuildJob, MeasureJob
from harness.record import Outcome, Record
from harness.series import disturbances
from harness.spec import Hardware, Use
from harness.statistics.launches import log_ratio, noise_sd
from harness.worker import _Building, _Measuring, guarded
from tests.paced import POINTS
from tests.world import PLAIN, World, blur, matrix

ROOT = Path(__file__).parent.parent
DECODE = ("paced", "decode", "decode_tps")


@pytest.fixture(autouse=True)
def plugins(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The fakes and the paced probe, which children find in this checkout."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with testing.installed(tmp_path_factory.mktemp("plugins"), POINTS):
        yield


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Children's work done in this process, for the tests that ask what is launched and not how; gives what was."""
    jobs: list[str] = []

    class InThisProcess:
        def __init__(self, python: Path, timeout_s: float) -> None:
            pass

        def run(self, job: BuildJob | MeasureJob, *, progress: Progress) -> Answer:
            jobs.append(job.kind)
            return guarded(_Measuring(job, progress) if isinstance(job, MeasureJob) else _Building(job, progress))

    monkeypatch.setattr("harness.executors.local.Launcher", InThisProcess)
    return jobs


def arms(world: World, *, seconds: float = 0.0, stage: Use | None = None) -> tuple[Arm, Arm]:
    """The reference as the baseline, and a blurred candidate."""
    probe = Use(use="paced", args={"folder": str(world.folder), "seconds": seconds})
    plan = world.plan(matrix([stage or blur()], evaluations=[probe]))
    return Arm(plan, plan.items[0]), Arm(plan, plan.items[1])


def run(
    world: World, *, blocks: int = 2, schedule: Schedule | None = None, both: tuple[Arm, Arm] | None = None
) -> Interleaved:
    baseline, candidate = both or arms(world)
    given = schedule or Schedule("night", blocks=blocks)
    executor = Local(world.cache, world.store, Plain(Console(quiet=True)))
    return interleave(candidate, baseline=baseline, schedule=given, executor=executor)


def told(world: World) -> list[str]:
    """The sides in the order in which children really opened them."""
    file = world.folder / "launches.txt"
    return file.read_text().splitlines() if file.exists() else []


def marks(records: tuple[Record, ...]) -> list[tuple[int, int, int]]:
    found = [record.machine["interleaved"] for record in records]
    return [(mark["again"], mark["block"], mark["turn"]) for mark in found]


def rates(world: World, *values: float | str | None) -> None:
    (world.folder / "rates.json").write_text(json.dumps(values))


def test_sides_take_turns_and_every_launch_is_an_attempt_of_its_cell(world) -> None:
    found = run(world)
    assert "".join(side[0] for side in told(world)) == "bccb" + "cbbc"
    assert (found.reason, found.mismatches, found.speeds.notes) == ("", (), ())
    assert marks(found.records) == [(0, block, turn) for block in (0, 1) for turn in range(4)]
    assert len(list(world.store.root.glob("*/attempt-*/record.json"))) == 8
    assert all("hard" in record.machine for record in found.records), "what the machine was is still there"


@pytest.mark.usefixtures("quick")
def test_what_was_timed_comes_back_by_metric_with_one_value_a_repetition(world) -> None:
    found = run(world)
    assert set(found.speeds.launches) == {DECODE, ("paced", "decode", "open_s")}
    launches = found.speeds.launches[DECODE]
    assert [(launch.side, launch.block) for launch in launches[:4]] == [
        ("baseline", 0),
        ("candidate", 0),
        ("candidate", 0),
        ("baseline", 0),
    ]
    assert launches[0].values == pytest.approx((100.0, 100.1, 100.2))
    # A metric that no row has a column for is one value.
    assert found.speeds.launches["paced", "decode", "open_s"][0].values == (0.5,)
    assert log_ratio(launches).value == pytest.approx(0.9)


@pytest.mark.usefixtures("quick")
def test_a_series_that_is_complete_launches_nothing_and_another_name_begins_anew(world) -> None:
    first = run(world)
    assert run(world).speeds == first.speeds
    assert len(told(world)) == 8
    run(world, schedule=Schedule("next night", blocks=1))
    assert len(told(world)) == 12


@pytest.mark.usefixtures("quick")
def test_more_blocks_of_the_same_series_go_on_after_those_that_are_there(world) -> None:
    run(world, blocks=1)
    found = run(world, blocks=2)
    assert "".join(side[0] for side in told(world)) == "bccbcbbc"
    assert len(found.records) == 8


RUN = """
import sys
from pathlib import Path
from tests.test_interleaving import arms, run
from tests.world import World
world = World(Path(sys.argv[1]))
run(world, both=arms(world, seconds=0.3))
"""


def test_a_night_that_is_killed_again_and_again_ends_with_every_launch_once(world) -> None:
    kills, moments = 0, random.Random(3)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", RUN, world.folder], cwd=ROOT, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(1.0, 2.5))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    found = run(world, both=arms(world, seconds=0.3))
    assert kills >= 3
    assert marks(found.records) == [(0, block, turn) for block in (0, 1) for turn in range(4)]
    assert [launch.side[0] for launch in found.speeds.launches[DECODE]] == list("bccbcbbc")
    numbers = [record for record in all_records(world) if record.outcome.is_measured]
    assert len(numbers) == 8, "a launch that was stored is never launched again"
    assert not list(world.store.root.glob("*/*.partial"))


def all_records(world: World) -> list[Record]:
    return [world.store.read(folder) for folder in sorted(world.store.root.glob("*/attempt-*"))]


@pytest.mark.usefixtures("quick")
def test_other_attempts_of_the_same_cells_are_no_part_of_a_series(world) -> None:
    baseline, candidate = arms(world)
    list(Local(world.cache, world.store, Plain(Console(quiet=True))).map(baseline.plan))
    found = run(world, blocks=1, both=(baseline, candidate))
    assert len(all_records(world)) == 6
    assert len(found.records) == 4


@pytest.mark.usefixtures("quick")
def test_a_block_whose_launches_lie_apart_is_run_again_and_the_last_run_counts(world) -> None:
    # Block 2, launches 8 to 11: the baseline is at 100 and then at 50.
    rates(world, *[100.0] * 11, 50.0)
    found = run(world, schedule=Schedule("night", blocks=5))
    assert marks(found.records)[-4:] == [(1, 2, turn) for turn in range(4)]
    assert len(found.records) == 24
    assert found.speeds.notes == ("block 2: disturbed and run again, 2 runs in all; the last one counts",)
    assert len(found.speeds.launches[DECODE]) == 20
    assert log_ratio(found.speeds.launches[DECODE]).value == pytest.approx(0.9)


@pytest.mark.usefixtures("quick")
def test_a_block_that_stays_disturbed_counts_as_it_is_and_is_not_run_for_ever(world) -> None:
    rates(world, *[100.0] * 11, 50.0, *[100.0] * 8, *[100.0, 100.0, 100.0, 40.0])
    found = run(world, schedule=Schedule("night", blocks=5, reruns=1))
    assert len(found.records) == 24
    # Launch 23 was the baseline's second in the block's second run.
    assert [launch.values[0] for launch in found.speeds.launches[DECODE] if launch.block == 2][-1] == 40.0


@pytest.mark.usefixtures("quick")
def test_only_the_metrics_named_decide_that_a_block_was_disturbed(world) -> None:
    rates(world, *[100.0] * 11, 50.0)
    assert len(run(world, schedule=Schedule("night", blocks=5, metrics=("prefill_*",))).records) == 20


@pytest.mark.usefixtures("quick")
def test_a_launch_that_fails_is_tried_again_and_kept_out_of_the_numbers(world) -> None:
    rates(world, 100.0, None)
    found = run(world, blocks=1)
    assert [record.outcome for record in all_records(world)].count(Outcome.FAILED) == 1
    assert marks(found.records) == [(0, 0, turn) for turn in range(4)]


@pytest.mark.usefixtures("quick")
def test_a_side_that_keeps_failing_ends_the_series_with_the_reason_and_without_speeds(world) -> None:
    rates(world, 100.0, None, None)
    found = run(world, blocks=1)
    assert found.reason == "the candidate failed in block 0: RuntimeError: asked to fail"
    assert found.speeds.launches == {}
    assert len(found.records) == 1
    # The next night goes on with the launch that failed.
    assert len(run(world, blocks=1).records) == 4


@pytest.mark.usefixtures("quick")
def test_a_metric_that_one_launch_did_not_time_is_left_out_and_said(world) -> None:
    rates(world, 100.0, "gap")
    found = run(world, blocks=1)
    assert found.speeds.launches == {}
    assert any("not every launch timed it" in note for note in found.speeds.notes)


@pytest.mark.usefixtures("quick")
def test_a_build_that_fails_ends_the_series_before_anything_is_launched(world) -> None:
    found = run(world, both=arms(world, stage=blur(fail="raise")))
    assert found.reason == "the candidate cannot be built: RuntimeError: asked to fail"
    assert told(world) == []


def test_everything_is_built_before_the_first_launch(world, quick) -> None:
    run(world, blocks=1)
    # The reference is fetched for one side; the other fetches it no more and applies its one stage.
    assert quick == ["build", "build", "measure", "measure", "measure", "measure"]


def pinned(world: World, arm: Arm) -> Pinned:
    """Builds an arm and gives what a baseline would have pinned."""
    list(Local(world.cache, world.store, Plain(Console(quiet=True))).map(replace(arm.plan, items=(arm.item,))))
    artifact = world.cache.get(arm.item.artifact)
    return Pinned(arm.item.artifact, artifact.digest)


@pytest.mark.usefixtures("quick")
def test_a_pinned_artifact_is_launched_though_the_plan_now_makes_another(world) -> None:
    _, old = arms(world, stage=blur(2.0))
    pin = pinned(world, old)
    (world.folder / "launches.txt").unlink()
    baseline, candidate = arms(world)
    found = run(world, blocks=1, both=(replace(baseline, pinned=pin), candidate))
    assert {record.artifact.digest for record in found.records} == {
        pin.digest,
        world.cache.get(candidate.item.artifact).digest,
    }
    assert {record.artifacts["model"] for record in found.records} == {pin.key, candidate.item.artifact}


@pytest.mark.usefixtures("quick")
def test_a_pinned_artifact_that_is_gone_is_built_again_and_launched_when_its_bytes_are_the_same(world) -> None:
    baseline, candidate = arms(world)
    pin = pinned(world, baseline)
    shutil.rmtree(world.cache.root)
    found = run(world, blocks=1, both=(replace(baseline, pinned=pin), candidate))
    assert (found.mismatches, len(found.records)) == ((), 4)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("there", [True, False])
def test_other_bytes_than_those_pinned_are_a_hard_mismatch_and_nothing_is_launched(world, there) -> None:
    baseline, candidate = arms(world)
    key, right = pinned(world, baseline).key, world.cache.get(baseline.item.artifact).digest
    if not there:
        shutil.rmtree(world.cache.root)
    (world.folder / "launches.txt").unlink()
    found = run(world, both=(replace(baseline, pinned=Pinned(key, "f" * 16)), candidate))
    (mismatch,) = found.mismatches
    assert (mismatch.field, mismatch.hard, mismatch.baseline, mismatch.candidate) == ("artifact", True, "f" * 16, right)
    assert mismatch.remedy
    assert (found.speeds.launches, told(world)) == ({}, [])


def damage(world: World, key: str) -> None:
    """Changes one byte of an artifact in the cache."""
    table = world.cache.folder(key) / "files" / "table.npy"
    data = bytearray(table.read_bytes())
    data[-1] ^= 0xFF
    table.write_bytes(data)


@pytest.mark.usefixtures("quick")
def test_an_artifact_that_is_damaged_during_a_series_is_built_again_to_the_same_bytes(world) -> None:
    both = arms(world)
    first = run(world, blocks=1, both=both)
    damage(world, both[0].item.artifact)
    found = run(world, blocks=2, both=both)
    assert (found.reason, found.mismatches, len(found.records)) == ("", (), 8)
    assert {record.artifact.digest for record in found.records} == {record.artifact.digest for record in first.records}


@pytest.mark.usefixtures("quick")
def test_a_damaged_artifact_that_no_plan_makes_is_never_replaced_by_another(world) -> None:
    _, old = arms(world, stage=blur(2.0))
    pin = pinned(world, old)
    damage(world, pin.key)
    (world.folder / "launches.txt").unlink()
    baseline, candidate = arms(world)
    found = run(world, blocks=1, both=(replace(baseline, pinned=pin), candidate))
    assert "the baseline failed in block 0" in found.reason
    assert (found.speeds.launches, told(world)) == ({}, [])


@pytest.mark.usefixtures("quick")
def test_cells_of_other_suites_or_devices_are_not_interleaved(world) -> None:
    baseline, _ = arms(world)
    other = matrix([blur()], evaluations=[PLAIN]).model_copy(update={"hardware": (Hardware(threads=2),)})
    candidate = world.plan(other).items[1]
    found = run(world, both=(baseline, Arm(baseline.plan, candidate)))
    assert [one.field for one in found.mismatches] == ["suite.evaluations", "cell.hardware"]
    assert all(one.hard for one in found.mismatches)
    assert told(world) == []


@pytest.mark.usefixtures("quick")
def test_a_series_that_began_on_another_machine_is_a_mismatch_and_what_was_launched_there_does_not_count(world) -> None:
    run(world, blocks=1)
    file = next(iter(sorted(world.store.root.glob("*--reference--*/attempt-0001/record.json"))))
    plain = json.loads(file.read_text())
    plain["machine"]["hard"]["cpu_model"] = "another"
    file.write_text(json.dumps(plain))
    found = run(world, blocks=2)
    assert [one.field for one in found.mismatches] == ["machine"]
    assert "another" in found.mismatches[0].candidate


@pytest.mark.usefixtures("quick")
def test_a_plan_that_refused_a_side_is_a_reason(world) -> None:
    baseline, candidate = arms(world)
    refused = replace(candidate.item, status="refused", artifact=None, reason="no such device")
    assert "no such device" in run(world, both=(baseline, replace(candidate, item=refused))).reason


@pytest.mark.usefixtures("quick")
def test_an_artifact_against_itself_gives_the_noise_of_the_machine(world) -> None:
    rates(world, 100.0, 110.0, 110.0, 100.0, 100.0, 110.0, 110.0, 100.0)
    baseline, _ = arms(world)
    found = run(world, both=(baseline, baseline))
    assert told(world) == ["baseline"] * 8
    noise = {metric: noise_sd(launches) for (_, _, metric), launches in found.speeds.launches.items()}
    # The candidate's turns are faster in block 0 and slower in block 1: ± ln 1.1, whose deviation is √2 ln 1.1.
    assert noise["decode_tps"] == pytest.approx(2**0.5 * 0.0953102, rel=1e-5)
    assert noise["open_s"] == 0


@pytest.mark.parametrize(("blocks", "reruns"), [(0, 1), (1, -1)])
def test_a_schedule_without_blocks_is_refused(blocks, reruns) -> None:
    with pytest.raises(ValueError, match="at least 1 block"):
        Schedule("night", blocks=blocks, reruns=reruns)


def soft(**facts: object) -> dict:
    return {"soft": {"usable_cpus": 2, **facts}}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        # 100 ticks are 1 s of 2 processors' 20 s: 5 %.
        ({"steal_ticks": 1000}, {"steal_ticks": 1100}, "5% of the time"),
        ({"steal_ticks": 1000}, {"steal_ticks": 1020}, ""),
        ({"throttle_count": 3}, {"throttle_count": 4}, "throttled"),
        ({"throttle_count": 3}, {"throttle_count": 3}, ""),
        ({}, {"steal_ticks": 10_000}, ""),
    ],
)
def test_stolen_time_and_throttling_disturb_a_launch(world, before, after, expected) -> None:
    cell = arms(world)[0].item.cell
    record = Record(
        cell=cell, outcome=Outcome.OK, machine=soft(**before), machine_after=soft(**after), seconds={"total": 10.0}
    )
    found = list(disturbances(record))
    assert len(found) == (1 if expected else 0)
    assert expected in "".join(found)
