"""Nights on disk: one store a night, a lock against two at once, and old rows thrown away.

    <results>/<matrix>-nights/lock                    held while a night runs
    <results>/<matrix>-nights/<date>/night.json       when it began, and when it ended
    <results>/<matrix>-nights/<date>/<cell>/...       a store like any other
    <results>/<matrix>-nights/<date>/decision.json    what the gate said

Every night measures anew, in a store of its own; only artifacts are shared. A night that was killed has no end in its
`night.json`, and the next start goes on with it if it is not older than 20 hours. Old nights keep their records, which
are small and make the trend, and lose rows and logs, which are not.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import ValidationError

from harness.errors import StoreError
from harness.spec import Value
from harness.store import ROWS, Store, disk_errors, write_aside

SUFFIX = "-nights"
LOCK, NIGHT = "lock", "night.json"
GOES_ON_FOR = timedelta(hours=20)
"""Less than a day, or the next night, begun at the same hour, might go on with this one by a second."""
LEFT_BEHIND = (ROWS, "observations.jsonl", "log.txt")
"""What a night loses when it is old."""


class Night(Value):
    """When a night began and, once it has, ended; `exit_code` is what it answered."""

    began_at: str
    ended_at: str | None = None
    exit_code: int | None = None


@dataclass(frozen=True)
class Nights:
    """All nights of one matrix. Raises StoreError where the disk refuses."""

    root: Path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock. Raises StoreError, with who holds it, while another night runs."""
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            opened = (self.root / LOCK).open("a+", encoding="utf-8")
        with opened as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise StoreError(
                    "another night is running",
                    file=self.root / LOCK,
                    found=lock.read().strip() or "no name",
                    remedy="wait for it, or end that process",
                ) from error
            lock.truncate(0)
            lock.write(f"process {os.getpid()}, since {_now()}")
            lock.flush()
            yield

    def begin(self) -> Path:
        """Gives the folder of tonight: a new one, or that of a night that began within 20 hours and was killed."""
        unfinished = self._unfinished()
        if unfinished is not None:
            return unfinished
        now = _now()
        name = now.replace(":", "")[:17]
        taken = len(list(self.root.glob(f"{name}*")))
        folder = self.root / (f"{name}-{taken + 1}" if taken else name)
        with disk_errors(self.root):
            folder.mkdir(parents=True)
            write(folder, Night(began_at=now))
        return folder

    def end(self, folder: Path, exit_code: int) -> None:
        """Marks a night as ended."""
        write(folder, read(folder).model_copy(update={"ended_at": _now(), "exit_code": exit_code}))

    @property
    def folders(self) -> list[Path]:
        """Every night, oldest first."""
        return sorted(file.parent for file in self.root.glob(f"*/{NIGHT}"))

    @property
    def ended(self) -> list[Path]:
        """The nights that came to their end, oldest first."""
        return [folder for folder in self.folders if read(folder).ended_at is not None]

    def stores(self) -> Sequence[Store]:
        """Gives the stores of all nights, oldest first."""
        return [Store(folder) for folder in self.folders]

    def thin_out(self, *, keep: int) -> list[Path]:
        """Takes rows and logs from all but the last `keep` nights that ended; gives what was removed."""
        assert keep >= 1
        removed = []
        for folder in self.ended[:-keep]:
            for name in LEFT_BEHIND:
                for file in sorted(folder.glob(f"**/attempt-*/{name}")):  # launches by turns lie one folder deeper
                    file.unlink()
                    removed.append(file)
        return removed

    def _unfinished(self) -> Path | None:
        latest = self.folders[-1] if self.folders else None
        if latest is None:
            return None
        night = read(latest)
        age = datetime.now(UTC) - datetime.fromisoformat(night.began_at)
        return latest if night.ended_at is None and age < GOES_ON_FOR else None


def read(folder: Path) -> Night:
    """Reads when a night began and ended. Raises StoreError."""
    file = folder / NIGHT
    try:
        return Night.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        remedy = f"move {folder} away; tonight is then a night of its own"
        raise StoreError(f"the night cannot be read: {error}", file=file, remedy=remedy) from error


def write(folder: Path, night: Night) -> None:
    """Writes when a night began and ended."""
    write_aside(folder / NIGHT, night.model_dump_json(indent=1))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
