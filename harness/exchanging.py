"""Brings foreign logs into a store and takes a store's records out in foreign forms.

An imported record is an attempt like any other: it lies under its cell, and a report or a gate reads it without
knowing where it came from. The same log twice is one attempt: what is equal to a record and its rows that are there is
not stored again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

from harness import document, plugins
from harness.errors import SourceError
from harness.interfaces import Exporter, Imported, Importer
from harness.record import Record
from harness.store import RUNNING_ROWS, Store, disk_errors, read_rows


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
    exporter = cast(Exporter, plugins.build("exporters", document.use(form, option="--format")))
    with disk_errors(out, what="the files", option="--out"):
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
    return cast(Importer, plugins.build("importers", document.use(form, option="--format")))


def _is_there(store: Store, one: Imported) -> bool:
    attempts = store.attempts(one.record.cell)
    return any(store.read(path) == one.record and tuple(read_rows(path)) == one.rows for path in attempts)


def _put(store: Store, one: Imported) -> None:
    with store.attempt(one.record.cell) as folder:
        with disk_errors(folder):
            rows = "".join(f"{row.model_dump_json()}\n" for row in one.rows)
            (folder / RUNNING_ROWS).write_text(rows, encoding="utf-8")
        store.put(one.record, folder)
