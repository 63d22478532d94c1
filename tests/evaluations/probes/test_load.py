"""The load probe repeats what was loaded, and divides once."""

import pytest

from harness.evaluations.probes.load import LoadProbe
from tests.evaluations.probes.paced import Paced, context


def test_size_and_time_are_those_of_what_was_loaded(tmp_path):
    probe = LoadProbe()
    metrics = probe.summarize(list(probe.observe(Paced(), context=context(tmp_path, load_s=1.25))))
    found = {metric.name: metric.value for metric in metrics}
    assert found == {
        "load_warm_s": 1.25,
        "weights_disk_bytes": 1100,
        "weights_mem_bytes": 1000,
        "parameters": 2000,
        # 8 * 1000 bytes over 2000 weights.
        "bits_per_weight": pytest.approx(4.0),
    }


def test_the_state_of_the_page_cache_is_said_beside_the_load_time(tmp_path):
    probe = LoadProbe()
    metrics = probe.summarize(list(probe.observe(Paced(), context=context(tmp_path))))
    load = next(metric for metric in metrics if metric.name == "load_warm_s")
    assert any("page cache" in caveat for caveat in load.caveats)
    assert load.interval is None
