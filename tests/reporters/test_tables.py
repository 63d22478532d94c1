import csv
import re

import pytest

from harness.record import Failure, Interval, Outcome, Record
from harness.reporters.answer import answer
from harness.reporters.summary import by_size, by_speed, summarize
from harness.reporters.tables import Tables
from harness.reporters.text import count, megabytes, number, plain, seconds, with_interval
from tests.reporters.world import LLAMA_CPP, FakeResults, answers, artifact, cell, identity, record, whole_comparison

FILES = ["report.md", "table.md", "table.csv", "table.tex", "comparisons.csv", "metrics.csv"]


@pytest.fixture(scope="module")
def results():
    return whole_comparison()


@pytest.fixture(scope="module")
def report(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    written = Tables().render(results, out)
    assert [file.name for file in written] == FILES
    return out


def read(file):
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def test_the_same_records_give_the_same_bytes(results, report, tmp_path):
    turned = FakeResults(results.rows, list(reversed(results.kept)))
    for file in Tables().render(turned, tmp_path):
        assert file.read_bytes() == (report / file.name).read_bytes()


def test_the_page_starts_with_the_answer_and_the_references_own_label(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    first = text.split("## Summary")[0]
    assert first.index("## Answer") < first.index("reference itself:** dequantized from an 8-bit file")
    assert "not the same as lossless" in first
    assert text.index("dequantized") < 400
    headings = re.findall("^## (.*)", text, flags=re.M)
    assert headings == [
        "Answer",
        "Summary",
        "Figures",
        "Tasks",
        "What the runtime alone changes",
        "Speed and memory",
        "Cost of compressing",
        "What did not run, and why",
        "Notes",
    ]


def test_no_table_is_too_wide_to_read_and_every_row_fills_it(report):
    text = (report / "report.md").read_text(encoding="utf-8")
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        widths = {len(re.split(r"(?<!\\)\|", line)) - 2 for line in table.splitlines()}
        assert len(widths) == 1
        assert widths.pop() <= 12


def test_every_cell_has_a_row_and_what_did_not_run_has_its_reason(report, results):
    assert len(read(report / "table.csv")) == len(results.records)
    text = (report / "report.md").read_text(encoding="utf-8")
    assert "GGUF's Q2_K \\| type is not read here" in text
    assert "no end after 3600 s" in text
    assert "no counter on this machine" in text


def test_emulated_rows_show_what_packing_would_give_and_no_speed(report):
    row = next(r for r in read(report / "table.csv") if r["pipeline"] == "q4_k_m" and r["runtime"] == "transformers")
    assert row["is_emulated"] == "True"
    assert float(row["nominal_bits_per_weight"]) == pytest.approx(4.98, abs=0.01)
    assert float(row["bits_per_weight"]) == pytest.approx(16)
    assert row["decode_tps"] == row["decode_speedup"] == row["peak_bytes"] == row["load_warm_s"] == ""
    lines = (report / "table.md").read_text(encoding="utf-8").splitlines()
    shown = next(line for line in lines if line.startswith("| q4_k_m") and "transformers" in line)
    assert "(4.98)" in shown
    assert "(83.7)" in shown
    assert shown.count("emulated") == 4


def test_the_tables_numbers_are_those_of_the_counts(report):
    row = next(
        r
        for r in read(report / "comparisons.csv")
        if (r["pipeline"], r["runtime"], r["task"]) == ("q2_k", "llama_cpp", "piqa")
    )
    both, gained, lost, neither = (
        int(row[name]) for name in ("both_right", "only_candidate_right", "only_reference_right", "neither_right")
    )
    assert both + gained + lost + neither == int(row["n"]) == 250
    assert float(row["retention"]) == pytest.approx((both + gained) / (both + lost))
    assert float(row["difference"]) == pytest.approx((gained - lost) / 250)
    half = ((both + gained) / 250 - 0.5) / ((both + lost) / 250 - 0.5)
    assert float(row["chance_corrected_retention"]) == pytest.approx(half)


def test_retention_over_all_tasks_is_the_ratio_of_the_sums_of_means(report):
    rows = [r for r in read(report / "comparisons.csv") if (r["pipeline"], r["runtime"]) == ("q3_k_m", "llama_cpp")]
    wide = next(r for r in read(report / "table.csv") if (r["pipeline"], r["runtime"]) == ("q3_k_m", "llama_cpp"))
    own, other = (sum(float(r[name]) for r in rows) for name in ("accuracy", "reference_accuracy"))
    assert float(wide["retention"]) == pytest.approx(own / other)


def test_long_metrics_hold_every_metric_of_every_record(report, results):
    assert len(read(report / "metrics.csv")) == sum(len(record.metrics) for record in results.records)


def test_latex_escapes_what_latex_would_read(report):
    text = (report / "table.tex").read_text(encoding="utf-8")
    assert "q4\\_k\\_m" in text
    assert "\\toprule" in text


def test_what_breaks_is_said_and_what_cannot_be_told_apart_is_not_called_lossless():
    reference = [1.0] * 80 + [0.0] * 20
    results = FakeResults()
    results.add(record(cell("reference"), a := answers("arc", reference)), a)
    results.add(record(cell("same"), a, identity=identity(8)), a)
    results.add(record(cell("broken"), b := answers("arc", [1.0] * 40 + [0.0] * 60), identity=identity(2)), b)
    text = "\n".join(answer(summarize(results)))
    # 80 right in both: the lower end is 80 / (80 + 1.96²) = 0.954, so 4.6 % may be lost
    assert "Not distinguishable from the reference over all tasks, which is not the same as lossless: same on" in text
    assert "may have lost up to 4.6 %" in text
    assert "What breaks (tasks whose interval lies wholly below 1): broken on transformers (1 of 1 task" in text
    assert "Of 2 comparisons of a single task" in text


def test_a_family_without_a_measured_reference_says_that_nothing_can_be_said():
    results = FakeResults()
    results.add(record(cell("q4"), a := answers("arc", [1.0, 0.0])), a)
    assert "no task of the family's reference was measured" in "\n".join(answer(summarize(results)))


def test_a_report_of_failures_only_is_still_a_report(tmp_path):
    results = FakeResults()
    failure = Failure(phase="open", reason="no such\nfile", advice="")
    results.add(Record(cell=cell("reference"), outcome=Outcome.FAILED, error=failure))
    Tables().render(results, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "Nothing ran" in text
    assert "open: no such file" in text
    assert "![" not in text
    assert (tmp_path / "comparisons.csv").exists()


def test_a_reference_from_another_runtime_and_missing_items_are_marked(tmp_path):
    results = FakeResults()
    results.add(record(cell("reference"), a := answers("arc", [1.0, 1.0, 0.0, 1.0])), a)
    results.add(record(cell("q4", LLAMA_CPP), a[:3], artifact=artifact([("convert.gguf", 1.0)])), a[:3])
    Tables().render(results, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "] †‡ |" in text
    assert "- † no reference ran in the same place, so the one on transformers stands in" in text
    assert "arc: 1 item missing here; 3 compared" in text


def test_the_frontier_is_what_nothing_beats_in_both_and_emulated_rows_do_not_compete(results):
    summary = summarize(results)
    small, fast = by_size(summary.entries), by_speed(summary.entries)
    assert all(not entry.row.is_emulated for entry in (*small, *fast))
    for entry in small:
        for other in summary.entries:
            if other.retention and other.row.size_bytes and not other.row.is_emulated:
                smaller = other.row.size_bytes < entry.row.size_bytes
                assert not (smaller and other.retention.value >= entry.retention.value)


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (0.97, 0.93, 1.01, "0.97 [0.93, 1.01]"),
        (0.97, 0.93, 0.998, "0.970 [0.930, 0.998]"),  # two digits would say that 1 is inside
        (0.9912, 0.985, 0.997, "0.991 [0.985, 0.997]"),  # two digits would hide the width
    ],
)
def test_an_interval_is_shown_with_the_digits_it_needs(value, low, high, text):
    assert with_interval(value, Interval(low=low, high=high, method="m")) == text


def test_numbers_are_written_for_people():
    assert [number(v) for v in (None, 0.01234, 1234.6, 0.5, 2e-7)] == ["–", "0.0123", "1235", "0.5", "2.00e-07"]
    assert [seconds(v) for v in (None, 0, 0.0312, 4.25, 75, 5400)] == [
        "–",
        "0 s",
        "31 ms",
        "4.2 s",
        "75 s",
        "1 h 30 min",
    ]
    assert [megabytes(v) for v in (None, 83_900_000, 2_500_000_000)] == ["–", "83.9", "2500"]
    assert count(1, "item") == "1 item"


def test_text_from_records_cannot_write_markup():
    assert plain("a|b\n<img src=x> *c* [d](e) `f`") == "a\\|b &lt;img src=x&gt; \\*c\\* \\[d](e) 'f'"
