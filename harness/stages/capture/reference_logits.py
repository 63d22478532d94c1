"""The files that hold a reference's answers on fixed windows of text, and their reader.

Logits over a vocabulary of 50 000 words are 200 kB a token. The last hidden states with the head's matrix say the same
in a fraction of that, so they are stored where multiplying them gives the model's own logits back, and logits where it
does not (a head with a bias, logits that are scaled or capped). Arrays are `.npy` without pickle, so that any
runtime's environment can read them; texts and token ids come along, because a candidate is only comparable where its
tokenizer reads the same text as the same tokens.

    meta.json    ReferenceMeta
    tokens.npy   int64   (N, T)     prefix tokens included
    hidden.npy   float32 (N, T, D)  and head.npy float32 (V, D)
    logits.npy   float32 (N, T, V)  instead of those two

Shapes: N windows, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from harness.errors import CorruptArtifact
from harness.spec import Value

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

SCHEMA_VERSION = 1
META = "meta.json"


class Window(Value):
    """A window's text and how many UTF-8 bytes of it are predicted."""

    text: str
    predicted_bytes: int


class ReferenceMeta(Value):
    """What lies beside the arrays. `prefix` are the tokens before every text, such as a beginning-of-text token."""

    schema_version: int = SCHEMA_VERSION
    storage: Literal["hidden", "logits"]
    vocabulary: int
    length: int
    prefix: tuple[int, ...]
    windows: tuple[Window, ...]


def project(hidden_TD: Floats, head_VD: Floats) -> Floats:
    """Gives logits (T, V) from hidden states; capture checks with the function that readers use."""
    return hidden_TD @ head_VD.T


@dataclass(frozen=True)
class ReferenceLogits:
    """Opened reference answers; arrays are mapped, not read."""

    meta: ReferenceMeta
    tokens_NT: npt.NDArray[np.int64]
    stored: tuple[Floats, ...]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Opens the files. Raises CorruptArtifact when they do not fit each other."""
        try:
            meta = ReferenceMeta.model_validate_json((folder / META).read_text(encoding="utf-8"))
            names = ("hidden", "head") if meta.storage == "hidden" else ("logits",)
            tokens_NT = np.load(folder / "tokens.npy", allow_pickle=False)
            stored = tuple(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names)
        except (OSError, ValueError) as wrong:
            raise CorruptArtifact(f"{folder} holds no reference logits: {wrong}") from wrong
        shapes = _shapes(meta, hidden_size=stored[0].shape[-1])
        if [tokens_NT.shape, *(array.shape for array in stored)] != shapes or meta.schema_version != SCHEMA_VERSION:
            raise CorruptArtifact(f"{folder}: the arrays do not fit {META}")
        if tokens_NT.min() < 0 or tokens_NT.max() >= meta.vocabulary:
            raise CorruptArtifact(f"{folder}: token ids outside of the vocabulary")
        return cls(meta, tokens_NT, stored)

    def logits(self, window: int, at: slice) -> Floats:
        """Gives the reference's logits (t, V) after the tokens `at` of a window."""
        rows = np.ascontiguousarray(self.stored[0][window, at])
        return project(rows, self.stored[1]) if self.meta.storage == "hidden" else rows


def _shapes(meta: ReferenceMeta, *, hidden_size: int) -> list[tuple[int, ...]]:
    count, length, vocabulary = len(meta.windows), meta.length, meta.vocabulary
    if meta.storage == "hidden":
        return [(count, length), (count, length, hidden_size), (vocabulary, hidden_size)]
    return [(count, length), (count, length, vocabulary)]


def create_array(folder: Path, name: str, shape: tuple[int, ...]) -> Floats:
    """Creates a float32 array on disk that is filled window by window, so that memory does not grow with the text."""
    array: Floats = np.lib.format.open_memmap(folder / f"{name}.npy", mode="w+", dtype=np.float32, shape=shape)
    return array
