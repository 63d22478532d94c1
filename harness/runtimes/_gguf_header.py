"""The list of tensors at the head of a GGUF file: names, shapes and storage types, without touching a weight.

The `gguf` package reads the same list, but makes Python objects of a vocabulary of 50,000 tokens on the way: two
seconds and tens of megabytes, in a process whose memory is being measured. Here the metadata is stepped over.

Layout (GGUF versions 2 and 3, little-endian): magic, version, number of tensors, number of metadata entries, the
entries, then for each tensor its name, its dimensions, its type and its offset.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import CorruptArtifact

# Sizes of the fixed-size metadata value types, by type id: u8 i8 u16 i16 u32 i32 f32 bool, u64 i64 f64.
_FIXED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """A stored tensor; `type` is ggml's own name of its storage type (`q4_K`, `f32`)."""

    name: str
    shape: tuple[int, ...]
    type: str

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        return math.prod(self.shape)


def tensors(path: Path) -> list[Tensor]:
    """Gives the tensors a file stores, in its order. Raises CorruptArtifact when it is no GGUF file."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return list(_Cursor(data).tensors())
        except (struct.error, KeyError, UnicodeDecodeError) as broken:
            raise CorruptArtifact(f"{path.name} is no GGUF file: {broken!r}") from broken


class _Cursor:
    """A position in the file that moves on with everything read."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 0

    def tensors(self) -> Iterator[Tensor]:
        magic, version, count, entries = self._read("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise CorruptArtifact(f"a GGUF file begins with GGUF and version 2 or 3, not {magic!r} {version}")
        for _ in range(entries):
            self._skip_string()
            self._skip_value(*self._read("<I"))
        for _ in range(count):
            name = self._string()
            (dimensions,) = self._read("<I")
            shape = self._read(f"<{dimensions}Q")
            kind, _offset = self._read("<IQ")
            yield Tensor(name, shape, _type_name(kind))

    def _read(self, layout: str) -> tuple:
        values = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return values

    def _string(self) -> str:
        (length,) = self._read("<Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _skip_string(self) -> None:
        (length,) = self._read("<Q")
        self._at += length

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_string()
        elif kind == _ARRAY:
            element, count = self._read("<IQ")
            if element in _FIXED:
                self._at += count * _FIXED[element]
                return
            for _ in range(count):
                self._skip_value(element)
        else:
            self._at += _FIXED[kind]


def _type_name(kind: int) -> str:
    """Gives ggml's spelling of a storage type: lower case but for the K of the K-quants."""
    from gguf import GGMLQuantizationType

    return GGMLQuantizationType(kind).name.lower().replace("_k", "_K")
