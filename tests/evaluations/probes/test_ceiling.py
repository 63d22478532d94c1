"""Ceilings: plausible on any machine, and bounds whose arithmetic can be checked by hand."""

import pytest

from harness.evaluations.probes import ceiling
from harness.spec import Hardware


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(ceiling, "WORKING_SET_BYTES", 2**24)
    monkeypatch.setattr(ceiling, "SIDE", 128)
    monkeypatch.setattr(ceiling, "REPEATS", 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_processor_moves_and_multiplies(threads: int):
    found = ceiling.measure(Hardware(threads=threads))
    assert found is not None
    # Between a slow board and anything sold today.
    assert 1e8 < found.bandwidth_bytes_per_s < 1e14
    assert 1e7 < found.matmul_flops < 1e16
    assert f"{threads} threads" in found.method


def test_torch_measures_the_same_things():
    pytest.importorskip("torch")
    found = ceiling.torch_ceiling("cpu")
    assert 1e8 < found.bandwidth_bytes_per_s < 1e14
    assert 1e7 < found.matmul_flops < 1e16


def test_every_byte_is_worked_on_once_whatever_the_number_of_threads():
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    source = np.arange(1001, dtype=np.float32)
    target = np.zeros_like(source)
    with ThreadPoolExecutor(3) as pool:
        ceiling._in_parts(pool, 3, np.copyto, target, source)
    np.testing.assert_array_equal(source, target)


def test_decoding_is_bounded_by_reading_the_weights_once_a_step():
    # 10 GB/s over 100 MB of weights is 100 steps a second; each gives one token to each of four requests.
    assert ceiling.decode_roofline_tps(10e9, weights_bytes=100e6, batch=4) == pytest.approx(400)
