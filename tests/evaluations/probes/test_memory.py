"""Memory from kernel marks: a transient that no sampler would see, bounds by hand, and the fallback elsewhere."""

import mmap
import sys
import time

import pytest

from harness.evaluations.probes import device_memory, process_memory
from harness.evaluations.probes.memory import MemoryProbe
from harness.evaluations.probes.process_memory import Resident, read, reset_peak, split
from harness.testing import check_plugin, check_summary
from tests.evaluations.probes.paced import Paced, context

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="the split needs Linux's counters")


def test_the_memory_probe_is_a_proper_plugin():
    check_plugin("evaluations", MemoryProbe)


class Hungry(Paced):
    """Takes and frees 64 MiB within one step; mapped, since malloc may have as much left over from tests before."""

    def generate(self, requests):
        with mmap.mmap(-1, 64 * MIB) as block:
            for page in range(0, 64 * MIB, mmap.PAGESIZE):
                block[page] = 1
        yield from super().generate(requests)


@linux
def test_a_transient_is_caught_however_short_it_was(tmp_path):
    reset_peak()
    base = read()
    probe = MemoryProbe(prompt_tokens=8, decode_tokens=2)
    metrics = {
        m.name: m for m in probe.summarize(list(probe.observe(Hungry(), context=context(tmp_path)))) if m.task != "load"
    }
    assert base.own_bytes is not None
    assert metrics["peak_bytes"].value >= 64 * MIB
    anon = metrics["peak_anon_bytes"]
    # What the process had, and 64 MiB more; the counters are exact to some tens of pages a core.
    assert anon.value == pytest.approx(base.own_bytes + 64 * MIB, abs=8 * MIB)
    assert anon.interval is not None
    assert anon.interval.low <= anon.value == anon.interval.high
    assert anon.interval.high - anon.interval.low < 4 * MIB


@linux
def test_mapped_files_count_as_file_and_not_as_allocated(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"\1" * (48 * MIB))
    before = read()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == 48 * MIB // mmap.PAGESIZE
        after = read()
    assert before.file_bytes is not None
    assert after.file_bytes is not None
    assert after.file_bytes - before.file_bytes == pytest.approx(48 * MIB, abs=4 * MIB)


def test_bounds_of_the_allocated_part_follow_from_the_mark_and_the_mapped_part():
    # Mark 1000; 300 mapped at first and 400 at last: the allocated part peaked between 600 and 700.
    found = split(Resident(0, "", 300, 100), Resident(1000, "", 400, 150), was_reset=True)
    assert (found.peak_bytes, found.file_bytes, found.own) == (1000, 400, (600, 700))


def test_what_is_allocated_at_the_end_is_a_lower_bound_too():
    found = split(Resident(0, "", 100, 0), Resident(1000, "", 800, 550), was_reset=True)
    assert found.own == (550, 900)


def test_evicted_pages_void_the_bounds():
    found = split(Resident(0, "", 500, 100), Resident(1000, "", 400, 150), was_reset=True)
    assert (found.file_bytes, found.own) == (500, None)


def test_a_mark_that_was_not_reset_voids_the_bounds():
    assert split(Resident(0, "", 300, 100), Resident(1000, "", 400, 150), was_reset=False).own is None


def test_elsewhere_the_sum_alone_is_given_with_its_source(tmp_path, monkeypatch):
    monkeypatch.setattr(process_memory, "STATUS", tmp_path / "absent")
    monkeypatch.setattr(process_memory, "CLEAR_REFS", tmp_path / "absent" / "absent")
    probe = MemoryProbe(prompt_tokens=8, decode_tokens=2)
    metrics = probe.summarize(list(probe.observe(Paced(), context=context(tmp_path))))
    assert {metric.name for metric in metrics} == {"peak_bytes"}
    assert all("source: getrusage ru_maxrss" in metric.caveats for metric in metrics)
    assert all(metric.value > MIB for metric in metrics)


def test_the_order_of_rows_changes_no_metric(tmp_path):
    probe = MemoryProbe(prompt_tokens=8, decode_tokens=2)
    rows = list(probe.observe(Paced(), context=context(tmp_path)))
    check_summary([probe.summarize(rows), probe.summarize(rows[::-1])])


def test_a_processor_has_no_device_memory():
    with device_memory.watch("cpu") as peaks:
        pass
    assert peaks == {}


def test_a_sampled_peak_includes_what_was_there_before_and_after():
    numbers = iter([5, *[9] * 10_000])
    with device_memory.sampled(lambda: next(numbers), period_s=0.001) as seen:
        time.sleep(0.02)
    assert seen[0] == 5
    assert max(seen) == 9


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"decode_tokens": 0}, {"batch": 0}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="allowed"):
        MemoryProbe(**wrong)
