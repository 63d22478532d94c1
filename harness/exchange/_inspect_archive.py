"""Reading the two forms of an Inspect log: a zip archive of JSON files (`.eval`) and one JSON file (`.json`).

The archive is a stranger's: nothing is extracted, so that names in it lead nowhere; only `header.json` and
`samples/*.json` are read, one at a time, each within `MAX_MEMBER_BYTES` whatever the archive says of its size, and no
more than `MAX_MEMBERS` of them. Inspect packs with Zstandard, which Python's own zip reader knows from 3.14 on; until
then pyarrow unpacks it where it is installed, and the checksum is checked here.
"""

from __future__ import annotations

import importlib.util
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from harness.errors import SourceError
from harness.exchange.reading import MEBIBYTE, Node, load, parse

HEADER, SAMPLES = "header.json", "samples/"
MAX_MEMBER_BYTES = 256 * MEBIBYTE
MAX_MEMBERS = 1_000_000
ZSTANDARD = 93
READABLE = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Of a member: signature, then at bytes 26 and 28 the lengths of its name and of its extra field (APPNOTE 4.3.7)."""
CONVERT = "inspect log convert --to json --output-dir OUT LOG"


def header(file: Path) -> Node:
    """Gives the log without its samples. Raises SourceError."""
    if not is_archive(file):
        return load(file)
    with _opened(file) as archive:
        if HEADER not in archive.namelist():
            raise SourceError(
                "the log has no header: its run did not end",
                file=file,
                found=", ".join(archive.namelist()[:5]),
                allowed=HEADER,
                remedy="let the run end, or `inspect eval-retry` it",
            )
        return _member(file, archive, archive.getinfo(HEADER))


def samples(file: Path) -> Iterator[Node]:
    """Yields the samples, each knowing the member it came from."""
    if not is_archive(file):
        found = load(file).get("samples")
        yield from found.array() if found.value is not None else []
        return
    with _opened(file) as archive:
        members = [one for one in archive.infolist() if one.filename.startswith(SAMPLES) and not one.is_dir()]
        if len(members) > MAX_MEMBERS:
            raise SourceError(
                "the archive has too many members", file=file, found=len(members), allowed=str(MAX_MEMBERS)
            )
        for member in members:
            yield _member(file, archive, member)


def is_archive(file: Path) -> bool:
    """True for a file that begins as a zip archive does."""
    with file.open("rb") as opened:
        return opened.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _opened(file: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise SourceError(f"the archive is damaged: {error}", file=file, remedy="copy the log again") from error


def _member(file: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Node:
    place = f"{file}:{info.filename}"
    if info.file_size > MAX_MEMBER_BYTES:
        raise _too_large(place, info.file_size)
    if info.flag_bits & 1:
        raise SourceError("this member is encrypted", file=place, remedy="unpack the log with its tool")
    try:
        if info.compress_type in READABLE:
            with archive.open(info) as opened:
                found = opened.read(MAX_MEMBER_BYTES + 1)
        elif info.compress_type == ZSTANDARD:
            found = _zstandard(file, info, place)
        else:
            raise SourceError(
                "this member is packed in a way that cannot be read here",
                file=place,
                found=f"zip method {info.compress_type}",
                allowed="stored, deflated, Zstandard",
                remedy=f"write the log as JSON: {CONVERT}",
            )
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        raise SourceError(f"the archive is damaged: {error}", file=place, remedy="copy the log again") from error
    if len(found) > MAX_MEMBER_BYTES:
        raise _too_large(place, len(found))
    return parse(found, place)


def _zstandard(file: Path, info: zipfile.ZipInfo, place: str) -> bytes:
    if importlib.util.find_spec("pyarrow") is None:
        raise SourceError(
            "this member is packed with Zstandard",
            file=place,
            allowed="with pyarrow stored, deflated and Zstandard; without it the first two",
            remedy=f"pip install 'compression-harness[analysis]', or write the log as JSON: {CONVERT}",
        )
    import pyarrow as pa

    with file.open("rb") as opened:
        opened.seek(info.header_offset)
        start = opened.read(LOCAL_HEADER.size)
        if len(start) < LOCAL_HEADER.size or start[:4] != b"PK\x03\x04":
            raise zipfile.BadZipFile("a member does not start where the directory says")
        _, name, extra = LOCAL_HEADER.unpack(start)
        opened.seek(name + extra, 1)
        packed = opened.read(info.compress_size)
    # pyarrow raises OSError for what is no Zstandard; a stream stops at the limit, whatever it would unpack to.
    with pa.CompressedInputStream(pa.BufferReader(packed), "zstd") as stream:
        found = bytes(stream.read(MAX_MEMBER_BYTES + 1))
    if len(found) <= MAX_MEMBER_BYTES and zlib.crc32(found) != info.CRC:
        raise zipfile.BadZipFile("a checksum does not fit")
    return found


def _too_large(place: str, size: int) -> SourceError:
    return SourceError(
        "this member is larger than it can be",
        file=place,
        found=f"{size} bytes or more",
        allowed=f"at most {MAX_MEMBER_BYTES // MEBIBYTE} MiB",
        remedy=f"log without images and events, or leave the sample out: {CONVERT}",
    )
