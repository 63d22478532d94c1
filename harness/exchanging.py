"""Brings foreign logs into a store and takes a store's records out in foreign forms.

An imported record is an attempt like any other: it lies under its cell, and a report or a gate reads it without
knowing where it came from. The same log twice is one attempt: what is equal to a record and its rows that are there is
not stored again.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from harness import document, plugins
from harness.errors import SourceError, StoreError
from harness.interfaces import Exporter, Imported, Importer
from harness.record import Record
from harness.spec import Use
from harness.store import RUNNING_ROWS, Store, read_rows

FULL_OR_CLOSED = frozenset(
    {errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST}
)


def import_into(form: str | None, files: Iterable[Path], store: Store) -> list[Record]:
    """Stores what files hold and gives the records, also those that were there; nothing is stored if one is wrong.

    `form` names an importer, or says one with arguments: `{use: llama_cpp, args: {text: wikitext-2}}`; without it every
    file is looked at. Raises SourceError and StoreError.
    """
    found = [one for file in files for one in _importer(form or detect(file)).read(file)]
    for one in found:
        if not _is_there(store, one):
            _put(store, one)
    return [one.record for one in found]


def export(form: str, store: Store, out: Path) -> list[Path]:
    """Writes a store's latest records in a foreign form and gives the files. Raises StoreError, SourceError."""
    store.latest_with_folders()  # raises when there is nothing to write, before a folder is made
    exporter = cast(Exporter, plugins.build("exporters", _use(form)))
    with _disk_errors(out, "choose another folder with --out"):
        out.mkdir(parents=True, exist_ok=True)
        written = exporter.write(store, out)
    if not written:
        raise SourceError(
            f"no record here has numbers that {form} could hold", file=store.root, remedy=f"`harness explain {form}`"
        )
    return written


def detect(file: Path) -> str:
    """Names the importer that recognizes a file or folder. Raises SourceError when none or several do."""
    if not file.exists():
        raise SourceError("there is no such file", file=file, remedy="check the path")
    names = plugins.installed("importers")
    try:
        found = [name for name in names if _importer(name).recognizes(file)]
    except OSError as error:
        raise SourceError(f"cannot read the file: {error.strerror}", file=file, remedy="check its rights") from error
    if len(found) == 1:
        return found[0]
    raise SourceError(
        "several importers know this file" if found else "no importer knows this file",
        file=file,
        found=", ".join(found) or _described(file),
        allowed=names,
        remedy="name the importer: --format NAME; `harness explain NAME` says what it reads",
    )


def _described(file: Path) -> str:
    if file.is_dir():
        return "a folder with " + (", ".join(sorted(one.name for one in file.iterdir())[:5]) or "nothing in it")
    with file.open("rb") as opened:
        return opened.read(40).decode("utf-8", errors="replace")


def _importer(form: str) -> Importer:
    return cast(Importer, plugins.build("importers", _use(form)))


def _use(said: str) -> Use:
    """Gives a plug-in from its name or, with arguments, from what a matrix would say: `{use: ..., args: {...}}`."""
    return document.read(said, Use, origin=Path("--format")) if said.startswith("{") else Use(use=said)


def _is_there(store: Store, one: Imported) -> bool:
    cell = one.record.cell.id
    attempts = [path for path in store.root.glob(f"*--{cell}/attempt-*") if path.suffix != ".partial"]
    return any(store.read(path) == one.record and tuple(read_rows(path)) == one.rows for path in attempts)


def _put(store: Store, one: Imported) -> None:
    with store.attempt(one.record.cell) as folder:
        # Escaped, so that a line separator inside an answer does not end the line.
        lines = (json.dumps(row.model_dump(mode="json"), ensure_ascii=True) + "\n" for row in one.rows)
        with (
            _disk_errors(folder, "free space there, or give another folder with --results"),
            (folder / RUNNING_ROWS).open("w", encoding="utf-8") as rows,
        ):
            rows.writelines(lines)
        store.put(one.record, folder)


@contextmanager
def _disk_errors(folder: Path, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_OR_CLOSED:
            raise
        reason = f"the files cannot be written: {error.strerror}"
        raise StoreError(reason, file=error.filename or folder, remedy=remedy) from error
