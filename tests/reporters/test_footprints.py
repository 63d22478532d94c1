"""Shares stand beside what the classifier makes of the teachers themselves: that decides whether they mean anything."""

import pytest

from harness.record import Metric
from harness.reporters.footprints import footprint_section
from harness.reporters.variants import Names, variants
from harness.spec import Use
from harness.statistics.intervals import wilson_interval
from tests.reporters.world import FakeResults, cell, record

TAUGHT = Use(use="distill.logits", args={"tokens": 10})


def share(name: str, count: int, n: int = 100) -> Metric:
    return Metric(
        evaluation="footprint",
        task="ada or ben",
        name=name,
        unit="fraction",
        value=count / n,
        n=n,
        higher_is_better=True,
        interval=wilson_interval(count, n),
        chance=0.5,
    )


def told(right: int) -> str:
    results = FakeResults()
    for name, stages, ada in (("reference", (), 52), ("of-ada", (TAUGHT,), 80)):
        found = (share("share.ada", ada), share("share.ben", 100 - ada), share("separability", right))
        own = (share("accuracy", ada),) if stages else ()
        results.add(record(cell(name, stages=stages), (), metrics=(*found, *own)), ())
    found = variants(results)
    return "\n".join(footprint_section(found, Names(found)))


@pytest.mark.parametrize(("right", "verdict"), [(90, "can be told apart"), (55, "do not tell the teachers apart")])
def test_the_ceiling_says_whether_a_share_can_mean_anything(right, verdict):
    # Wilson's lower end of 55 of 100 is .45, below the .5 of guessing; that of 90 is .82.
    assert verdict in told(right)


def test_every_model_shows_its_share_of_each_teacher_and_a_student_its_own():
    lines = [line for line in told(90).splitlines() if line.startswith("|")]
    student = next(line for line in lines if "of-ada" in line)
    untaught = next(line for line in lines if "reference" in line)
    assert student.count("0.80 [") == 2
    assert "0.20 [" in student
    assert "–" in untaught


def test_without_the_question_there_is_no_section():
    results = FakeResults()
    results.add(record(cell("reference"), ()), ())
    found = variants(results)
    assert list(footprint_section(found, Names(found))) == []
