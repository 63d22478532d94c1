"""A corpus of exercises for tests of self-distillation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.interfaces import Artifact
from harness.sources.corpus import Pair, write_documents, write_pairs
from tests.building import artifact

PAIRS = tuple(Pair(kind="sum", prompt=f"{a}+{b}=", answer=str(a + b)) for a in range(6) for b in range(6))


def exercises(folder: Path, *, train: Sequence[Pair] = PAIRS[:24], heldout: Sequence[Pair] = PAIRS[24:]) -> Artifact:
    """Writes a corpus of pairs."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [[f"{one.prompt}{one.answer}\n" for one in pairs] for pairs in (train, heldout)]
    write_documents(folder, train=texts[0], heldout=texts[1])
    write_pairs(folder, train=train, heldout=heldout)
    return artifact(folder, "text")
