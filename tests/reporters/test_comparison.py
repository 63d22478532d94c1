import pytest

from harness.record import Outcome
from harness.reporters.summary import summarize
from harness.spec import Hardware, Model, Suite, Use
from tests.reporters.world import (
    LLAMA_CPP,
    REFERENCE,
    TRANSFORMERS,
    FakeResults,
    answers,
    artifact,
    cell,
    identity,
    metric,
    record,
)


def entry(results, label, runtime="transformers"):
    return next(e for e in summarize(results).entries if e.row.label == label and e.row.runtime == runtime)


def two(ours, theirs, *, runtime=TRANSFORMERS, **values):
    """A reference on transformers and one compressed model, with one task."""
    results = FakeResults()
    results.add(record(cell("reference"), theirs), theirs)
    results.add(record(cell("q4", runtime), ours), ours)
    return results


def test_retention_pairs_items_by_name_and_not_by_place():
    # The candidate's rows come in reverse; right on items 0-5 of 8 where the reference is right on 0-6: nothing gained.
    theirs = answers("arc", [1, 1, 1, 1, 1, 1, 1, 0])
    ours = list(reversed(answers("arc", [1, 1, 1, 1, 1, 1, 0, 0])))
    found = entry(two(ours, theirs), "q4").comparison
    assert found.of(("tasks.lm_eval", "arc")).pairs.counts == (6, 0, 1, 1)
    assert found.retention.value == pytest.approx(6 / 7)


def test_items_missing_on_a_side_are_counted_and_left_out():
    theirs = answers("arc", [1, 1, 0, 1, 0, 1])
    # Items 1, 2 and 3 were answered by both; 0, 4 and 5 by the reference only; 7 by the candidate only.
    ours = [*answers("arc", [1, 1, 0, 1])[1:], answers("arc", [0] * 8)[7]]
    found = entry(two(ours, theirs), "q4").comparison.of(("tasks.lm_eval", "arc"))
    assert (found.n, found.missing, found.extra, found.unlike) == (3, 3, 1, 0)
    assert found.retention.value == 1


def test_an_item_asked_with_another_prompt_is_not_the_same_item():
    theirs = answers("arc", [1, 1, 0, 1], prompt_hash="a")
    ours = answers("arc", [1, 0], prompt_hash="a") + answers("arc", [1, 1, 1, 1], prompt_hash="b")[2:]
    found = entry(two(ours, theirs), "q4").comparison
    assert found.of(("tasks.lm_eval", "arc")).unlike == 2
    assert found.is_partial
    assert found.retention.n == 2


def test_a_task_that_only_the_reference_answered_is_named():
    theirs = answers("arc", [1, 1, 0]) + answers("piqa", [1, 0, 1])
    found = entry(two(answers("arc", [1, 0, 0]), theirs), "q4").comparison
    assert found.absent == (("tasks.lm_eval", "piqa"),)
    assert found.is_partial


def test_the_reference_on_the_same_runtime_comes_first_and_another_is_said_to_be():
    results = FakeResults()
    results.add(record(cell("reference"), a := answers("arc", [1, 1, 1, 0])), a)
    results.add(record(cell("reference", LLAMA_CPP), b := answers("arc", [1, 1, 0, 0])), b)
    results.add(record(cell("q4", LLAMA_CPP), c := answers("arc", [1, 0, 0, 0])), c)
    results.add(record(cell("q4", Use(use="vllm")), c), c)
    near, far = entry(results, "q4", "llama_cpp").comparison, entry(results, "q4", "vllm").comparison
    assert near.same_place
    assert near.retention.value == pytest.approx(1 / 2)
    assert not far.same_place
    assert far.reference.runtime == "llama_cpp"


def test_a_reference_that_failed_is_not_compared_with():
    results = FakeResults()
    results.add(record(cell("reference"), a := answers("arc", [1, 1, 1, 0])), a)
    results.add(record(cell("reference", LLAMA_CPP), outcome=Outcome.FAILED))
    results.add(record(cell("q4", LLAMA_CPP), c := answers("arc", [1, 0, 0, 0])), c)
    assert entry(results, "q4", "llama_cpp").comparison.reference.runtime == "transformers"


def test_another_familys_reference_is_no_reference():
    results = FakeResults()
    results.add(record(cell("reference"), a := answers("arc", [1, 1])), a)
    other = Model(family="other", source="path:/other")
    results.add(record(cell("q4", model=other), a), a)
    assert entry(results, "q4").comparison is None


def test_accuracy_and_speed_of_two_suites_meet_in_one_row():
    results, fast = FakeResults(), Suite(name="speed", version="1", evaluations=(Use(use="probes.speed"),))
    results.add(record(cell("q4"), a := answers("arc", [1, 1])), a)
    results.add(record(cell("q4", suite=fast), metrics=[metric("decode_tps", 10, "probes.speed", "decode 8x1")]), [])
    (found,) = summarize(results).entries
    assert found.row.first("decode_tps", evaluation="probes.speed").value == 10
    assert found.row.accuracy(("tasks.lm_eval", "arc")) == 1


def test_a_task_in_two_suites_counts_once_and_from_the_same_suite_for_all_rows():
    results, other = FakeResults(), Suite(name="zzz", version="1", evaluations=(Use(use="x"),))
    for name, scores in (("reference", [1, 1, 1, 0]), ("q4", [1, 1, 0, 0])):
        results.add(record(cell(name), a := answers("arc", scores)), a)
    results.add(record(cell("q4", suite=other), b := answers("arc", [0] * 9)), b)
    found = entry(results, "q4").comparison
    assert found.retention.value == pytest.approx(2 / 3)
    assert found.of(("tasks.lm_eval", "arc")).extra == 0


def test_another_family_may_have_its_answers_from_another_suite():
    results, other = FakeResults(), Suite(name="zzz", version="1", evaluations=(Use(use="x"),))
    for name in ("reference", "q4"):
        results.add(record(cell(name), a := answers("arc", [1, 0])), a)
    alone = cell("reference", suite=other, model=Model(family="a-family", source="path:/a"))
    results.add(record(alone, b := answers("arc", [1, 1])), b)
    assert [e.row.accuracy(("tasks.lm_eval", "arc")) for e in summarize(results).entries] == [1, 0.5, 0.5]


def test_rows_go_by_family_then_reference_then_falling_bits_and_unmeasured_ones_last():
    results = FakeResults()
    for name, bits in (("q4", 4.5), ("reference", 16.0), ("q8", 8.5)):
        results.add(record(cell(name), identity=identity(bits)))
    results.add(record(cell("q9"), outcome=Outcome.TIMEOUT, identity=None))
    results.add(record(cell("reference", model=Model(family="a-family", source="path:/a"))))
    assert [e.row.label for e in summarize(results).entries] == ["reference", "reference", "q8", "q4", "q9"]
    assert summarize(results).entries[0].row.family == "a-family"


def test_a_variant_of_the_family_is_named_by_its_model():
    results, small = FakeResults(), Model(family=REFERENCE.family, source="hub:org/small", role="variant")
    results.add(record(cell("reference")))
    results.add(record(cell("reference", model=small)))
    results.add(record(cell("q4", model=small), identity=identity(4)))
    assert [e.row.label for e in summarize(results).entries] == ["reference", "small", "small + q4"]


def test_an_emulated_rows_bits_and_size_are_what_packing_would_give():
    facts = artifact(emulated=True, nominal_bytes=134_515_008 // 2)
    results = FakeResults()
    results.add(record(cell("rtn4"), artifact=facts, outcome=Outcome.EMULATED))
    (found,) = summarize(results).entries
    assert found.row.bits_per_weight == 4
    assert found.row.size_bytes == 134_515_008 // 2


def test_time_to_deploy_is_every_step_but_the_fetch():
    results = FakeResults()
    results.add(record(cell("q4"), artifact=artifact([("convert.gguf", 6.0), ("quantize.gguf", 4.5)])))
    (found,) = summarize(results).entries
    assert found.row.deploy_s == pytest.approx(10.5)


def timed(name, decode, runtime=TRANSFORMERS, spread=0.0, **changed):
    hardware = changed.pop("hardware", Hardware(name="cpu", threads=2))
    metrics = [metric("decode_tps", value, "probes.speed", task, spread=spread) for task, value in decode.items()]
    return record(cell(name, runtime, hardware=hardware), metrics=metrics, **changed)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"machine": {"hard": {"cpu_model": "another"}}}, "another machine"),
        ({"machine": {}}, "another machine"),
        ({"hardware": Hardware(name="cpu", threads=4)}, "no speed of the reference"),
        ({"outcome": Outcome.EMULATED}, "emulated"),
    ],
)
def test_speeds_of_unlike_places_are_not_divided(changed, reason):
    results = FakeResults()
    results.add(timed("reference", {"decode 128x1": 10}))
    results.add(timed("q4", {"decode 128x1": 25}, **changed))
    found = entry(results, "q4").decode
    assert found.value is None
    assert reason in found.reason


def test_a_speedup_over_shapes_is_their_geometric_mean():
    results = FakeResults()
    results.add(timed("reference", {"decode 128x1": 10, "decode 1024x1": 5}))
    results.add(timed("q4", {"decode 128x1": 40, "decode 1024x1": 5, "decode 9x9": 1}))
    found = entry(results, "q4").decode
    assert found.value == pytest.approx(2)  # sqrt(4 * 1)
    assert found.shapes == 2
    assert found.interval is None


def test_a_speedups_interval_divides_the_far_ends():
    results = FakeResults()
    results.add(timed("reference", {"decode 128x1": 10}, spread=0.1))  # 9 to 11
    results.add(timed("q4", {"decode 128x1": 20}, spread=0.05))  # 19 to 21
    found = entry(results, "q4").decode
    assert found.interval.low == pytest.approx(19 / 11)
    assert found.interval.high == pytest.approx(21 / 9)


def test_shapes_go_by_their_numbers():
    results = FakeResults()
    results.add(timed("q4", {"decode 1024x1": 5, "decode 128x1": 40}))
    (found,) = summarize(results).entries
    assert [m.task for m in found.row.named("decode_tps", evaluation="probes.speed")] == [
        "decode 128x1",
        "decode 1024x1",
    ]


def test_the_order_of_records_and_rows_changes_nothing():
    def made(turn):
        results, both = FakeResults(), {"reference": [1, 1, 1, 0], "q4": [1, 0, 1, 0], "q8": [1, 1, 0, 1]}
        for name, scores in list(both.items())[::turn]:
            rows = answers("arc", scores)[::turn]
            results.add(record(cell(name), rows), rows)
        return [(e.row.label, e.retention) for e in summarize(results).entries]

    assert made(1) == made(-1)
