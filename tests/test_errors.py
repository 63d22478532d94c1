"""Errors: what a user reads, on several lines or on one."""

from harness.errors import SpecError, closest


def test_every_detail_that_is_given_has_a_line_of_its_own_and_no_other_is_there() -> None:
    error = SpecError(
        "unknown key", file="a.yaml:3", key="sedes", found="sedes", allowed=["seeds", "name"], remedy="mend"
    )
    assert str(error).splitlines() == [
        "unknown key",
        "  file:    a.yaml:3",
        "  key:     sedes",
        "  found:   'sedes'",
        "  allowed: name, seeds",
        "  remedy:  mend",
    ]
    assert str(SpecError("just this")) == "just this"


def test_the_reason_is_one_line_and_leaves_the_remedy_apart() -> None:
    error = SpecError("gone", file="a.yaml", remedy="look elsewhere")
    assert error.reason == "gone (file: a.yaml)"
    assert error.remedy == "look elsewhere"


def test_the_closest_name_is_suggested_and_a_far_one_is_not() -> None:
    assert closest("quantize.rtm", ["quantize.rtn", "prune.depth"]) == "did you mean 'quantize.rtn'?"
    assert closest("zzz", ["quantize.rtn"]) is None
