import re

import pytest
from hypothesis import HealthCheck, given, settings
from markdown_it import MarkdownIt

from harness.gate.markdown import comparison_markdown, decision_markdown
from harness.gate.verdict import CellComparison, ChangedItem, Decision, Mismatch, Side, Verdict
from tests.gate.decisions import comparisons, decision, decisions, finding, number, place, suite

READER = MarkdownIt("commonmark", {"html": True}).enable("table")
SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def cells(line: str) -> int:
    """Cells of a row; a bar behind an odd number of backslashes is text."""
    return len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) - 1


def assert_whole(text: str) -> None:
    """Tables have as many cells in every row, and no HTML, link or image came in."""
    width = 0
    for line in re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", text).splitlines():
        here = cells(line) if line.startswith("|") else 0
        assert not (width and here) or width == here
        width = here
    tokens = READER.parse(text)
    inline = [child.type for token in tokens for child in token.children or ()]
    assert not {"html_inline", "link_open", "image", "code_inline"} & set(inline)
    assert "html_block" not in [token.type for token in tokens]


@SLOW
@given(decisions())
def test_whatever_the_names_are_every_row_has_as_many_cells(made: Decision) -> None:
    text = decision_markdown(made)
    assert_whole(text)
    assert text.startswith(f"**{made.verdict}**: ")
    assert text.encode()


@SLOW
@given(comparisons)
def test_whatever_the_models_wrote_a_comparison_stays_whole(made: CellComparison) -> None:
    text = comparison_markdown(made)
    assert_whole(text)
    fences = [token.type for token in READER.parse(text)].count("fence")
    assert fences == sum(3 if one.target else 2 for one in made.changed)


def test_the_first_line_is_the_answer() -> None:
    text = decision_markdown(decision([suite(Verdict.REGRESSED)], [finding(Verdict.REGRESSED)]))
    assert text.splitlines()[0] == (
        "**REGRESSED**: stop, a loss above the margin is proven; exit code 1; policy nightly, "
        "baseline main (0123456789ab)."
    )


@pytest.mark.parametrize(
    ("verdict", "strict", "told"),
    [
        (Verdict.NON_INFERIOR, False, "go, the loss is proven to be below the margin; exit code 0"),
        (Verdict.INCONCLUSIVE, False, "go, although there are too few items"),
        (Verdict.INCONCLUSIVE, True, "exit code 3"),
        (Verdict.MISSING, False, "exit code 4"),
        (Verdict.NOT_COMPARABLE, True, "exit code 4"),
    ],
)
def test_the_first_line_says_what_the_exit_code_means(verdict: Verdict, strict: bool, told: str) -> None:
    assert told in decision_markdown(decision([suite(verdict)], strict=strict)).splitlines()[0]


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of the table below a title, without its head."""
    lines = text.split(f"### {title}\n")[1].split("\n\n")[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def test_the_worst_stands_first() -> None:
    order = [Verdict.NOT_JUDGED, Verdict.NON_INFERIOR, Verdict.MISSING, Verdict.REGRESSED, Verdict.INCONCLUSIVE]
    text = decision_markdown(
        decision([suite(one) for one in order], [finding(one, place=place(task=one.lower())) for one in order])
    )
    expected = ["REGRESSED", "MISSING", "INCONCLUSIVE", "NON_INFERIOR", "NOT_JUDGED"]
    assert [row[0] for row in rows(text, "Cells and suites")[1:]] == expected
    assert [row[0] for row in rows(text, "Tasks")[1:]] == expected


def test_a_task_is_shown_with_what_led_to_its_verdict() -> None:
    found = finding(Verdict.INCONCLUSIVE, harm=True, more_items=1240, towards="accept")
    head, row = rows(decision_markdown(decision([suite(Verdict.INCONCLUSIVE)], [found])), "Tasks")
    shown = dict(zip(head, row, strict=True))
    # 585 of 1,000 against 600: a difference of -1.5 points, a retention of 585/600 = .975.
    assert shown["Items"] == "1,000"
    assert shown["Won / lost"] == "15 / 30"
    assert (shown["Baseline"], shown["Candidate"]) == (".600", ".585")
    assert shown["Points [95 %]"] == "-1.5 [-2.8, -0.2]"
    assert shown["Kept [95 %]"] == ".975 [.953, .997]"
    assert shown["Harm"] == "harm"
    assert shown["More items"] == "1,240 to pass"


def test_a_regression_is_more_than_a_harm() -> None:
    head, row = rows(
        decision_markdown(decision([suite(Verdict.REGRESSED)], [finding(Verdict.REGRESSED, harm=True)])), "Tasks"
    )
    assert dict(zip(head, row, strict=True))["Harm"] == ""


def test_a_divergence_is_shown_in_its_unit_and_not_as_a_ratio() -> None:
    found = finding(
        Verdict.REGRESSED, kind="fidelity", scale="value", unit="nats", margin=0.03, candidate=0.0371, baseline=None,
        measured=number(0.0371, 0.0332, 0.0413), difference=None, retention=None, counts=None,
    )  # fmt: skip
    head, row = rows(
        decision_markdown(decision([suite(Verdict.REGRESSED)], [found])), "Fidelity, speed, memory and size"
    )
    shown = dict(zip(head, row, strict=True))
    assert shown["Candidate"] == "0.0371 [0.0332, 0.0413] nats"
    assert shown["Ratio"] == "–"
    assert shown["Tolerated"] == "0.03 nats"


def test_what_cannot_be_compared_is_told_with_field_and_remedy() -> None:
    differs = Mismatch(
        label="lab / awq-4bit",
        suite="core",
        field="tokenizer_hash",
        baseline="aa",
        candidate="bb",
        hard=True,
        remedy="keep the tokenizer",
    )
    tolerated = differs.model_copy(update={"field": "kernel", "hard": False})
    text = decision_markdown(decision([suite(Verdict.NOT_COMPARABLE)], mismatches=(tolerated, differs)))
    table = rows(text, "Not comparable, missing or different")[1:]
    assert [(row[0], row[3], row[5]) for row in table] == [
        ("NOT_COMPARABLE", "tokenizer_hash", "keep the tokenizer"),
        ("differs", "kernel", "keep the tokenizer"),
    ]
    assert table[0][4] == "baseline aa, candidate bb"
    assert "the two sides differ in tokenizer_hash" in text


def test_a_cell_without_numbers_is_told_with_its_reason() -> None:
    text = decision_markdown(decision([suite(Verdict.MISSING, reason="the candidate timed out")]))
    assert rows(text, "Not comparable, missing or different")[1][4:] == [
        "the candidate timed out",
        "measure what is missing, then ask again",
    ]


def test_tasks_of_one_name_are_told_apart_by_their_evaluation() -> None:
    both = [finding(Verdict.NON_INFERIOR, place=place(evaluation=name)) for name in ("five shots", "no shots")]
    text = decision_markdown(decision([suite(Verdict.NON_INFERIOR)], both))
    assert [row[3] for row in rows(text, "Tasks")[1:]] == ["five shots / arc", "no shots / arc"]


def test_the_legend_explains_every_verdict_and_exit_code() -> None:
    text = decision_markdown(decision([]))
    legend = text.split("### How to read this")[1]
    assert not [verdict for verdict in Verdict if f"{verdict}: " not in legend]
    assert "2 usage error" in legend
    assert legend.index("1 a proven") < legend.index("4 something") < legend.index("3 something") < legend.index("0 go")


def test_a_comparison_shows_both_sides_and_what_changed() -> None:
    speed = finding(
        Verdict.NON_INFERIOR, kind="speed", scale="ratio", margin=0.05, unit="tok/s", baseline=40.0, candidate=73.6,
        ratio=number(1.84, 1.71, 1.98), counts=None, difference=None, retention=None,
        place=place(metric="decode_tps", task=""),
    )  # fmt: skip
    made = CellComparison(
        baseline=Side(label="original", cell="b0", outcome="ok", bits_per_weight=16.0, size_bytes=200_000_000),
        candidate=Side(label="awq-4bit", cell="c0", outcome="ok", bits_per_weight=4.0, size_bytes=60_000_000),
        verdict=Verdict.REGRESSED,
        suite=suite(Verdict.REGRESSED, reason="arc"),
        findings=(finding(Verdict.REGRESSED), speed),
        changed=(
            ChangedItem(task="arc", sample="7", won=False, baseline="B", candidate="C\n```", target="B", weight=1),
        ),
    )
    text = comparison_markdown(made)
    assert text.startswith("**REGRESSED**: awq-4bit against original: arc.")
    # 4/16 = 0.25 and 60/200 = 0.30
    assert rows(text, "Side by side")[1:] == [
        ["Cell", "original", "awq-4bit", ""],
        ["Outcome", "ok", "ok", ""],
        ["Bits/weight", "16", "4", "0.25×"],
        ["Size", "200.0 MB", "60.0 MB", "0.30×"],
        ["decode_tps", "40 tok/s", "73.6 tok/s", "1.84× [1.71, 1.98]"],
    ]
    assert "#### 1. lost: arc / 7" in text
    assert "````text\nC\n```\n````" in text
