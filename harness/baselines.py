"""Baselines: records that somebody decided to hold others against, kept with the digest of every byte.

    <results>/baselines/<name>/current.json            which version counts, and every version there ever was
    <results>/baselines/<name>/<digest>/pin.json       what was pinned, from where and when
    <results>/baselines/<name>/<digest>/records/...    the newest attempt of every cell, as a store of its own
    <results>/baselines/<name>/<digest>/noise.json     the noise floor, where one was measured

A baseline changes when `set` is called and at no other time: a better night does not become the baseline by itself.
Reading checks every byte, so that nobody edits a baseline until the build passes.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError

from harness.errors import StoreError, closest
from harness.spec import Value, digest
from harness.store import RECORD, ROWS, Store, disk_errors, write_aside

FOLDER = "baselines"
SCHEMA_VERSION = 1
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
KEPT = (RECORD, ROWS, "observations.jsonl")
CURRENT, PIN, NOISE, RECORDS = "current.json", "pin.json", "noise.json", "records"


class Pin(Value):
    """One version of a baseline: its digest, its origin, and the digest of every file and artifact in it."""

    schema_version: int = SCHEMA_VERSION
    name: str
    digest: str
    set_at: str
    origin: str
    cells: tuple[str, ...] = ()
    files: Mapping[str, str]
    artifacts: Mapping[str, str] = Field(default_factory=dict)

    @property
    def has_noise(self) -> bool:
        """True when the noise floor was measured and pinned with the records."""
        return NOISE in self.files


class Current(Value):
    """The version that counts and the history, newest last."""

    schema_version: int = SCHEMA_VERSION
    digest: str
    history: tuple[str, ...]


T = TypeVar("T", Pin, Current)


@dataclass(frozen=True)
class Baseline:
    """A baseline that was read and found unchanged."""

    pin: Pin
    store: Store
    folder: Path

    @property
    def noise(self) -> str | None:
        """The noise floor as JSON, where there is one."""
        file = self.folder / NOISE
        return file.read_text(encoding="utf-8") if self.pin.has_noise else None


def pin(name: str, store: Store, *, results: Path, noise: str | None = None) -> Pin:
    """Copies the newest attempt of every cell aside and makes it the baseline of that name. Raises StoreError."""
    if not re.fullmatch(NAME, name):
        raise StoreError("a baseline cannot be called that", found=name, allowed="letters, digits, dots, dashes")
    with disk_errors(results):
        return _pinned(name, store, results / FOLDER / name, noise)


def _pinned(name: str, store: Store, root: Path, noise: str | None) -> Pin:
    aside = root / "partial"
    shutil.rmtree(aside, ignore_errors=True)
    artifacts, cells = {}, []
    for record, attempt in store.latest_with_folders():
        kept = aside / RECORDS / attempt.parent.name / attempt.name
        kept.mkdir(parents=True)
        for file in (attempt / part for part in KEPT if (attempt / part).exists()):
            shutil.copyfile(file, kept / file.name)
        cells.append(f"{record.cell} ({record.outcome.value})")
        if record.artifact and "model" in record.artifacts:
            artifacts[record.artifacts["model"]] = record.artifact.digest
    if noise is not None:
        (aside / NOISE).write_text(noise, encoding="utf-8")
    files = _digests(aside)
    made = Pin(
        name=name,
        digest=digest(files),
        set_at=datetime.now(UTC).isoformat(timespec="seconds"),
        origin=str(store.root),
        cells=tuple(sorted(cells)),
        files=files,
        artifacts=artifacts,
    )
    (aside / PIN).write_text(made.model_dump_json(indent=1), encoding="utf-8")
    if (root / made.digest).exists():
        shutil.rmtree(aside)
    else:
        aside.rename(root / made.digest)
    before = _current(root).history if (root / CURRENT).exists() else ()
    history = (*(one for one in before if one != made.digest), made.digest)
    write_aside(root / CURRENT, Current(digest=made.digest, history=history).model_dump_json(indent=1))
    return made


def load(name: str, *, results: Path) -> Baseline:
    """Gives the current version of a baseline, every byte checked. Raises StoreError."""
    root = results / FOLDER / name
    if not (root / CURRENT).exists():
        there = names(results)
        remedy = closest(name, there) or f"harness baseline set {name} RECORDS"
        raise StoreError("there is no such baseline", file=root, found=name, allowed=there or "none yet", remedy=remedy)
    folder = root / _current(root).digest
    pinned = _read(folder / PIN, Pin)
    found = _digests(folder)
    if found != dict(pinned.files):
        changed = sorted(key for key in found.keys() | pinned.files.keys() if found.get(key) != pinned.files.get(key))
        raise StoreError(
            "the baseline is not what was pinned",
            file=folder / changed[0],
            found="other bytes" if changed[0] in found else "no such file",
            remedy=f"restore it, or pin anew: harness baseline set {name} RECORDS",
        )
    return Baseline(pinned, Store(folder / RECORDS), folder)


def names(results: Path) -> list[str]:
    """Gives the names of all baselines."""
    return sorted(file.parent.name for file in (results / FOLDER).glob(f"*/{CURRENT}"))


def versions(name: str, *, results: Path) -> Sequence[Pin]:
    """Gives all versions of a baseline, the current one last. Raises StoreError."""
    current = load(name, results=results)
    root = results / FOLDER / name
    before = [one for one in _current(root).history if one != current.pin.digest]
    return [*(_read(root / one / PIN, Pin) for one in before), current.pin]


def _current(root: Path) -> Current:
    return _read(root / CURRENT, Current)


def _read(file: Path, shape: type[T]) -> T:
    remedy = "restore the file, or pin the baseline anew: harness baseline set NAME RECORDS"
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
        if plain.get("schema_version") != SCHEMA_VERSION:
            found, allowed = plain.get("schema_version"), str(SCHEMA_VERSION)
            raise StoreError("the baseline has another schema", file=file, found=found, allowed=allowed, remedy=remedy)
        return shape.model_validate(plain)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise StoreError(f"the baseline cannot be read: {error}", file=file, remedy=remedy) from error


def _digests(folder: Path) -> dict[str, str]:
    """Gives the SHA-256 of every file but the pin itself, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != PIN:
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
