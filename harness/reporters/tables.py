"""The report as text: one page to read, the main table alone, and everything as rows for other programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from harness.interfaces import Results
from harness.reporters import export, sections
from harness.reporters.answer import answer
from harness.reporters.notes import notes_section
from harness.reporters.proofs import stored_section
from harness.reporters.summary import Summary, summarize

FIGURES = (
    ("pareto_size.png", "Retention against size"),
    ("pareto_speed.png", "Retention against decode speed-up"),
    ("heatmap.png", "Retention by task and pipeline"),
)


@final
@dataclass(frozen=True)
class Tables:
    """Writes `report.md`, `table.md`, `table.csv`, `table.tex`, `comparisons.csv` and `metrics.csv`.

    Does:   Pairs every cell with its family's reference on identical items and gives retention with 95 % intervals,
            speed-ups against the reference on the same runtime and machine, size, memory, load and time to deploy.
            The page starts with the answer and ends with what every column means.
    Needs:  Records; a reference in each family for retention and speed-ups.
    Why:    A ratio of two means without its uncertainty declares winners among the lucky. Speeds of two machines,
            sizes of emulated weights and scores on different items look comparable and are not.
    Known:  Items are taken as independent; where they share passages the intervals are too narrow. Intervals are for
            one comparison at a time; the page says how many would leave 1 by chance. Emulated rows carry no speed.
    Source: Tang, Tang and Chan 2003 and Tango 1998 for the intervals; arXiv 2411.00640 and 2602.10144 for pairing.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("jinja2", "pandas", "scipy", "tabulate")
    extra: ClassVar[str | None] = "analysis"

    def render(self, results: Results, out: Path) -> Iterable[Path]:
        summary = summarize(results)
        written = [_write(out / "report.md", _page(summary))]
        written.append(_write(out / "table.md", sections.summary_section(summary)))
        written.append(export.write_csv(export.row_table(summary), out / "table.csv"))
        written.append(_latex(summary, out / "table.tex"))
        written.append(export.write_csv(export.comparison_table(summary), out / "comparisons.csv"))
        written.append(export.write_csv(export.metric_table(summary), out / "metrics.csv"))
        return written


def _write(file: Path, paragraphs: Iterable[str]) -> Path:
    file.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8", newline="\n")
    return file


def _page(summary: Summary) -> Iterator[str]:
    """Yields the page's paragraphs; a section without content leaves no heading."""
    yield "# What compression kept, gained and cost"
    yield "## Answer"
    yield from answer(summary)
    for title, paragraphs in (
        ("Summary", sections.summary_section(summary)),
        ("Figures", _figures(summary)),
        ("Tasks", sections.task_sections(summary)),
        ("Items that could not be compared", sections.items_section(summary)),
        ("What the runtime alone changes", sections.runtime_section(summary)),
        ("Speed and memory", sections.speed_section(summary)),
        ("Cost of compressing", sections.cost_section(summary)),
        ("What is stored, as proved from the files", stored_section(summary)),
        ("What did not run, and why", sections.trouble_section(summary)),
        ("Notes", notes_section(summary)),
    ):
        told = list(paragraphs)
        if told:
            yield f"## {title}"
            yield from told


def _figures(summary: Summary) -> Iterator[str]:
    if any(entry.retention for entry in summary.entries):
        yield from (f"![{title}]({name})" for name, title in FIGURES)


def _latex(summary: Summary, file: Path) -> Path:
    """Writes the main table of all families for LaTeX with booktabs."""
    import pandas as pd

    shown = sections.summary_rows(summary, summary.entries)
    # The rows' words are written for Markdown; LaTeX has escapes of its own.
    words = [(entry.row.family, entry.row.label, summary.place(entry), entry.row.outcome) for entry in summary.entries]
    rows = [
        {"Family": family, **row, "Pipeline": label, "Runtime": place, "Outcome": outcome}
        for row, (family, label, place, outcome) in zip(shown, words, strict=True)
    ]
    frame = pd.DataFrame(rows)
    text = frame.to_latex(index=False, escape=True, column_format="lll" + "r" * (len(frame.columns) - 4) + "l")
    file.write_text(text, encoding="utf-8", newline="\n")
    return file
