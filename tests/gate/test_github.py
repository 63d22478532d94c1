import re

import pytest
from hypothesis import HealthCheck, given, settings

from harness.gate.github import MOST, SUMMARY_BYTES, annotations, step_summary
from harness.gate.markdown import decision_markdown
from harness.gate.verdict import Decision, Mismatch, Verdict
from tests.gate.decisions import NASTY, decision, decisions, finding, place, suite
from tests.gate.test_markdown import assert_whole

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(line: str) -> tuple[str, dict[str, str], str]:
    """An annotation as GitHub's runner reads it (actions/runner, ActionCommand.cs): level, properties, message.

    The command ends at the second pair of colons, properties are parted by commas and named up to the first `=`; then
    escapes are undone, the per cent sign last.
    """
    assert line.startswith("::")
    head, _, data = line[2:].partition("::")
    level, _, rest = head.partition(" ")
    properties = {}
    for part in rest.split(","):
        key, _, value = part.partition("=")
        for mark, code in (("\r", "%0D"), ("\n", "%0A"), (":", "%3A"), (",", "%2C"), ("%", "%25")):
            value = value.replace(code, mark)
        properties[key] = value
    for mark, code in (("\r", "%0D"), ("\n", "%0A"), ("%", "%25")):
        data = data.replace(code, mark)
    return level, properties, data


@SLOW
@given(decisions())
def test_whatever_the_names_are_annotations_are_a_line_each_and_few(made: Decision) -> None:
    lines = annotations(made)
    levels = []
    for line in lines:
        assert len(line.splitlines()) == 1
        level, properties, message = read(line)
        assert set(properties) <= {"title", "file"}
        assert properties["title"]
        assert message
        assert len(message) <= 4096
        levels.append(level)
    assert levels == sorted(levels)
    assert set(levels) <= {"error", "warning"}
    assert max(levels.count("error"), levels.count("warning")) <= MOST


@SLOW
@given(decisions())
def test_errors_are_annotated_exactly_when_the_gate_fails(made: Decision) -> None:
    # Findings that belong to no suite are told too, so only decisions whose findings all do are asked.
    whole = made.model_copy(update={"findings": ()})
    assert any(line.startswith("::error") for line in annotations(whole)) == (whole.exit_code != 0)


@pytest.mark.parametrize("name", NASTY)
def test_a_name_survives_the_way_to_the_runner(name: str) -> None:
    made = decision([suite(Verdict.MISSING, place=place(label="cell", suite="suite"), reason=f"why {name} so")])
    (line,) = annotations(made)
    level, properties, message = read(line)
    assert (level, properties["file"]) == ("error", "results")
    assert properties["title"] == "MISSING: cell / suite"
    assert message.startswith("why")


def test_per_cent_colon_and_comma_are_escaped_as_the_runner_undoes_them() -> None:
    made = decision([suite(Verdict.MISSING, place=place(label="a:b,c%0A", suite="s"), reason="x:y,z 5%25")])
    assert annotations(made) == ["::error title=MISSING%3A a%3Ab%2Cc%250A / s,file=results::x:y,z 5%2525"]


def test_the_gravest_come_first_and_the_last_counts_the_rest() -> None:
    regressed = [finding(Verdict.REGRESSED, place=place(task=f"task {number}")) for number in range(20)]
    suites = [suite(Verdict.MISSING, place=place(label="other"), reason="timeout"), suite(Verdict.REGRESSED)]
    lines = annotations(decision(suites, regressed))
    assert len(lines) == MOST
    titles = [read(line)[1]["title"] for line in lines]
    # 20 tasks, their suite and the other suite are 22; nine are shown.
    assert titles[0] == "REGRESSED: lab / awq-4bit / core"
    assert all(title.startswith("REGRESSED") for title in titles[:9])
    assert titles[9] == "13 more"
    assert read(lines[9])[2] == "13 more errors are not shown here: see the job's summary"


def test_ten_errors_are_all_shown() -> None:
    suites = [suite(Verdict.MISSING, place=place(label=f"cell {number}"), reason="timeout") for number in range(10)]
    assert not [line for line in annotations(decision(suites)) if " more" in line]


def test_what_does_not_decide_is_a_warning() -> None:
    found = [finding(Verdict.REGRESSED, critical=False), finding(Verdict.NON_INFERIOR, harm=True)]
    lines = annotations(decision([suite(Verdict.NON_INFERIOR)], found))
    assert [read(line)[:2] for line in lines] == [
        ("warning", {"title": "REGRESSED: lab / awq-4bit / core / arc", "file": "results"}),
        ("warning", {"title": "harm: lab / awq-4bit / core / arc", "file": "results"}),
    ]


def test_what_is_open_is_a_warning_and_under_strict_an_error() -> None:
    for strict, level in ((False, "::warning"), (True, "::error")):
        (line,) = annotations(decision([suite(Verdict.INCONCLUSIVE)], [finding(Verdict.INCONCLUSIVE)], strict=strict))
        assert line.startswith(level)


def test_a_warning_that_has_an_annotation_with_numbers_is_not_told_twice() -> None:
    harmed = finding(Verdict.NON_INFERIOR, harm=True)
    told = (f"{harmed.place}: something was lost", "lab / awq-4bit / core: open", "the clock was slow")
    made = decision([suite(Verdict.INCONCLUSIVE)], [harmed], warnings=told)
    assert [read(line)[2] for line in annotations(made)][-1] == "the clock was slow"
    assert len(annotations(made)) == 3


def test_a_difference_that_is_tolerated_is_a_warning() -> None:
    differs = Mismatch(label="c", suite="s", field="kernel", baseline="a", candidate="b", hard=False)
    (line,) = annotations(decision([suite(Verdict.NON_INFERIOR)], mismatches=(differs,)))
    assert line == "::warning title=differs%3A c / s,file=results::kernel: baseline a, candidate b"


@SLOW
@given(decisions())
def test_a_small_summary_is_the_whole_decision(made: Decision) -> None:
    assert step_summary(made) == decision_markdown(made)


@settings(SLOW, max_examples=30)
@given(decisions())
def test_a_summary_is_never_larger_than_allowed_and_stays_whole(made: Decision) -> None:
    for most in (9_000, 12_000):
        shown = step_summary(made, most=most)
        assert len(shown.encode()) <= most
        assert_whole(shown)


def test_ten_megabytes_are_cut_between_rows_and_the_cut_is_told() -> None:
    reason = "🦥" * 300  # 1,200 bytes
    many = [finding(Verdict.INCONCLUSIVE, place=place(task=f"task {number}"), reason=reason) for number in range(8500)]
    worst = finding(Verdict.REGRESSED, place=place(task="the worst"))
    made = decision(
        [suite(Verdict.REGRESSED)], [*many, worst], warnings=tuple(f"warning {number}" for number in range(50))
    )
    assert len(decision_markdown(made).encode()) > 10_000_000
    shown = step_summary(made)
    size = len(shown.encode())
    # A row is some 1,500 bytes, so no more than two of them and the room for the notice are left over.
    assert SUMMARY_BYTES - 8_000 <= size <= SUMMARY_BYTES
    assert_whole(shown)
    tasks = len(re.findall(r"(?m)^\| (?:REGRESSED|INCONCLUSIVE) \|.*\| (?:task \d+|the worst) \|", shown))
    assert f"**Cut to 1,048,576 bytes:** {8501 - tasks:,} of 8,501 tasks are not shown" in shown
    assert "| the worst |" in shown
    assert "- warning 49" in shown
    assert "### How to read this" in shown
