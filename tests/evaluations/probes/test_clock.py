"""Arithmetic on synthetic stamps, in units that can be checked by hand."""

import pytest

from harness.errors import Unsupported
from harness.evaluations.probes.clock import Arrivals, collect, is_stable, timing
from harness.interfaces import GenerateRequest, Token

MS = 1_000_000


def arrivals(*stamps: tuple[int, float]) -> Arrivals:
    return Arrivals(1_000 * MS, tuple((owner, int((1_000 + ms) * MS)) for owner, ms in stamps), cpu_s=0.0)


def test_one_request_is_split_at_its_first_token():
    # 100 ms to the first token; four more in the next 80 ms: 20 ms each, 50 tokens/s. 64 / 0.1 s = 640 tokens/s.
    found = timing(arrivals((0, 100), (0, 120), (0, 140), (0, 160), (0, 180)), prompt_tokens=64)
    assert found.ttft_s == pytest.approx(0.1)
    assert found.tpot_s == pytest.approx(0.02)
    assert found.prefill_tps == pytest.approx(640)
    assert found.decode_tps == pytest.approx(50)
    assert found.wall_s == pytest.approx(0.18)
    assert found.together


def test_a_batch_in_step_gives_a_token_a_request_in_every_step():
    # First tokens at 100 and 101 ms, then steps at 121 and 141 ms: 4 tokens in the 40 ms after 101 ms = 100 tokens/s.
    found = timing(arrivals((0, 100), (1, 101), (0, 121), (1, 121), (0, 141), (1, 141)), prompt_tokens=32)
    assert found.decode_tps == pytest.approx(4 / 0.040)
    assert found.prefill_tps == pytest.approx(2 * 32 / 0.101)
    assert found.ttft_s == pytest.approx(0.1005)
    # Request 0: (141 - 100) / 2 = 20.5 ms; request 1: (141 - 101) / 2 = 20 ms.
    assert found.tpot_s == pytest.approx(0.02025)
    assert found.together


def test_a_batch_that_ran_one_after_another_has_no_throughput_of_a_batch():
    found = timing(arrivals((0, 100), (0, 120), (1, 220), (1, 240)), prompt_tokens=32)
    assert not found.together
    assert found.prefill_tps is None
    assert found.decode_tps is None
    assert found.tpot_s == pytest.approx(0.02)


def test_one_token_each_has_no_time_per_output_token():
    found = timing(arrivals((0, 100)), prompt_tokens=10)
    assert found.tpot_s is None
    assert found.decode_tps is None
    assert found.prefill_tps == pytest.approx(100)


def test_warm_up_is_over_when_three_runs_agree_within_three_percent():
    assert is_stable([9.0, 1.00, 1.02, 1.03])
    assert not is_stable([1.00, 1.02, 1.04])
    assert not is_stable([1.0, 1.0])


def test_a_runtime_that_stops_early_is_refused():
    class Short:
        def generate(self, requests):
            yield Token(0, 5, "eos", "")

    with pytest.raises(Unsupported, match="gave 1 tokens where exactly 3"):
        collect(Short(), [GenerateRequest([1], 3, ignore_eos=True)])
