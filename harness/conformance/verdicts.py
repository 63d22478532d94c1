"""What a check finds, and what all of them say about one stage.

A check is a function of the bench. It gives what was seen when all is well, `NotApplicable` when the question does not
arise, and raises when something is wrong; AssertionError is how it says so itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.spec import Use, Value

Verdict = Literal["passed", "FAILED", "not applicable"]


@dataclass(frozen=True)
class NotApplicable:
    """Why a question does not arise."""

    reason: str


class Finding(Value):
    """One check: its name, the verdict, and what was seen or why not."""

    check: str
    verdict: Verdict
    seen: str
    traceback: str = ""


class Report(Value):
    """All findings about one stage, and where it ran."""

    schema_version: int = 1
    stage: Use
    version: str
    environment: str
    seconds: float
    findings: tuple[Finding, ...]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(finding for finding in self.findings if finding.verdict == "FAILED")


def require(holds: bool, otherwise: str) -> None:
    """Raises AssertionError when something does not hold, also where Python leaves out `assert`."""
    if not holds:
        raise AssertionError(otherwise)
