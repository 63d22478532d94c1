import json

import pytest
from hypothesis import HealthCheck, given, settings

from harness.errors import StoreError
from harness.gate.document import decision_json, read_decision
from harness.gate.verdict import DECISION_SCHEMA, Decision, Verdict
from tests.gate.decisions import decision, decisions, finding, suite


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(decisions())
def test_a_decision_is_read_back_as_it_was(made: Decision) -> None:
    text = decision_json(made)
    assert read_decision(text) == Decision.model_validate_json(text) == made
    assert decision_json(read_decision(text)) == text
    assert text.isascii()


def test_the_document_names_its_schema_and_sorts_its_keys() -> None:
    plain = json.loads(decision_json(decision([suite(Verdict.REGRESSED)], [finding(Verdict.REGRESSED)])))
    assert plain["schema_version"] == DECISION_SCHEMA
    assert list(plain) == sorted(plain)
    assert plain["findings"][0]["verdict"] == "REGRESSED"


@pytest.mark.parametrize("found", [DECISION_SCHEMA + 1, 0, "1", None, True, 1.0])
def test_another_schema_is_refused_with_what_was_found_and_what_is_allowed(found: object) -> None:
    plain = json.loads(decision_json(decision([])))
    with pytest.raises(StoreError) as caught:
        read_decision(json.dumps({**plain, "schema_version": found}), origin="night/decision.json")
    assert caught.value.details.get("found") == found
    assert caught.value.details.get("allowed") == str(DECISION_SCHEMA)
    assert caught.value.details.get("file") == "night/decision.json"
    assert caught.value.remedy


def test_a_newer_schema_asks_for_a_newer_harness() -> None:
    with pytest.raises(StoreError, match="upgrade the harness"):
        read_decision(json.dumps({"schema_version": DECISION_SCHEMA + 1}))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": NaN}', "[" * 100_000, '"\\ud800"'])
def test_what_is_no_decision_is_refused(text: str) -> None:
    with pytest.raises(StoreError):
        read_decision(text)


def test_a_damaged_decision_names_the_field() -> None:
    plain = json.loads(decision_json(decision([suite(Verdict.REGRESSED)])))
    plain["suites"][0]["verdict"] = "FINE"
    with pytest.raises(StoreError) as caught:
        read_decision(json.dumps(plain))
    assert caught.value.details.get("key") == "suites.0.verdict"


def test_a_number_that_is_not_finite_is_not_written() -> None:
    with pytest.raises(ValueError, match="finite"):
        decision_json(decision([], [finding(Verdict.REGRESSED, margin=float("inf"))]))
