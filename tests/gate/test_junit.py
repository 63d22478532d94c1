from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings

from harness.gate.junit import junit
from harness.gate.verdict import POOLED, Decision, Mismatch, Verdict
from tests.gate.decisions import NASTY, decision, decisions, finding, place, suite

# What the schema of the Jenkins plug-in xunit (junit-10.xsd) lets stand in each element that is written here.
ATTRIBUTES = {
    "testsuites": {"name", "time", "tests", "failures", "errors"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package"},
    "properties": set(),
    "property": {"name", "value"},
    "testcase": {"name", "classname", "time", "group"},
    "failure": {"type", "message"},
    "error": {"type", "message"},
    "skipped": {"type", "message"},
    "system-out": set(),
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out"},
    "properties": {"property"},
    "testcase": {"failure", "error", "skipped", "system-out"},
}
REQUIRED = {
    "testsuite": {"name", "tests", "failures", "errors"},
    "testcase": {"name"},
    "property": {"name", "value"},
}


def parsed(made: Decision) -> ElementTree.Element:
    return ElementTree.fromstring(junit(made).encode())


def assert_valid(root: ElementTree.Element) -> None:
    """Elements and attributes are those of the schema, counts sum up, names are unique."""
    assert root.tag == "testsuites"
    for element in root.iter():
        assert set(element.attrib) <= ATTRIBUTES[element.tag]
        assert set(element.attrib) >= REQUIRED.get(element.tag, set())
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set())
    for counted in ("tests", "failures", "errors"):
        assert int(root.get(counted, "")) == sum(int(suite.get(counted, "")) for suite in root)
    for one in root:
        cases = one.findall("testcase")
        assert int(one.get("tests", "")) == len(cases)
        for tag, counted in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
            assert int(one.get(counted, "")) == sum(case.find(tag) is not None for case in cases)
    suites = [one.get("name") for one in root]
    cases = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(suites) == len(set(suites))
    assert len(cases) == len(set(cases))
    assert all(case.get("name") and case.get("classname") for case in root.iter("testcase"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(decisions())
def test_whatever_the_names_are_the_report_is_valid(made: Decision) -> None:
    root = parsed(made)
    assert_valid(root)
    assert len(list(root.iter("testcase"))) == len(made.findings) + len(made.suites)


@pytest.mark.parametrize("name", NASTY)
def test_a_name_that_would_break_the_report_is_shown(name: str) -> None:
    found = finding(Verdict.REGRESSED, place=place(label=name, suite=name, task=name, evaluation=name), reason=name)
    root = parsed(decision([suite(Verdict.REGRESSED, reason=name, place=place(label=name, suite=name))], [found]))
    assert_valid(root)
    assert root.get("failures") == "2"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_report_is_red_exactly_when_the_exit_code_is_not_zero(verdict: Verdict, strict: bool) -> None:
    # A task that does not decide (not critical, or pooled with others) must not turn the report red.
    made = decision([suite(verdict)], [finding(one, place=place(task=one.lower())) for one in Verdict], strict=strict)
    root = parsed(made)
    red = int(root.get("failures", "")) + int(root.get("errors", ""))
    assert (red > 0) == (made.exit_code != 0)


@pytest.mark.parametrize(
    ("verdict", "strict", "tag"),
    [
        (Verdict.REGRESSED, False, "failure"),
        (Verdict.NOT_COMPARABLE, False, "error"),
        (Verdict.MISSING, False, "error"),
        (Verdict.INCONCLUSIVE, False, "skipped"),
        (Verdict.INCONCLUSIVE, True, "failure"),
        (Verdict.NOT_JUDGED, True, "skipped"),
        (Verdict.NON_INFERIOR, True, "system-out"),
    ],
)
def test_each_verdict_has_its_element(verdict: Verdict, strict: bool, tag: str) -> None:
    root = parsed(decision([suite(verdict)], [finding(verdict)], strict=strict))
    assert [[child.tag for child in case] for case in root.iter("testcase")] == [[tag], [tag]]


def test_a_failure_says_in_its_message_what_was_lost() -> None:
    root = parsed(
        decision([suite(Verdict.REGRESSED)], [finding(Verdict.REGRESSED, p_adjusted=2e-5, alpha_breach=3e-4)])
    )
    failure = root.find("testsuite/testcase[@name='arc / score']/failure")
    assert failure is not None
    assert failure.get("type") == "REGRESSED"
    assert failure.get("message") == (
        "REGRESSED: lost 1.5 points [0.2, 2.8], kept .975 [.953, .997], won 15, lost 30 of 1,000; "
        "beyond the margin of 1 % of the baseline's score (p = 2e-5 against .0003)"
    )


def test_a_finding_is_overruled_by_the_verdict_of_its_own_kind() -> None:
    # Size regressed and decides; the accuracy of the same suite did not, so its one bad task does not decide.
    suites = [
        suite(Verdict.NON_INFERIOR),
        suite(Verdict.REGRESSED, place=place(metric="size", task=""), rule="any"),
    ]
    size = finding(
        Verdict.REGRESSED, kind="size", place=place(metric="size_bytes", task=""), unit="bytes", scale="ratio"
    )
    task = finding(Verdict.REGRESSED, critical=False)
    root = parsed(decision(suites, [size, task]))
    shown = {case.get("name"): [child.tag for child in case] for case in root.iter("testcase")}
    assert shown == {
        "suite: accuracy, all tasks together": ["system-out"],
        "suite: size, the worst finding": ["failure"],
        "size_bytes": ["failure"],
        "arc / score": ["skipped"],
    }


def test_pooled_tasks_are_a_case_of_their_own() -> None:
    pooled = finding(Verdict.INCONCLUSIVE, place=place(task=POOLED), critical=False)
    root = parsed(decision([suite(Verdict.INCONCLUSIVE, finding=pooled)], [pooled]))
    assert_valid(root)
    assert "not critical" not in junit(decision([suite(Verdict.INCONCLUSIVE, finding=pooled)], [pooled]))


def test_a_suite_that_cannot_be_compared_names_the_fields() -> None:
    differs = Mismatch(
        label="lab / awq-4bit",
        suite="core",
        field="tokenizer_hash",
        baseline="aa",
        candidate="bb",
        hard=True,
        remedy="keep the tokenizer",
    )
    root = parsed(decision([suite(Verdict.NOT_COMPARABLE)], mismatches=(differs,)))
    error = root.find("testsuite/testcase/error")
    assert error is not None
    assert "tokenizer_hash: baseline aa, candidate bb -> keep the tokenizer" in error.get("message", "")


def test_properties_name_the_policy_and_the_baseline() -> None:
    root = parsed(decision([suite(Verdict.NON_INFERIOR)]))
    known = {one.get("name"): one.get("value") for one in root.iter("property")}
    assert (known["policy"], known["baseline"]) == ("nightly", "main")
    assert known["baseline_digest"] == "0123456789abcdef"
    assert known["exit_code"] == "0: go, the loss is proven to be below the margin"


def test_a_cell_gets_a_package_for_its_suite_and_no_other() -> None:
    # Build servers split a class name at its last point.
    root = parsed(decision([suite(Verdict.NON_INFERIOR, place=place(label="SmolLM2-1.7B on llama.cpp", suite="a.b"))]))
    assert [case.get("classname") for case in root.iter("testcase")] == ["a_b.SmolLM2-1_7B on llama_cpp"]
