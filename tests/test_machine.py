"""The fingerprint: cheap, stable where it must be, and honest about what it cannot read."""

import json
import subprocess
import sys

from harness import machine


def test_a_fingerprint_is_plain_json():
    facts = machine.fingerprint()
    assert json.loads(json.dumps(facts)) == facts


def test_hard_facts_stay_the_same_from_one_moment_to_the_next():
    assert machine.differences(machine.fingerprint(), machine.fingerprint()) == []


def test_a_hard_fact_that_differs_is_named_with_both_values():
    ours = {"hard": {"cpu_model": "A", "memory_gib": 8.0}, "soft": {"load_average": [1.0]}}
    theirs = {"hard": {"cpu_model": "B", "memory_gib": 8.0}, "soft": {"load_average": [9.0]}}
    assert machine.differences(ours, theirs) == ["cpu_model: 'A' and 'B'"]


def test_a_hard_fact_that_only_one_side_knows_differs():
    assert machine.differences({"hard": {"cpu_model": "A"}}, {"hard": {}}) == ["cpu_model: 'A' and None"]


def test_hard_facts_say_what_the_processor_and_the_interpreter_are():
    hard = machine.fingerprint()["hard"]
    assert isinstance(hard, dict)
    assert hard["python"] == sys.version.split()[0]
    assert {"cpu_threads", "architecture", "os", "kernel", "accelerators"} <= hard.keys()


def test_nothing_unknown_is_stored_as_a_sentinel():
    facts = machine.fingerprint()
    values = [value for part in facts.values() if isinstance(part, dict) for value in part.values()]
    assert all(value not in (None, "", -1) for value in values)


def test_versions_are_read_without_importing_the_libraries():
    code = (
        "import sys; from harness import machine; facts = machine.fingerprint();"
        "assert 'numpy' in facts['libraries'];"
        "assert not {'torch', 'transformers', 'llama_cpp', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_first_processor_of_many_is_read(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("model name\t: X\nflags\t\t: fpu avx2\n\nmodel name\t: Y\nflags\t\t: fpu\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine.platform, "system", lambda: "Linux")
    facts = machine._cpu()
    assert facts["cpu_model"] == "X"
    assert facts["cpu_flags"] == ["avx2"]


def test_steal_time_is_the_eighth_number_of_the_first_line():
    # proc(5): user nice system idle iowait irq softirq steal guest guest_nice
    assert machine._steal_ticks("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 0 0 0 0 0 0 0 0 0 0") == 8
    assert machine._steal_ticks(None) is None


def test_a_tool_that_is_absent_or_fails_gives_no_fact():
    assert machine._command("no-such-program-anywhere") is None
    assert machine._command("false") is None


def test_gpus_are_read_from_the_tool_that_comes_with_the_driver(monkeypatch):
    printed = "NVIDIA H200, 570.1, 143771, 31, 345, 1980, 700.00, 0, 4"
    monkeypatch.setattr(machine, "_command", lambda *words: printed if words[0] == "nvidia-smi" else None)
    gpus = machine._gpus()
    assert machine._fixed(gpus) == {"accelerators": ["NVIDIA H200, 570.1, 143771"]}
    assert machine._moving(gpus)["accelerators"] == [
        {
            "temperature.gpu": "31",
            "clocks.sm": "345",
            "clocks.max.sm": "1980",
            "power.limit": "700.00",
            "utilization.gpu": "0",
            "memory.used": "4",
        }
    ]
