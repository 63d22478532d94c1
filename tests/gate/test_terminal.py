import io

import pytest
from hypothesis import HealthCheck, given, settings
from rich.cells import cell_len
from rich.console import Console, RenderableType

from harness.gate.terminal import comparison_view, decision_view
from harness.gate.verdict import CellComparison, ChangedItem, Decision, Side, Verdict
from tests.gate.decisions import NASTY, comparisons, decision, decisions, finding, place, suite

SLOW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def shown(view: RenderableType, *, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def assert_quiet(text: str, *, width: int = 100) -> None:
    """No line is too long, holds a control character or would be a command to a runner."""
    for line in text.split("\n"):
        assert cell_len(line.rstrip()) <= width
        assert not [mark for mark in line if ord(mark) < 32 or 127 <= ord(mark) < 160]
        assert not line.strip().startswith("::")


@SLOW
@given(decisions())
def test_whatever_the_names_are_a_decision_fits_a_hundred_columns(made: Decision) -> None:
    text = shown(decision_view(made))
    assert_quiet(text)
    assert text.startswith(f"{made.verdict}  ")


@SLOW
@given(comparisons)
def test_whatever_the_models_wrote_a_comparison_fits_a_hundred_columns(made: CellComparison) -> None:
    assert_quiet(shown(comparison_view(made)))


@pytest.mark.parametrize("name", NASTY)
def test_markup_and_escape_sequences_in_names_are_only_text(name: str) -> None:
    console = Console(width=200, file=io.StringIO(), force_terminal=True, color_system="standard")
    plain = decision([suite(Verdict.REGRESSED, reason="name")], [finding(Verdict.REGRESSED)])
    nasty = decision([suite(Verdict.REGRESSED, reason=f"x {name}")], [finding(Verdict.REGRESSED)])
    codes = []
    for made in (plain, nasty):
        with console.capture() as capture:
            console.print(decision_view(made))
        codes.append({part.split("m")[0] for part in capture.get().split("\x1b[")[1:]})
    assert codes[0] == codes[1]


def test_brackets_in_a_name_are_shown() -> None:
    text = shown(decision_view(decision([suite(Verdict.REGRESSED, reason="[red]bold[/red]")])))
    assert "[red]bold[/red]" in text


def test_a_wide_terminal_keeps_a_row_on_a_line() -> None:
    name = "mmlu_high_school_european_history"
    made = decision([suite(Verdict.INCONCLUSIVE)], [finding(Verdict.INCONCLUSIVE, place=place(task=name))])
    (row,) = [line for line in shown(decision_view(made), width=160).splitlines() if name in line]
    assert row.split() == [
        "INCONCLUSIVE", name, "1,000", "15", "/", "30", ".600", "→", ".585", "-1.5", "[-2.8,", "-0.2]", ".975",
        "[.953,", ".997]",
    ]  # fmt: skip


def test_a_narrow_terminal_puts_intervals_below_their_values_and_loses_nothing() -> None:
    made = decision(
        [suite(Verdict.INCONCLUSIVE)], [finding(Verdict.INCONCLUSIVE, more_items=12_400, towards="accept", harm=True)]
    )
    lines = shown(decision_view(made), width=80).splitlines()
    first = next(index for index, line in enumerate(lines) if line.startswith("INCONCLUSIVE") and "arc" in line)
    assert lines[first].split() == ["INCONCLUSIVE", "arc", "1,000", "15", "/", "30", ".600", "-1.5", ".975", "12,400"]
    assert lines[first + 1].split() == ["harm", "→", ".585", "[-2.8,", "-0.2]", "[.953,", ".997]", "to", "pass"]


def test_the_worst_suite_of_the_worst_cell_is_shown_first() -> None:
    good, bad = place(label="good"), place(label="bad")
    made = decision(
        [suite(Verdict.NON_INFERIOR, place=good), suite(Verdict.REGRESSED, place=bad)],
        [finding(Verdict.NON_INFERIOR, place=good), finding(Verdict.REGRESSED, place=bad)],
    )
    text = shown(decision_view(made))
    assert text.index("bad / core") < text.index("good / core")


def test_a_comparison_shows_the_outputs_that_differ() -> None:
    made = CellComparison(
        baseline=Side(label="original", cell="b", outcome="ok", bits_per_weight=16.0),
        candidate=Side(label="awq-4bit", cell="c", outcome="ok", bits_per_weight=4.5),
        verdict=Verdict.INCONCLUSIVE,
        suite=None,
        findings=(finding(Verdict.INCONCLUSIVE),),
        changed=(
            ChangedItem(
                task="arc", sample="7", won=False, baseline="It is B.", candidate="::a\nb", target="B", weight=1
            ),
        ),
    )
    text = shown(comparison_view(made))
    assert text.startswith("INCONCLUSIVE  awq-4bit against original.")
    assert "lost arc / 7" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith("     ")][-3:] == [
        "target:",
        "baseline:",
        "candidate:",
    ]
    assert "0.28×" in text  # 4.5 / 16
