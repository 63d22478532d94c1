"""The noise floor: what changes between runs of a model that did not change, counted by hand."""

import json
import math
import statistics

import pytest

from harness.gate.measured import key_of
from harness.gate.noise import NoiseFloor, comparable, excess_flips, noise_floor
from harness.gate.verdict import Place
from harness.record import Metric, Outcome, Record
from harness.spec import Model, Suite, Use
from harness.statistics.intervals import wilson_interval
from tests.reporters.world import LLAMA_CPP, TRANSFORMERS, FakeResults, answers, cell

PLACE = Place(label="", candidate="", baseline="", suite="quickstart", evaluation="tasks.lm_eval", task="arc_easy")
HALVED = Use(use="transformers", args={"max_batch_tokens": 2048})


def suite(order: int = 0, **args: object) -> Suite:
    given = {"task": "arc_easy", **args, **({"order_seed": order} if order else {})}
    return Suite(name="quickstart", version="1", evaluations=(Use(use="tasks.lm_eval", args=given),))


def run(results: FakeResults, scores: str, *, runtime: Use = TRANSFORMERS, name: str = "reference", **changed) -> None:
    """Adds a record whose answers are right where the text has a 1."""
    made = cell(name, runtime, **{"suite": suite(), **changed})
    results.add(Record(cell=made, outcome=Outcome.OK), answers("arc_easy", [float(one) for one in scores]))


def test_flips_are_counted_over_all_pairs_of_runs_that_differ_in_nothing_a_model_should_notice() -> None:
    results = FakeResults()
    run(results, "1111100000")
    run(results, "1111000000", suite=suite(1))
    run(results, "1111100001", runtime=HALVED)
    (found,) = noise_floor(results).answers
    # First and second: item 4. First and third: item 9. Second and third: both.
    assert (found.runs, found.n, found.compared, found.flips) == (3, 10, 30, 4)
    assert found.flip_rate.value == pytest.approx(4 / 30)
    # 10 * 4 / 30 is 1 item in 10, nearly; thirty pairs of ten items are not thirty draws.
    assert found.flip_rate.interval == wilson_interval(1, 10)
    # The scores are .5, .4 and .6.
    assert found.max_abs_difference == pytest.approx(0.2)
    assert (found.runtime, found.against) == ("transformers", "")
    assert found.runtimes == ("transformers", "transformers(max_batch_tokens=2048)")


def test_what_two_runtimes_make_of_a_model_is_kept_apart_from_what_one_does() -> None:
    results = FakeResults()
    run(results, "1100")
    run(results, "1100", suite=suite(1))
    run(results, "1001", runtime=LLAMA_CPP)
    found = {(one.runtime, one.against): one for one in noise_floor(results).answers}
    assert set(found) == {("transformers", ""), ("llama_cpp", "transformers")}
    assert found["transformers", ""].flips == 0
    # Two pairs of runs, items 1 and 3 in each.
    assert (found["llama_cpp", "transformers"].flips, found["llama_cpp", "transformers"].compared) == (4, 8)


def test_other_arithmetic_is_another_runtime_and_other_batches_are_not() -> None:
    precise = Use(use="transformers", args={"dtype": "float32", "max_batch_tokens": 512})
    assert comparable(precise) == Use(use="transformers", args={"dtype": "float32"})
    assert comparable(Use(use="llama_cpp", args={"sequences": 4, "batch_tokens": 64})) == LLAMA_CPP


def test_the_parts_of_a_run_are_one_run() -> None:
    results = FakeResults()
    for order in (0, 1):
        for number, scores in ((1, "11"), (2, "1" + str(order))):
            made = cell("reference", suite=suite(order, part=[number, 2]))
            rows = [
                row.model_copy(update={"sample": f"part {number} item {row.sample}"})
                for row in answers("arc_easy", [float(one) for one in scores])
            ]
            results.add(Record(cell=made, outcome=Outcome.OK), rows)
    (found,) = noise_floor(results).answers
    assert (found.runs, found.n, found.compared, found.flips) == (2, 4, 4, 1)


def test_only_references_that_were_measured_count() -> None:
    results = FakeResults()
    run(results, "1111")
    run(results, "0000", name="Q4")
    run(results, "0000", model=Model(family="smollm2-135m", source="path:/other", role="variant"))
    failed = cell("reference", suite=suite(1))
    results.add(Record(cell=failed, outcome=Outcome.FAILED), answers("arc_easy", [0.0] * 4))
    assert noise_floor(results) == NoiseFloor()


def test_items_asked_with_other_prompts_are_not_compared() -> None:
    results = FakeResults()
    for order, prompt in ((0, "a"), (1, "b")):
        made = cell("reference", suite=suite(order))
        results.add(Record(cell=made, outcome=Outcome.OK), answers("arc_easy", [1.0, 0.0], prompt_hash=prompt))
    assert noise_floor(results).answers == ()


def test_scores_that_are_no_decisions_have_an_envelope_and_no_flips() -> None:
    results = FakeResults()
    run(results, "11")
    made = cell("reference", suite=suite(1))
    results.add(Record(cell=made, outcome=Outcome.OK), answers("arc_easy", [0.5, 0.75]))
    (found,) = noise_floor(results).answers
    assert (found.flips, found.flip_rate) == (None, None)
    # 1 - (0.5 + 0.75) / 2
    assert found.max_abs_difference == pytest.approx(0.375)
    assert excess_flips(found, won=1, lost=0, n=2) is None


def test_the_floor_is_found_for_the_cells_of_a_family_on_a_runtime_and_taken_off_what_flipped() -> None:
    results = FakeResults()
    run(results, "1111100000")
    run(results, "1111000000", runtime=HALVED)
    floor = noise_floor(results)
    variant = Model(family="smollm2-135m", source="path:/other", role="variant")
    for candidate in (cell("Q4"), cell("Q4", HALVED), cell("none", model=variant)):
        # 3 + 4 of 20 flipped, and one in ten does by itself.
        found = floor.excess_flips(key_of(candidate), PLACE, won=3, lost=4, n=20)
        assert found == pytest.approx(7 / 20 - 1 / 10)
    for stranger in (cell("Q4", LLAMA_CPP), cell("Q4", model=Model(family="smollm2-135m-instruct", source="a:b"))):
        assert floor.excess_flips(key_of(stranger), PLACE, won=3, lost=4, n=20) is None
    assert floor.of(key_of(cell("Q4")), PLACE.model_copy(update={"task": "piqa"})) is None


def test_fewer_flips_than_noise_are_a_negative_excess() -> None:
    results = FakeResults()
    run(results, "1100")
    run(results, "1010", suite=suite(1))
    assert excess_flips(noise_floor(results).answers[0], won=0, lost=1, n=10) == pytest.approx(0.1 - 0.5)
    assert excess_flips(None, won=0, lost=1, n=10) is None


def metric(value: float, *, unit: str = "tokens/s", name: str = "decode_tps") -> Metric:
    parts = {"evaluation": "probes.speed", "task": "decode", "higher_is_better": True, "n": 5}
    return Metric(name=name, unit=unit, value=value, **parts)


def test_the_noise_of_speed_is_the_spread_of_log_ratios_between_launches() -> None:
    results, values = FakeResults(), [100.0, 110.0, 95.0]
    for seed, value in enumerate(values):
        told = (metric(value), metric(1e9, unit="bytes", name="size"))
        results.add(Record(cell=cell("reference", suite=suite(), seed=seed), outcome=Outcome.OK, metrics=told))
    results.add(Record(cell=cell("reference", HALVED), outcome=Outcome.OK, metrics=(metric(50.0),)))
    (found,) = noise_floor(results).speeds
    # Two independent launches of variance s² differ by 2 s²; a block of two launches a side by s².
    spread = statistics.stdev(map(math.log, values))
    assert found.sd_log_ratio == pytest.approx(math.sqrt(2) * spread)
    assert found.block_sd == pytest.approx(spread)
    assert (found.launches, found.blocks, found.metric) == (3, 3, "decode_tps")
    place = Place(**{**PLACE.model_dump(), "evaluation": "probes.speed", "task": "decode", "metric": "decode_tps"})
    assert noise_floor(results).speed(key_of(cell("Q4")), place) == found


def test_one_launch_tells_nothing_of_noise() -> None:
    results = FakeResults()
    results.add(Record(cell=cell("reference"), outcome=Outcome.OK, metrics=(metric(100.0),)))
    assert noise_floor(results).speeds == ()


def test_a_floor_is_read_back_as_it_was_written() -> None:
    results = FakeResults()
    run(results, "1100")
    run(results, "1010", suite=suite(1))
    floor = noise_floor(results)
    assert NoiseFloor.model_validate(json.loads(floor.model_dump_json())) == floor
