"""Reading files that strangers wrote: JSON whose mistakes are told where they stand, within limits on size.

Nothing is trusted: sizes are checked before and while bytes are read, nesting that exhausts the stack is a mistake of
the file, and a value of the wrong type names its file, line and key. `Node` walks parsed JSON and remembers where it
is.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import SourceError

MEBIBYTE = 2**20
MAX_FILE_BYTES = 512 * MEBIBYTE
"""Of a file that is read as a whole."""
MAX_LINE_BYTES = 64 * MEBIBYTE
"""Of a line of a file that is read line by line."""
SHOWN = 80


@dataclass(frozen=True)
class Node:
    """A value in a JSON document, with the place it came from and its key there."""

    value: Any
    place: str
    key: str = ""

    def get(self, key: str) -> Node:
        """Gives a value of a mapping; its value is None where the key is absent."""
        return Node(self.mapping().get(key), self.place, f"{self.key}.{key}".lstrip("."))

    def need(self, key: str) -> Node:
        """Gives a value of a mapping. Raises SourceError where it is absent."""
        found = self.get(key)
        if found.value is None:
            keys = ", ".join(sorted(map(str, self.mapping()))[:20])
            raise SourceError(
                "a key is missing",
                file=self.place,
                key=found.key,
                found=keys,
                remedy="is this file whole, and of that tool?",
            )
        return found

    def mapping(self) -> dict[str, Any]:
        found: dict[str, Any] = self._of(dict, "a mapping")
        return found

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yields the entries of a mapping."""
        for key in self.mapping():
            yield key, self.get(key)

    def array(self) -> list[Node]:
        """Gives the entries of a list."""
        found = self._of(list, "a list")
        return [Node(value, self.place, f"{self.key}[{index}]") for index, value in enumerate(found)]

    def text(self) -> str:
        return str(self._of(str, "text"))

    def integer(self) -> int:
        return int(self._of(int, "a whole number"))

    def number(self) -> float:
        """Gives a number, also one written as text; it may be infinite or not a number."""
        if isinstance(self.value, str):
            try:
                return float(self.value)
            except ValueError:
                raise self.wrong("a number") from None
        return float(self._of((int, float), "a number"))

    def optional_text(self) -> str | None:
        return None if self.value is None else self.text()

    def finite(self) -> float | None:
        """Gives a number where there is one, else None (`N/A`, NaN, text)."""
        if isinstance(self.value, (int, float)) and math.isfinite(self.value):
            return float(self.value)
        return None

    def wrong(self, allowed: str) -> SourceError:
        """Makes the error for a value that is not what it should be."""
        return SourceError(
            "a value is not what this format has there",
            file=self.place,
            key=self.key or "(top)",
            found=str(self.value)[:SHOWN],
            allowed=allowed,
            remedy="was the file changed, or written by another version of the tool?",
        )

    def _of(self, shape: Any, allowed: str) -> Any:
        # In Python a bool is an int, in these formats it is not.
        if not isinstance(self.value, shape) or (isinstance(self.value, bool) and shape is not bool):
            raise self.wrong(allowed)
        return self.value


def parse(text: str | bytes, place: str) -> Node:
    """Reads JSON; NaN and infinities are numbers, as Python's own writer has them. Raises SourceError."""
    try:
        return Node(json.loads(text), place)
    except RecursionError:
        raise SourceError("this JSON is nested too deeply", file=place, remedy="is this file what it seems?") from None
    except ValueError as error:
        raise SourceError(
            f"this is not JSON: {error}",
            file=place,
            found=_shown(text),
            remedy="is the file whole? a run that was killed leaves half a line",
        ) from None


def _shown(text: str | bytes) -> str:
    return (text if isinstance(text, str) else text[: 4 * SHOWN].decode("utf-8", errors="replace"))[:SHOWN]


def load(file: Path) -> Node:
    """Reads a JSON file as a whole."""
    return parse(load_bytes(file), str(file))


def load_bytes(file: Path) -> bytes:
    """Reads a file of limited size. Raises SourceError."""
    try:
        with file.open("rb") as opened:
            found = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SourceError(f"cannot read the file: {error.strerror}", file=file, remedy="check the path") from error
    if len(found) > MAX_FILE_BYTES:
        raise _too_large(str(file), MAX_FILE_BYTES)
    return found


def json_lines(file: Path) -> Iterator[Node]:
    """Yields the values of a file of JSON lines, each knowing its line; empty lines are left out."""
    try:
        with file.open("rb") as opened:
            for number, line in enumerate(iter(lambda: opened.readline(MAX_LINE_BYTES + 1), b""), start=1):
                if len(line) > MAX_LINE_BYTES:
                    raise _too_large(f"{file}:{number}", MAX_LINE_BYTES)
                if line.strip():
                    yield parse(line, f"{file}:{number}")
    except OSError as error:
        raise SourceError(f"cannot read the file: {error.strerror}", file=file, remedy="check the path") from error


@contextmanager
def recordable(file: Path) -> Iterator[None]:
    """Turns what our own values refuse (a date in the year 10^30, a NaN in an argument) into a SourceError."""
    try:
        yield
    except (ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        remedy = "was the file changed, or written by another version of the tool?"
        raise SourceError(f"a value of this file cannot be recorded: {reason}", file=file, remedy=remedy) from error


def file_digest(file: Path) -> str:
    """Gives the SHA-256 of a file: what a record was made from."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def content_digest(plain: object) -> str:
    """Gives 16 hexadecimal digits of the SHA-256 of canonical JSON, which may hold NaN."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _too_large(place: str, limit: int) -> SourceError:
    return SourceError(
        "this is larger than such a file can be",
        file=place,
        allowed=f"at most {limit // MEBIBYTE} MiB",
        remedy="is this the file you meant?",
    )
