"""A distilled student is set against the one that read as many tokens of the text without a teacher."""

import pytest

from harness.reporters.findings import find
from harness.reporters.teaching import lessons, teaching_rows, teaching_section
from harness.reporters.variants import SCORE, Names, variants
from harness.spec import Use
from tests.reporters.world import FakeResults, answers, artifact, cell, identity, record

PRUNE = Use(use="prune.depth", args={"keep": 3})
TEXT = Use(use="distill.logits", args={"tokens": 1000, "kd_weight": 0, "ce_weight": 1})
TEACHER = Use(use="distill.logits", args={"tokens": 1000})
HIDDEN = Use(use="distill.hidden", args={"tokens": 1000})
LONGER = Use(use="distill.hidden", args={"tokens": 2000})
PACK = Use(use="quantize.gguf", args={"type": "Q8_0"})


def world(**pipelines: tuple[int, tuple[Use, ...]]):
    results = FakeResults()
    for name, (right, stages) in pipelines.items():
        rows = answers("sums", [1.0] * right + [0.0] * (100 - right), chance=0.0, prompt_hash="p")
        results.add(record(cell(name, stages=stages), rows, identity=identity(16), artifact=artifact()), rows)
    return variants(results)


def test_only_students_that_differ_in_their_teaching_and_read_as_much_are_paired():
    found = world(
        reference=(90, ()),
        text=(40, (PRUNE, TEXT)),
        logits=(60, (PRUNE, TEACHER)),
        hidden=(50, (PRUNE, HIDDEN)),
        longer=(70, (PRUNE, LONGER)),
        packed=(55, (PRUNE, TEACHER, PACK)),
        unpruned=(80, (TEACHER,)),
    )
    pairs = list(lessons(found))
    assert {(pair.control.row.label, pair.taught.row.label) for pair in pairs} == {
        ("text", "logits"),
        ("text", "hidden"),
    }
    # The first 40 items are right in both, the next 20 in `logits` alone: (60 - 40) / 100.
    logits = next(pair for pair in pairs if pair.taught.row.label == "logits")
    assert find(logits, SCORE).estimate.value == pytest.approx(0.20)
    _, table = teaching_section(found, Names(found))
    assert "+0.20" in table
    assert {row["given"] for row in teaching_rows(found)} == {"text"}


def test_without_a_control_there_is_no_section():
    found = world(reference=(90, ()), logits=(60, (PRUNE, TEACHER)))
    assert list(teaching_section(found, Names(found))) == []
