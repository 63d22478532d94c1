"""Every exception the harness raises on purpose, as one tree.

    HarnessError
    ├── UserError            a mistake the user can fix: printed without a traceback, exit code 2
    │   ├── SpecError        a suite, matrix or argument is wrong
    │   ├── PluginNotFound   no plug-in of that kind and name
    │   ├── SourceError      a model, a corpus or a package cannot be had
    │   └── StoreError       records cannot be read or written
    ├── Unsupported          this cell cannot run here; recorded as `unsupported`, the run goes on
    ├── ModelError           the model answered with something that is no answer (NaN, infinities)
    └── CorruptArtifact      bytes on disk are not the bytes that were built

A programmer's error is an `assert`. Whatever else a plug-in raises is recorded as `failed` with its traceback in the
cell's log.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import TypedDict, Unpack


class HarnessError(Exception):
    """Root of the tree; never raised itself."""


class Details(TypedDict, total=False):
    """Where a mistake is, what stands there, what could stand there, and what to do."""

    file: object
    key: str | None
    found: object
    allowed: Iterable[str] | str | None
    remedy: str | None


class UserError(HarnessError):
    """A mistake the user can fix.

    Every detail may be left out; what is given is printed on a line of its own, in the order of `Details`.
    """

    def __init__(self, message: str, **details: Unpack[Details]) -> None:
        self.message, self.details = message, details
        super().__init__("\n".join([message, *self._lines()]))

    @property
    def reason(self) -> str:
        """The mistake in one line, without the remedy."""
        told = [" ".join(line.split()) for line in self._lines() if not line.startswith("  remedy:")]
        return f"{self.message} ({'; '.join(told)})" if told else self.message

    @property
    def remedy(self) -> str:
        """What to do, or nothing."""
        return self.details.get("remedy") or ""

    def _lines(self) -> Iterator[str]:
        allowed = self.details.get("allowed")
        shown: dict[str, object] = {
            "file": self.details.get("file"),
            "key": self.details.get("key"),
            "found": repr(self.details["found"]) if self.details.get("found") is not None else None,
            "allowed": allowed if isinstance(allowed, str) or allowed is None else ", ".join(sorted(allowed)),
            "remedy": self.details.get("remedy"),
        }
        return (f"  {name + ':':<9}{value}" for name, value in shown.items() if value is not None)


class SpecError(UserError):
    """A suite, a matrix or a plug-in's argument is wrong."""


class PluginNotFound(UserError):
    """No plug-in of that kind goes by that name."""


class SourceError(UserError):
    """A model, a corpus or a package cannot be had (offline, missing, not a model)."""


class StoreError(UserError):
    """Records cannot be written (disk full, read-only) or read (another schema, truncated)."""


class Unsupported(HarnessError):
    """The cell cannot run here; the reason and the remedy stay in the table."""

    def __init__(self, reason: str, *, remedy: str = "") -> None:
        self.reason, self.remedy = reason, remedy
        super().__init__(f"{reason}; {remedy}" if remedy else reason)


class ModelError(HarnessError):
    """The model answered with something that is no answer: NaN or infinite log-probabilities."""


class CorruptArtifact(HarnessError):
    """Bytes on disk are not the bytes that were built; the artifact is built again."""


def closest(found: str, allowed: Iterable[str]) -> str | None:
    """Gives a did-you-mean sentence, or None when nothing is near."""
    near = difflib.get_close_matches(found, list(allowed), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else None
