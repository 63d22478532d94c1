"""What is kept of each suite stands apart where there are several, and is paired with the reference."""

import pytest

from harness.reporters.by_suite import suite_retention, suite_section
from harness.reporters.variants import Names, reference_of, variants
from harness.spec import Suite, Use
from tests.reporters.world import FakeResults, answers, artifact, cell, identity, record

TAUGHT = Suite(name="taught", version="1", evaluations=(Use(use="tasks.lm_eval", args={"task": "sums"}),))
UNTAUGHT = Suite(name="untaught", version="1", evaluations=(Use(use="tasks.lm_eval", args={"task": "calls"}),))
DISTILL = Use(use="distill.logits", args={"tokens": 1000})


def put(results: FakeResults, name: str, suite: Suite, task: str, right: int, *stages: Use) -> None:
    rows = answers(task, [1.0] * right + [0.0] * (100 - right), chance=0.0, prompt_hash="p")
    results.add(record(cell(name, stages=stages, suite=suite), rows, identity=identity(16), artifact=artifact()), rows)


@pytest.fixture
def found():
    results = FakeResults()
    put(results, "reference", TAUGHT, "sums", 80)
    put(results, "reference", UNTAUGHT, "calls", 50)
    put(results, "student", TAUGHT, "sums", 60, DISTILL)
    put(results, "student", UNTAUGHT, "calls", 10, DISTILL)
    return variants(results)


def test_each_suite_has_a_retention_of_its_own(found):
    student = next(variant for variant in found if variant.stages)
    reference = reference_of(student, found)
    assert suite_retention(student, reference, "taught").value == pytest.approx(60 / 80)
    assert suite_retention(student, reference, "untaught").value == pytest.approx(10 / 50)
    assert suite_retention(student, reference, "another") is None


def test_the_table_has_a_column_a_suite_and_names_the_reference(found):
    _, table = suite_section(found, Names(found))
    header, _, reference, student = table.splitlines()
    assert "taught, retention" in header
    assert "untaught, retention" in header
    assert reference.count("1 (reference)") == 2
    assert "0.75" in student
    assert "0.2" in student


def test_one_suite_has_no_section_of_its_own():
    results = FakeResults()
    put(results, "reference", TAUGHT, "sums", 80)
    put(results, "student", TAUGHT, "sums", 60, DISTILL)
    found = variants(results)
    assert list(suite_section(found, Names(found))) == []
