"""Artifacts by the hash of what made them: compress once, measure on many runtimes.

A key names the source, the stages so far, their versions and the keys of everything they needed, so every prefix of a
pipeline is shared. A folder appears under its key only when it is complete (built aside, then renamed), and carries
`artifact.json` with the SHA-256 of each file; `verify` reads the bytes again, so that a cache which serves something
else than what was built is noticed.

    <root>/artifacts/<key>/artifact.json + files/...     <root>/scratch/<key>/     <root>/locks/<key>
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from harness.errors import CorruptArtifact
from harness.interfaces import Artifact
from harness.record import ArtifactFacts
from harness.spec import Value, digest

SCHEMA_VERSION = 1


class Manifest(Value):
    """What `artifact.json` says: the facts and the SHA-256 of every file by relative path."""

    schema_version: int
    key: str
    facts: ArtifactFacts
    files: dict[str, str]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Cache:
    """Artifacts below one folder; safe for several processes at once."""

    root: Path

    def folder(self, key: str) -> Path:
        """Gives the folder an artifact has, or will have."""
        return self.root / "artifacts" / key

    def scratch(self, key: str) -> Path:
        """Gives the folder for checkpoints of one build; it survives a killed attempt."""
        folder = self.root / "scratch" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def get(self, key: str) -> Artifact | None:
        """Gives the artifact, or None when it was not built. Raises CorruptArtifact when files are missing or cut."""
        manifest = self._manifest(key)
        if manifest is None:
            return None
        files = self.folder(key) / "files"
        for name, size in manifest.sizes.items():
            found = (files / name).stat().st_size if (files / name).is_file() else None
            if found != size:
                raise CorruptArtifact(f"{files / name}: {found} bytes, built with {size}")
        return Artifact(path=files, facts=manifest.facts)

    def verify(self, key: str) -> None:
        """Reads every byte again. Raises CorruptArtifact when a digest differs."""
        manifest = self._manifest(key)
        if manifest is None:
            raise CorruptArtifact(f"{self.folder(key)}: there is no manifest")
        for name, expected in manifest.files.items():
            if (found := file_digest(self.folder(key) / "files" / name)) != expected:
                raise CorruptArtifact(
                    f"{self.folder(key) / 'files' / name}: SHA-256 {found[:12]}, built as {expected[:12]}"
                )

    def discard(self, key: str) -> None:
        """Removes an artifact so that it is built again."""
        shutil.rmtree(self.folder(key), ignore_errors=True)

    @contextmanager
    def building(self, key: str) -> Iterator[Path]:
        """Holds the key's lock and gives an empty folder to build into; anything left there before is removed."""
        locks, aside = self.root / "locks", self.root / "artifacts" / f"{key}.partial"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / key).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            shutil.rmtree(aside, ignore_errors=True)
            (aside / "files").mkdir(parents=True)
            try:
                yield aside / "files"
            finally:
                shutil.rmtree(aside, ignore_errors=True)

    def commit(self, key: str, facts: ArtifactFacts) -> Artifact:
        """Puts what was built under its key, inside `building`; fills in the digest and the size."""
        aside = self.root / "artifacts" / f"{key}.partial"
        found = sorted(path for path in (aside / "files").rglob("*") if path.is_file())
        names = {path.relative_to(aside / "files").as_posix(): path for path in found}
        sizes = {name: path.stat().st_size for name, path in names.items()}
        files = {name: file_digest(path) for name, path in names.items()}
        facts = facts.model_copy(update={"digest": digest(files), "size_bytes": sum(sizes.values())})
        manifest = Manifest(schema_version=SCHEMA_VERSION, key=key, facts=facts, files=files, sizes=sizes)
        (aside / "artifact.json").write_text(manifest.model_dump_json(indent=1), encoding="utf-8")
        self.discard(key)
        aside.rename(self.folder(key))
        shutil.rmtree(self.root / "scratch" / key, ignore_errors=True)
        return Artifact(path=self.folder(key) / "files", facts=facts)

    def _manifest(self, key: str) -> Manifest | None:
        file = self.folder(key) / "artifact.json"
        if not file.exists():
            return None
        try:
            manifest = Manifest.model_validate_json(file.read_text(encoding="utf-8"))
        except (ValidationError, UnicodeDecodeError) as error:
            raise CorruptArtifact(f"{file}: not a manifest of this version") from error
        if manifest.schema_version != SCHEMA_VERSION:
            raise CorruptArtifact(f"{file}: schema {manifest.schema_version}, this harness writes {SCHEMA_VERSION}")
        return manifest


def file_digest(path: Path) -> str:
    """Gives the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def home() -> Path:
    """Gives the folder for artifacts and environments: `HARNESS_HOME`, else `.harness` in the current folder."""
    return Path(os.environ.get("HARNESS_HOME", ".harness")).absolute()
