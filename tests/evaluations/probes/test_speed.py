"""The speed probe against a session of known pace, and its summary against hand-made rows."""

import pytest

from harness.errors import Unsupported
from harness.evaluations.probes import ceiling, clock
from harness.evaluations.probes.ceiling import Ceiling
from harness.evaluations.probes.speed import SpeedProbe
from harness.evaluations.probes.speed_summary import INVALID, SERIAL
from harness.record import Observation
from harness.testing import check_plugin, check_summary
from tests.evaluations.probes.paced import END, PREFIX, Paced, context

BANDWIDTH, FLOPS = 1e6, 1e7


@pytest.fixture(autouse=True)
def known_ceiling(monkeypatch):
    found = Ceiling(bandwidth_bytes_per_s=BANDWIDTH, matmul_flops=FLOPS, method="made up")
    monkeypatch.setattr(ceiling, "measure", lambda hardware: found)


def by_name(metrics) -> dict[tuple[str, str], float]:
    return {(metric.task, metric.name): metric.value for metric in metrics}


def test_the_speed_probe_is_a_proper_plugin():
    check_plugin("evaluations", SpeedProbe)


class Timepiece:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.ns = 0

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * 1e9)

    def perf_counter_ns(self) -> int:
        return self.ns

    process_time_ns = perf_counter_ns


def test_a_session_of_known_pace_has_exactly_that_speed(tmp_path, monkeypatch):
    # 64 tokens a prompt in 50 ms, then a step each 20 ms: 1280 and 50 tokens/s a request.
    timepiece = Timepiece()
    monkeypatch.setattr(clock, "time", timepiece)
    session = Paced(0.05, 0.02, sleep=timepiece.sleep)
    probe = SpeedProbe(prompt_tokens=[64], decode_tokens=5, batch=[1, 2], repeats=5, warmup_s=0.0)
    found = by_name(probe.summarize(list(probe.observe(session, context=context(tmp_path)))))
    for batch in (1, 2):
        assert found[f"prefill 64x{batch}", "ttft_s"] == pytest.approx(0.05)
        assert found[f"prefill 64x{batch}", "prefill_tps"] == pytest.approx(batch * 1280)
        assert found[f"decode 64+5x{batch}", "tpot_s"] == pytest.approx(0.02)
        assert found[f"decode 64+5x{batch}", "decode_tps"] == pytest.approx(batch * 50)


def test_a_session_that_sleeps_is_never_faster_than_it_sleeps(tmp_path):
    probe = SpeedProbe(prompt_tokens=[64], decode_tokens=5, batch=[2], repeats=3, warmup_s=0.0)
    found = by_name(probe.summarize(list(probe.observe(Paced(0.05, 0.02), context=context(tmp_path)))))
    assert found["prefill 64x2", "ttft_s"] >= 0.05
    assert found["decode 64+5x2", "tpot_s"] >= 0.02
    assert found["prefill 64x2", "prefill_tps"] <= 2 * 64 / 0.05
    assert found["decode 64+5x2", "decode_tps"] <= 2 / 0.02


def test_warm_up_ends_when_times_agree_and_not_before(tmp_path, monkeypatch):
    # Prefill takes 8, 4, 2, 1, 1, 1, ... seconds, so runs 4 to 6 are the first three that agree.
    timepiece, pace = Timepiece(), iter([8, 4, 2, *[1] * 100])
    monkeypatch.setattr(clock, "time", timepiece)
    session = Paced(1.0, 0.0, sleep=lambda seconds: timepiece.sleep(seconds * next(pace) if seconds else 0.0))
    probe = SpeedProbe(prompt_tokens=[8], decode_tokens=2, batch=[1], repeats=1, warmup_s=60.0)
    rows = [row for row in probe.observe(session, context=context(tmp_path)) if row.task.startswith("warm-up")]
    assert [row.values["wall_s"] for row in rows] == [8.0, 4.0, 2.0, 1.0, 1.0, 1.0]


def test_no_prompt_is_ever_read_twice(tmp_path):
    session = Paced()
    probe = SpeedProbe(prompt_tokens=[8, 16], decode_tokens=2, batch=[1, 3], repeats=4, warmup_s=0.01)
    list(probe.observe(session, context=context(tmp_path)))
    assert len(set(session.prompts)) == len(session.prompts)
    assert {len(prompt) for prompt in session.prompts} == {8, 16}
    assert not {END, PREFIX} & {token for prompt in session.prompts for token in prompt}


def test_two_cells_with_one_seed_read_the_same_measured_prompts(tmp_path):
    measured = []
    for warmup_s in (0.0, 0.05):
        session = Paced(step_s=0.005)
        probe = SpeedProbe(prompt_tokens=[8], decode_tokens=2, batch=[1], repeats=3, warmup_s=warmup_s)
        list(probe.observe(session, context=context(tmp_path, seed=5)))
        measured.append(session.prompts[-3:])
    assert measured[0] == measured[1]


def test_every_repetition_is_kept_as_a_row_and_the_warm_up_too(tmp_path):
    probe = SpeedProbe(prompt_tokens=[8], decode_tokens=3, batch=[2], repeats=4, warmup_s=0.0)
    rows = list(probe.observe(Paced(), context=context(tmp_path)))
    tasks = [row.task for row in rows]
    assert tasks.count("prefill 8x2") == tasks.count("decode 8+3x2") == 4
    assert tasks.count("warm-up 8+3x2") == 1
    assert tasks.count("ceiling") == 2
    row = next(row for row in rows if row.task == "decode 8+3x2")
    assert (row.values["prompt_tokens"], row.values["decode_tokens"], row.values["batch"]) == (8, 3, 2)


def test_shapes_take_turns_in_an_order_that_the_seed_decides(tmp_path):
    def order(seed: int) -> list[str]:
        probe = SpeedProbe(prompt_tokens=[4, 8], decode_tokens=2, batch=[1, 2], repeats=6, warmup_s=0.0)
        rows = probe.observe(Paced(), context=context(tmp_path, seed=seed))
        return [row.task for row in rows if row.task.startswith("prefill")]

    assert order(1) == order(1)
    assert order(1) != order(2)
    blocks = [order(1)[at : at + 4] for at in range(0, 24, 4)]
    assert all(len(set(block)) == 4 for block in blocks)
    assert len({tuple(block) for block in blocks}) > 1


def rows_of(task: str, name: str, values: list[float | None], **more) -> list[Observation]:
    return [
        Observation(evaluation="probes.speed", task=task, sample=f"{i}", values={"batch": 2, name: value, **more})
        for i, value in enumerate(values)
    ]


def ceilings() -> list[Observation]:
    weights = {"weights_mem_bytes": 1000}
    return [
        Observation(
            evaluation="probes.speed",
            task="ceiling",
            sample=when,
            values={**weights, "bandwidth_bytes_per_s": BANDWIDTH * share, "matmul_flops": FLOPS * share},
        )
        for when, share in (("before", 0.5), ("after", 1.0))
    ]


def test_utilization_is_the_median_over_the_best_ceiling_seen():
    # Decode: 1e6 bytes/s over 1000 bytes a step, two tokens a step: 2000 tokens/s at most. 900 / 2000 = 0.45.
    rows = [*rows_of("decode 8+4x2", "decode_tps", [800.0, 900.0, 1500.0]), *ceilings()]
    found = by_name(SpeedProbe().summarize(rows))
    assert found["decode 8+4x2", "roofline_tps"] == pytest.approx(2000)
    assert found["decode 8+4x2", "mbu"] == pytest.approx(0.45)
    assert found["ceiling", "bandwidth_bytes_per_s"] == BANDWIDTH


@pytest.mark.parametrize(("tps", "invalid"), [(2030.0, False), (2050.0, True)])
def test_a_utilization_above_what_is_possible_is_called_invalid(tps: float, invalid: bool):
    metrics = SpeedProbe().summarize([*rows_of("decode 8+4x2", "decode_tps", [tps]), *ceilings()])
    mbu = next(metric for metric in metrics if metric.name == "mbu")
    assert (INVALID in mbu.caveats) is invalid


def test_without_a_ceiling_there_is_no_utilization():
    names = {metric.name for metric in SpeedProbe().summarize(rows_of("decode 8+4x2", "decode_tps", [900.0]))}
    assert names == {"decode_tps"}


def test_fewer_than_five_repetitions_have_no_interval():
    few, enough = (
        SpeedProbe().summarize(rows_of("decode 8+4x2", "tpot_s", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6][:n]))[0] for n in (4, 6)
    )
    assert few.interval is None
    assert any("no interval" in caveat for caveat in few.caveats)
    # Six values: the smallest and the largest miss the median with 2 / 2^6.
    assert enough.interval is not None
    assert (enough.interval.low, enough.interval.high, enough.interval.level) == (0.1, 0.6, 1 - 2 / 64)


def test_a_runtime_without_batches_gives_no_throughput_of_a_batch_and_says_why(tmp_path):
    probe = SpeedProbe(prompt_tokens=[8], decode_tokens=3, batch=[2], repeats=1, warmup_s=0.0)
    metrics = probe.summarize(list(probe.observe(Paced(0.001, 0.001, serial=True), context=context(tmp_path))))
    assert "decode_tps" not in {metric.name for metric in metrics}
    assert SERIAL in next(metric for metric in metrics if metric.name == "tpot_s").caveats


def test_the_order_of_rows_changes_no_metric(tmp_path):
    probe = SpeedProbe(prompt_tokens=[8], decode_tokens=3, batch=[1, 2], repeats=6, warmup_s=0.0)
    rows = list(probe.observe(Paced(), context=context(tmp_path)))
    check_summary([probe.summarize(rows), probe.summarize(rows[::-1])])


def test_a_shape_that_does_not_fit_is_refused_before_anything_runs(tmp_path):
    session = Paced(max_length=32)
    with pytest.raises(Unsupported, match="exceed the context of 32"):
        list(SpeedProbe(prompt_tokens=[8, 30]).observe(session, context=context(tmp_path)))
    assert not session.prompts


@pytest.mark.parametrize(
    "wrong", [{"prompt_tokens": []}, {"batch": [0]}, {"decode_tokens": 1}, {"repeats": 0}, {"warmup_s": -1.0}]
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="allowed"):
        SpeedProbe(**wrong)
