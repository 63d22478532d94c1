"""Findings for reading: a table for the terminal, a file for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.conformance.verdicts import Report, Verdict

if TYPE_CHECKING:
    from rich.table import Table

STYLES: Final[dict[Verdict, str]] = {"passed": "green", "FAILED": "bold red", "not applicable": "dim"}


def table(report: Report) -> Table:
    """Gives the findings about one stage, a row a check."""
    from rich.table import Table
    from rich.text import Text

    made = Table("check", "verdict", "what was seen", box=None, pad_edge=False, header_style="bold")
    for finding in report.findings:
        made.add_row(
            finding.check, Text(finding.verdict, STYLES[finding.verdict]), Text(" ".join(finding.seen.split()))
        )
    return made


def summary(report: Report) -> Iterator[str]:
    """Yields the verdict about one stage in words."""
    counts = [sum(one.verdict == verdict for one in report.findings) for verdict in STYLES]
    told = ", ".join(f"{count} {verdict}" for count, verdict in zip(counts, STYLES, strict=True) if count)
    yield f"{report.stage} version {report.version}: {told}, in {report.seconds:.0f} s [{report.environment}]"


def write(reports: Sequence[Report], file: Path) -> None:
    """Writes all reports as one JSON document."""
    file.parent.mkdir(parents=True, exist_ok=True)
    plain = [report.model_dump(mode="json") for report in reports]
    file.write_text(json.dumps(plain, indent=1), encoding="utf-8")
