"""Which records somebody means: a folder of records, one attempt, or cells picked out by name.

results/nightly                                  every cell of a run
results/nightly:pipeline=Q4_K_M,runtime=llama*   the cells that fit, by shell patterns
results/nightly/<cell>                           the newest attempt of a cell
results/nightly/<cell>/attempt-0003              one attempt, or its record.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.errors import SpecError, StoreError, closest
from harness.matrix import Exclusion
from harness.record import Observation, Record
from harness.store import RECORD, Store, read_rows

AXES = tuple(name for name in Exclusion.model_fields if name != "reason")


@dataclass(frozen=True)
class Selected:
    """Some records with their rows, as a reporter or a gate reads them."""

    folders: tuple[Path, ...]
    records: tuple[Record, ...]

    def observations(self, record: Record) -> Sequence[Observation]:
        """Gives the rows of one of the records."""
        return read_rows(self.folders[self.records.index(record)])


def select(text: str) -> Selected:
    """Gives what `text` stands for, in one of the forms above. Raises StoreError or SpecError."""
    path, colon, wanted = text.partition(":")
    folder = Path(path)
    folder = folder.parent if folder.name == RECORD else folder
    if (folder / RECORD).exists():
        found = [(Store(folder.parent.parent).read(folder), folder)]
    elif any(folder.glob(f"attempt-*/{RECORD}")):
        latest = sorted(one.parent for one in folder.glob(f"attempt-*/{RECORD}"))[-1]
        found = [(Store(folder.parent).read(latest), latest)]
    elif folder.is_dir():
        found = Store(folder).latest_with_folders()
    else:
        there = [one.name for one in folder.parent.glob("*")] if folder.parent.is_dir() else []
        remedy = closest(folder.name, there) or "give a folder of records, a cell's folder or an attempt's"
        raise StoreError("there is no such folder", file=folder, remedy=remedy)
    if colon:
        rule = _patterns(wanted, text)
        found = [(record, where) for record, where in found if rule.matches(record.cell)]
        if not found:
            raise SpecError("no cell fits", found=wanted, remedy=f"see which there are: harness query --results {path}")
    return Selected(tuple(where for _, where in found), tuple(record for record, _ in found))


def _patterns(wanted: str, text: str) -> Exclusion:
    pairs = [part.partition("=") for part in wanted.split(",")]
    for name, equals, _ in pairs:
        if not equals or name not in AXES:
            remedy = closest(name, AXES) or "write FOLDER:pipeline=PATTERN,runtime=PATTERN"
            raise SpecError("cells cannot be picked out like that", key=text, found=name, allowed=AXES, remedy=remedy)
    try:
        return Exclusion(reason="selected", **{name: value for name, _, value in pairs})
    except (ValidationError, TypeError) as error:
        raise SpecError(f"cells cannot be picked out like that: {error}", key=text) from error
