"""Every field that must agree is looked at, named when it does not, and may be allowed to differ."""

from __future__ import annotations

import pytest

from harness.gate.preflight import machine_mismatches, preflight
from harness.gate.verdict import Mismatch
from harness.spec import Hardware, Model, Use
from tests.gate.worlds import policy, side, sided
from tests.reporters.world import HARD, answers, identity

SAME = {"t": [1.0] * 20}


def found(candidate, baseline, **rules: object) -> dict[str, Mismatch]:
    return {one.field: one for one in preflight(candidate, baseline, policy(**rules))}


def with_identity(**changes: object):
    return side(SAME, changes={"identity": identity(4).model_copy(update=changes)})


def test_equal_sides_differ_in_nothing():
    assert found(side(SAME), side(SAME)) == {}


@pytest.mark.parametrize("field", ["tokenizer_hash", "chat_template_hash", "runtime_version"])
def test_what_was_loaded_must_agree(field):
    one = found(with_identity(**{field: "new"}), with_identity(**{field: "old"}))[field]
    assert (one.baseline, one.candidate, one.hard) == ("old", "new", True)
    assert one.remedy


def test_another_kernel_is_told_and_forbids_nothing():
    assert not found(with_identity(kernel="new"), with_identity(kernel="old"))["kernel"].hard


def test_a_policy_may_allow_a_field_to_differ_and_it_is_still_told():
    sides = with_identity(runtime_version="2"), with_identity(runtime_version="1")
    assert not found(*sides, allow_different=("runtime_*",))["runtime_version"].hard


@pytest.mark.parametrize(("library", "hard"), [("lm-eval", True), ("torch", False)])
def test_the_library_that_scores_must_agree_and_others_are_told(library, hard):
    ours, theirs = (
        side(SAME, changes={"machine": {"hard": HARD, "libraries": {library: version}}}) for version in ("2", "1")
    )
    assert found(ours, theirs)[f"libraries.{library}"].hard is hard


def test_another_model_another_runtime_and_other_questions_are_named():
    model = Model(family="smollm2-135m", source="hub:other/model")
    assert found(side(SAME, model=model), side(SAME))["cell.model"].hard
    assert "cell.model" not in found(side(SAME, model=model), side(SAME), against="reference")
    assert not found(side(SAME, hardware=Hardware(name="cpu", threads=1)), side(SAME))["cell.hardware"].hard


def test_another_runtime_is_another_comparison():
    from tests.gate.worlds import measured as grouped
    from tests.reporters.world import FakeResults, cell, record

    results = FakeResults()
    rows = answers("t", [1.0] * 20)
    results.add(record(cell("q4", Use(use="llama_cpp"), stages=(Use(use="quantize.q4"),)), rows), rows)
    (other,) = grouped(results)
    assert found(other, side(SAME))["cell.runtime"].hard


def test_items_with_other_content_or_other_prompts_are_counted():
    ours = sided(answers("t", [1.0] * 20, item_hash="new", prompt_hash="p"))
    theirs = sided(answers("t", [1.0] * 20, item_hash="old", prompt_hash="p"))
    assert "20 items of t" in found(ours, theirs)["item_hash"].baseline
    prompts = sided(answers("t", [1.0] * 20, item_hash="old", prompt_hash="q"))
    assert "20 items of t" in found(prompts, theirs)["prompt_hash"].baseline


def test_items_that_the_baseline_never_had_are_another_item_set():
    assert "has 5 more" in found(side({"t": [1.0] * 25}), side(SAME))["items"].candidate


def flagged(share: int, field: str):
    rows = answers("t", [1.0] * 100)
    told = [row.model_copy(update={"values": {**row.values, field: index < share}}) for index, row in enumerate(rows)]
    return sided(told)


@pytest.mark.parametrize(("field", "hard"), [("truncated", True), ("unparsed", False)])
def test_answers_that_are_cut_or_unreadable_more_often_are_told(field, hard):
    one = found(flagged(7, field), flagged(4, field))[f"{field}_share"]
    assert (one.baseline, one.candidate, one.hard) == ("4.0% of t", "7.0% of t", hard)
    # Two points more are allowed by default.
    assert found(flagged(6, field), flagged(4, field)) == {}


def test_times_of_another_machine_or_other_threads_are_not_compared():
    other = side(SAME, changes={"machine": {"hard": {**HARD, "cpu_model": "Another"}}})
    (one,) = machine_mismatches(other, side(SAME), policy())
    assert (one.field, one.hard) == ("machine.cpu_model", True)
    slower = side(SAME, hardware=Hardware(name="cpu", device="cpu", threads=1))
    assert "cell.hardware" in {found.field for found in machine_mismatches(slower, side(SAME), policy())}
    assert machine_mismatches(side(SAME), side(SAME), policy()) == ()
