"""Records, append-only: one folder per cell and attempt, renamed into place when it is complete.

    <root>/<family>--<pipeline>--<runtime>--<cell id>/attempt-0001/record.json, observations.parquet, log.txt

Rows are JSON lines while a cell runs, and stay so in an environment without pyarrow.

While a cell runs its folder is called `attempt-0001.partial` and is locked; one whose lock is free was left by a
harness that was killed, and `recover` turns it into a record that says so. Nothing is ever overwritten: a failed cell
is tried again in a new attempt. Records of another schema version are refused, never guessed at.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from harness.errors import StoreError
from harness.record import SCHEMA_VERSION, Failure, Observation, Outcome, Record
from harness.spec import Cell

T = TypeVar("T", Record, Cell)
LOCK, CELL, RECORD = "lock", "cell.json", "record.json"
ROWS = "observations.parquet"
RUNNING_ROWS = "observations.jsonl"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST})


@dataclass(frozen=True)
class Store:
    """Records below one folder. Reading raises StoreError with file, found, allowed and remedy."""

    root: Path

    @contextmanager
    def attempt(self, cell: Cell) -> Iterator[Path]:
        """Gives a locked folder to run a cell in; `put` completes it. Raises StoreError when the disk refuses."""
        with disk_errors(self.root):
            folder = self._folder(cell) / f"attempt-{len(self.attempts(cell)) + 1:04d}.partial"
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK).open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise StoreError("another harness is measuring this cell", file=folder, remedy="wait for it") from error
            with disk_errors(self.root):
                write_aside(folder / CELL, cell.model_dump_json())
            yield folder

    def put(self, record: Record, partial: Path) -> Path:
        """Completes an attempt: rows to Parquet, the record beside them, then one rename. Gives the folder."""
        with disk_errors(self.root):
            _rows_to_parquet(partial)
            write_aside(partial / RECORD, record.model_dump_json(indent=1))
            return _complete(partial)

    def recover(self) -> list[Record]:
        """Records the attempts that a killed harness left behind, with the rows they had."""
        recovered = []
        for partial in sorted(self.root.glob("*/attempt-*.partial")):
            with contextlib.suppress(BlockingIOError), disk_errors(self.root), (partial / LOCK).open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if (partial / RECORD).exists():
                    recovered.append(self.read(_complete(partial)))
                elif (partial / CELL).exists():
                    recovered.append(self._abandoned(partial))
                else:
                    shutil.rmtree(partial)
        return recovered

    def _abandoned(self, partial: Path) -> Record:
        failure = Failure(phase="launch", reason="the harness was killed", advice="the cell is measured again")
        record = Record(cell=_read(partial / CELL, Cell), outcome=Outcome.FAILED, error=failure)
        self.put(record, partial)
        return record

    def latest(self, cell: Cell) -> Record | None:
        """Gives the newest record of a cell, or None."""
        attempts = self.attempts(cell)
        return self.read(attempts[-1]) if attempts else None

    def done(self, cell: Cell, versions: Mapping[str, str], artifacts: Mapping[str, str]) -> bool:
        """True when a cell has numbers that the same plug-ins, at the same versions, gave on the same artifact."""
        record = self.latest(cell)
        if record is None or not record.outcome.is_measured:
            return False
        return (record.versions, record.artifacts) == (versions, artifacts)

    def read(self, folder: Path) -> Record:
        """Reads one attempt's record."""
        return _read(folder / RECORD, Record)

    @property
    def records(self) -> list[Record]:
        """The latest record of every cell, ordered by folder."""
        return [record for record, _ in self.latest_with_folders()]

    def latest_with_folders(self) -> list[tuple[Record, Path]]:
        """Gives the latest record of every cell with its folder. Raises StoreError when there are none."""
        folders = [_finished(cell)[-1] for cell in sorted(self.root.glob("*")) if _finished(cell)]
        if not folders:
            raise StoreError("there are no records here", file=self.root, remedy="run a matrix: harness quickstart")
        return [(self.read(folder), folder) for folder in folders]

    def observations(self, record: Record) -> Sequence[Observation]:
        """Gives the rows of a cell's latest attempt, in the order they were seen."""
        attempts = self.attempts(record.cell)
        return read_rows(attempts[-1]) if attempts else []

    def attempts(self, cell: Cell) -> list[Path]:
        """Gives the folders of a cell's finished attempts, oldest first."""
        return _finished(self._folder(cell))

    def _folder(self, cell: Cell) -> Path:
        existing = sorted(self.root.glob(f"*--{cell.id}"))
        slug = "--".join((cell.model.family, cell.pipeline.name, cell.runtime.use))
        return existing[0] if existing else self.root / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', slug)}--{cell.id}"


def _finished(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("attempt-*") if path.suffix != ".partial")


def _complete(partial: Path) -> Path:
    """Takes away what only a running cell needs and gives the folder its final name."""
    for left in (LOCK, CELL, "job.json", "answer.json"):
        (partial / left).unlink(missing_ok=True)
    return partial.rename(partial.with_suffix(""))


def read_rows(folder: Path) -> list[Observation]:
    """Reads an attempt's rows back as they were written; an attempt that saw nothing has none."""
    file = folder / ROWS
    if not file.exists():
        lines = _lines(folder / RUNNING_ROWS)
        return [Observation.model_validate_json(line) for line in lines]
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"the rows cannot be read: {error}", file=file, remedy="remove this attempt's folder and run again"
        ) from error
    return [
        Observation(
            evaluation=row["evaluation"], task=row["task"], sample=row["sample"], values=json.loads(row["values"])
        )
        for row in table.to_pylist()
    ]


def _rows_to_parquet(partial: Path) -> None:
    """Turns the rows of a running cell into Parquet: typed `score` and `chance` for queries, all values as JSON."""
    rows = [json.loads(line) for line in _lines(partial / RUNNING_ROWS)]
    if not rows or importlib.util.find_spec("pyarrow") is None:
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "evaluation": pa.array([row["evaluation"] for row in rows], pa.string()),
        "task": pa.array([row["task"] for row in rows], pa.string()),
        "sample": pa.array([row["sample"] for row in rows], pa.string()),
        "score": pa.array([row["values"].get("score") for row in rows], pa.float64()),
        "chance": pa.array([row["values"].get("chance") for row in rows], pa.float64()),
        "values": pa.array([json.dumps(row["values"], sort_keys=True) for row in rows], pa.string()),
    }
    pq.write_table(pa.table(columns), partial / f"{ROWS}.partial", compression="zstd")
    (partial / f"{ROWS}.partial").rename(partial / ROWS)
    (partial / RUNNING_ROWS).unlink()


def _lines(file: Path) -> list[str]:
    """Gives the complete lines of a file of JSON lines; a child that was killed may have left half a line."""
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    # Not splitlines: an answer may hold characters that count as line ends and that JSON leaves as they are.
    return [line for line in text.split("\n") if line.endswith("}")]


def write_aside(file: Path, text: str) -> None:
    """Writes a file beside its place and renames it, so that nobody reads half of it."""
    aside = file.with_name(file.name + ".partial")
    aside.write_text(text, encoding="utf-8")
    aside.rename(file)


def _read(file: Path, shape: type[T]) -> T:
    remedy = f"move {file.parent} away; the cell is then measured again"
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(f"the record cannot be read: {error.strerror}", file=file, remedy=remedy) from error
    except ValueError as error:
        raise StoreError(f"the record is cut short or damaged: {error}", file=file, remedy=remedy) from error
    if shape is Record and plain.get("schema_version") != SCHEMA_VERSION:
        raise _other_schema(file, plain.get("schema_version"))
    try:
        return shape.model_validate(plain)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise StoreError(f"the record is damaged: {first['msg']}", file=file, key=key, remedy=remedy) from error


def _other_schema(file: Path, found: object) -> StoreError:
    newer = isinstance(found, int) and found > SCHEMA_VERSION
    remedy = "upgrade the harness" if newer else "move the folder away and run again; this harness measures it anew"
    return StoreError(
        "the record has another schema",
        file=file,
        key="schema_version",
        found=found,
        allowed=str(SCHEMA_VERSION),
        remedy=remedy,
    )


@contextmanager
def disk_errors(folder: Path, *, what: str = "records", option: str = "--results") -> Iterator[None]:
    """Turns a disk that is full, closed or no folder into a StoreError that says what to do.

    `what` was to be written, and `option` names another folder for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL | CLOSED:
            raise
        remedy = "free space there" if error.errno in FULL else f"give another folder with {option}"
        reason = f"{what} cannot be written: {error.strerror}"
        raise StoreError(reason, file=error.filename or folder, remedy=remedy) from error
