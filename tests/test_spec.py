"""Identity: what changes an id and what does not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.spec import Cell, Hardware, Model, Pipeline, Suite, Use, digest

CELL = Cell(
    model=Model(family="f", source="path:/m"),
    pipeline=Pipeline(name="p", stages=(Use(use="s", args={"b": 1, "a": [2]}),)),
    runtime=Use(use="r"),
    hardware=Hardware(),
    suite=Suite(name="s", version="1", evaluations=(Use(use="e"),)),
)

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), plain_json, max_size=5))
def test_an_id_does_not_depend_on_the_order_of_arguments(args: dict) -> None:
    backwards = dict(reversed(list(args.items())))
    assert Use(use="x", args=args).id == Use(use="x", args=backwards).id


@given(st.dictionaries(st.text(max_size=4), plain_json, max_size=5))
def test_a_use_survives_a_round_trip_through_json(args: dict) -> None:
    use = Use(use="x", args=args)
    again = Use.model_validate_json(use.model_dump_json())
    assert (again, again.id) == (use, use.id)


def test_labels_do_not_change_an_id() -> None:
    renamed = CELL.model_copy(update={"pipeline": Pipeline(name="other", stages=CELL.pipeline.stages)})
    assert renamed.id == CELL.id


def test_writing_a_default_out_does_not_change_an_id() -> None:
    assert Hardware(device="cpu", threads=1).id == Hardware().id


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"hardware": Hardware(threads=2)},
        {"runtime": Use(use="r", args={"dtype": "float32"})},
        {"model": Model(family="f", source="path:/n")},
    ],
)
def test_whatever_is_measured_differently_has_another_id(change: dict) -> None:
    assert CELL.model_copy(update=change).id != CELL.id


def test_the_digest_is_that_of_canonical_json() -> None:
    # sha256 of the 13 bytes {"a":1,"b":2}, by coreutils: printf '{"a":1,"b":2}' | sha256sum
    assert digest(json.loads('{"b": 2, "a": 1}')) == "43258cff783fe703"


def test_a_source_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValidationError, match="scheme:reference"):
        Model(family="f", source="smollm2")


def test_values_are_frozen_and_take_no_unknown_field() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CELL.seed = 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        Use.model_validate({"use": "x", "argz": {}})
