"""Footprints where the teacher was planted, so that what must be found is known."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from harness.errors import SourceError, Unsupported
from harness.evaluations.footprint.footprint import PROMPTS, Footprint
from harness.evaluations.footprint.summary import TEACHERS as OF_TEACHERS
from harness.record import Metric, Observation, Outcome, Record
from harness.reporters.comparison import compare
from harness.reporters.frame import rows as frame_rows
from harness.spec import Use
from harness.testing import check_plugin, check_summary
from tests.evaluations.footprint.planted import SAMPLES, SMALL, TEACHERS, World, Writer, written
from tests.reporters import world as reports

Z_SQUARED = 3.841458820694124  # the 95 % point of chi-squared with one degree of freedom, from any table
BY_ADA = Use(use="distill.logits", args={"tokens": 9, "teacher": {"source": "hub:x/ada"}})
EVALUATION = Footprint(teachers=TEACHERS, **SMALL)


def like(author: str) -> Writer:
    return Writer(lambda index, prompt: written(author, prompt))


def metrics(rows: list[Observation]) -> dict[str, Metric]:
    return {metric.name: metric for metric in EVALUATION.summarize(rows)}


def of_student(rows: list[Observation]) -> list[Observation]:
    return [row for row in rows if not row.task.startswith(OF_TEACHERS)]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """E. B. Wilson 1927: the roots of (successes / n - p)^2 = z^2 p (1 - p) / n, by the quadratic formula."""
    share = successes / n
    a, b, c = 1 + Z_SQUARED / n, -(2 * share + Z_SQUARED / n), share * share
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def test_footprint_is_a_proper_plugin():
    check_plugin("evaluations", Footprint)


def test_texts_in_a_teachers_own_words_are_put_down_to_it(tmp_path):
    found = metrics(World.made(tmp_path, "ada", "bob").observe(EVALUATION, like("ada"), BY_ADA))
    assert set(found) == {"accuracy", "share.ada", "share.bob", "separability"}
    assert found["accuracy"].value == found["share.ada"].value == found["separability"].value == 1.0
    assert found["share.bob"].value == 0.0
    assert {metric.chance for metric in found.values()} == {0.5}
    assert (found["accuracy"].n, found["separability"].n) == (SAMPLES, 2 * SAMPLES)
    # 20 of 20: the lower root is n / (n + z^2) = 20 / 23.8415.
    assert found["accuracy"].interval.low == pytest.approx(0.83887, abs=1e-5)
    assert found["accuracy"].interval.high == 1.0


def test_shares_and_accuracy_count_texts_and_carry_wilsons_interval(tmp_path):
    half = Writer(lambda index, prompt: written("ada" if index < 12 else "bob", prompt))
    found = metrics(World.made(tmp_path, "ada", "bob").observe(EVALUATION, half, BY_ADA))
    assert found["accuracy"].value == found["share.ada"].value == pytest.approx(12 / 20)
    assert found["share.bob"].value == pytest.approx(8 / 20)
    for name, count in (("accuracy", 12), ("share.ada", 12), ("share.bob", 8)):
        interval = found[name].interval
        assert (interval.low, interval.high) == pytest.approx(wilson(count, 20), abs=1e-9)


def test_a_third_teacher_makes_chance_a_third(tmp_path):
    evaluation = Footprint(teachers={**TEACHERS, "cyd": "reference"}, **SMALL)
    rows = World.made(tmp_path, "ada", "bob", "cyd").observe(evaluation, like("cyd"), Use(use="distill.logits"))
    found = {metric.name: metric for metric in evaluation.summarize(rows)}
    assert found["accuracy"].value == 1.0
    assert {metric.chance for metric in found.values()} == {1 / 3}


def test_without_a_known_teacher_there_are_shares_and_nothing_is_right_or_wrong(tmp_path):
    rows = World.made(tmp_path, "ada", "bob").observe(EVALUATION, like("bob"), Use(use="prune.depth"))
    assert set(metrics(rows)) == {"share.ada", "share.bob", "separability"}
    assert metrics(rows)["share.bob"].value == 1.0
    assert not any({"score", "chance", "truth"} & row.values.keys() for row in of_student(rows))


def test_every_text_of_the_student_is_a_row_that_can_be_judged_again(tmp_path):
    rows = of_student(World.made(tmp_path, "ada", "bob").observe(EVALUATION, like("bob"), BY_ADA))
    assert len({row.sample for row in rows}) == SAMPLES
    for row in rows:
        assert row.values["predicted"] == "bob"
        assert (row.values["truth"], row.values["score"], row.values["chance"]) == ("ada", 0.0, 0.5)
        assert row.values["characters"] == len(row.values["response"])
        assert row.values["p.ada"] + row.values["p.bob"] == pytest.approx(1)
        assert row.values["p.bob"] > 0.5


def test_the_order_of_rows_changes_no_metric(tmp_path):
    mixed = Writer(lambda index, prompt: written("ada" if index % 3 else "bob", prompt))
    rows = World.made(tmp_path, "ada", "bob").observe(EVALUATION, mixed, BY_ADA)
    shuffled = random.Random(0).sample(rows, len(rows))
    check_summary([EVALUATION.summarize(some) for some in (rows, rows[::-1], shuffled)])


def test_the_same_run_gives_the_same_rows_and_another_seed_asks_for_other_draws(tmp_path):
    world, students = World.made(tmp_path, "ada", "bob"), [like("ada") for _ in range(3)]
    seeds = (0, 0, 1)
    first, again, _ = (world.observe(EVALUATION, s, BY_ADA, seed=n) for s, n in zip(students, seeds, strict=True))
    assert first == again
    drawn = [[request.seed for request in student.asked] for student in students]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == SAMPLES
    assert not set(drawn[0]) & set(drawn[2])


def test_the_student_continues_heldout_beginnings_that_no_teacher_was_given(tmp_path):
    # Four held-out documents begin as the teachers' prompts do; only the twenty others are left to ask.
    world = World.made(tmp_path, "ada", "bob", more=[f"train page {n} begins otherwise" for n in range(4)])
    student = like("ada")
    world.observe(EVALUATION, student, BY_ADA)
    prompts = {"".join(map(chr, request.prompt[1:])) for request in student.asked}
    assert prompts == {f"heldout page {n}" for n in range(SAMPLES)}
    assert {(request.max_tokens, request.temperature) for request in student.asked} == {(16, 1.0)}


def test_too_few_beginnings_are_an_error_that_counts_them(tmp_path):
    with pytest.raises(SourceError, match="19 usable beginnings of 3 words and 20 are asked for"):
        World.made(tmp_path, "ada", "bob", heldout=SAMPLES - 1).observe(EVALUATION, like("ada"), BY_ADA)


def test_a_continuation_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    # "heldout page 10" is 15 characters, with its beginning token and 16 more that makes 32.
    world, student = World.made(tmp_path, "ada", "bob"), replace(like("ada"), max_length=31)
    with pytest.raises(Unsupported, match="are 32 tokens and this runtime's context holds 31"):
        world.observe(EVALUATION, student, BY_ADA)
    assert not student.asked
    assert world.observe(EVALUATION, replace(like("ada"), max_length=32), BY_ADA)


def test_reports_pair_a_student_with_its_quantized_self_and_leave_the_teachers_out(tmp_path):
    # Distilled: all 20 texts are ada's. Quantized: 5 of them turn into bob's, so retention is 15 / 20.
    world = World.made(tmp_path, "ada", "bob")
    blurred = Writer(lambda index, prompt: written("bob" if index < 5 else "ada", prompt))
    results, quantize = reports.FakeResults(), Use(use="quantize.rtn", args={"bits": 4})
    for name, student, stages in (("distilled", like("ada"), (BY_ADA,)), ("both", blurred, (BY_ADA, quantize))):
        rows = world.observe(EVALUATION, student, *stages)
        cell = reports.cell(name, stages=stages)
        results.add(Record(cell=cell, outcome=Outcome.OK, metrics=EVALUATION.summarize(rows)), rows)
    shown = {row.label: row for row in frame_rows(results)}
    assert set(shown["both"].items) == {("footprint", EVALUATION.task)}
    compared = compare(shown["both"], [shown["distilled"]])
    assert compared is not None
    assert compared.retention.value == pytest.approx(15 / 20)
    (task,) = compared.tasks
    assert (task.n, task.pairs.chance, task.missing, task.extra, task.unlike) == (20, 0.5, 0, 0, 0)
    # From chance: (15/20 - 1/2) / (20/20 - 1/2).
    assert task.corrected.value == pytest.approx(0.5)


def test_every_teacher_is_asked_alike_after_its_own_stages():
    teachers = {"ada": {"source": "hub:x/ada", "stages": [{"use": "prune.depth", "args": {"remove": 1}}]}, "us": {}}
    teachers["us"] = "reference"
    corpus, ada, us = Footprint(teachers=teachers, **SMALL, temperature=0.5).needs
    assert (corpus.name, corpus.source) == (PROMPTS, "path:/corpus")
    assert (ada.name, ada.source, us.name, us.source) == (
        "footprint of ada",
        "hub:x/ada",
        "footprint of us",
        "reference",
    )
    assert [use.use for use in ada.stages] == ["prune.depth", "capture.continuations"]
    (capture,) = us.stages
    assert ada.stages[-1] == capture
    assert capture.args.items() >= {"corpus": "path:/corpus", "samples": SAMPLES, "temperature": 0.5}.items()


@pytest.mark.parametrize(
    "other",
    [
        {"features": "characters"},
        {"temperature": 0.5},
        {"prompts": "path:/other"},
        {"teachers": {**TEACHERS, "bob": "reference"}},
    ],
)
def test_two_different_questions_in_one_suite_have_different_tasks(other):
    assert Footprint(**{"teachers": TEACHERS, **SMALL, **other}).task != EVALUATION.task


def test_teachers_in_another_order_are_the_same_question():
    backwards = dict(reversed(TEACHERS.items()))
    assert Footprint(teachers=backwards, **SMALL).task == EVALUATION.task


@pytest.mark.parametrize(
    "args",
    [
        {"teachers": {"ada": "reference"}},
        {"teachers": ["ada", "bob"]},
        {"teachers": {"ada": "reference", "bob": {"source": "reference"}}},
        {"teachers": {"ada": "reference", "bob": "nowhere"}},
        {"teachers": {"ada": "reference", "bob": 3}},
        {"teachers": {"ada": "reference", "share|bob": "hub:x/bob"}},
        {"features": "bert"},
        {"samples": 9},
        {"prompt_words": 0},
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"prompts": "nowhere"},
    ],
)
def test_arguments_out_of_range_are_refused_with_what_is_allowed(args):
    with pytest.raises(ValueError, match="allowed"):
        Footprint(**{"teachers": TEACHERS, **SMALL, **args})


def test_a_misspelt_key_of_a_teacher_is_refused():
    with pytest.raises(ValueError, match="sources"):
        Footprint(teachers={"ada": "reference", "bob": {"source": "hub:x/bob", "sources": 1}}, **SMALL)
