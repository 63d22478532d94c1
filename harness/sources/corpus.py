"""Text corpora: how they lie on disk, how they are read, and how they become blocks of tokens.

A corpus is an artifact of format `text`: `train.txt` and `heldout.txt`, UTF-8, documents separated by a form feed. What
trains, calibrates or prunes reads `train`; what measures reads `heldout`, so nothing is judged on text it has seen.
Documents are shuffled by a seed, joined with an end token between them and cut into blocks of equal length (packing),
so that no position is padding. A corpus of exercises also carries them as pairs of prompt and answer, one JSON object a
line in `train.pairs.jsonl` and `heldout.pairs.jsonl`.

Shapes: N blocks, T tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import SourceError, SpecError
from harness.interfaces import Artifact
from harness.spec import Need

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Blocks = npt.NDArray[np.int64]

Split = Literal["train", "heldout"]
Encode = Callable[[str], Sequence[int]]
CorpusArgument = str | Mapping[str, object]
SEPARATOR = "\f"


def corpus_need(corpus: CorpusArgument) -> Need:
    """Gives the need named `corpus` for a stage's `corpus` argument.

    A string is a source (`docstrings:default`). A mapping says how to make the text from a model, by default from the
    family's reference: `{"stages": [{"use": "capture.text", "args": {...}}]}`. Raises ValueError for anything else.
    """
    if isinstance(corpus, str):
        scheme, colon, reference = corpus.partition(":")
        if not (scheme and colon and reference):
            raise ValueError(
                f"corpus is {corpus!r}; allowed: a source such as 'docstrings:default', or an object with `stages`"
            )
        return Need(name="corpus", source=corpus)
    if not isinstance(corpus, Mapping) or not corpus.get("stages"):
        raise ValueError(
            f"corpus is {corpus!r}; allowed: a source such as 'docstrings:default', or an object with `stages`"
        )
    return Need.model_validate({"name": "corpus", **corpus})


def write_documents(out: Path, *, train: Iterable[str], heldout: Iterable[str]) -> None:
    """Writes both files of a corpus into the folder `out`. Documents must not contain form feeds."""
    for split, documents in (("train", train), ("heldout", heldout)):
        # newline="" keeps carriage returns inside documents as they are, here and in `read_documents`.
        with (out / f"{split}.txt").open("w", encoding="utf-8", newline="") as file:
            file.write(SEPARATOR.join(documents))


def read_documents(corpus: Artifact, split: Split) -> list[str]:
    """Gives the documents of one split in the order they lie in the file.

    Raises SpecError when the artifact is no corpus and SourceError when the split has no text.
    """
    if corpus.format != "text":
        raise SpecError("a corpus must be an artifact of format text", found=corpus.format, allowed=["text"])
    file = corpus.path / f"{split}.txt"
    with file.open(encoding="utf-8", newline="") as opened:
        documents = [document for document in opened.read().split(SEPARATOR) if document.strip()]
    if not documents:
        raise SourceError(f"the corpus has no {split} text", file=file, remedy="choose a larger corpus")
    return documents


class Pair(BaseModel):
    """A prompt and the text that should follow it. The kind says what sort of exercise it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    prompt: str
    answer: str


def write_pairs(out: Path, *, train: Iterable[Pair], heldout: Iterable[Pair]) -> None:
    """Writes the pairs of both splits into the folder `out`, beside the documents they come from."""
    for split, pairs in (("train", train), ("heldout", heldout)):
        with (out / f"{split}.pairs.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(f"{pair.model_dump_json()}\n" for pair in pairs)


def read_pairs(corpus: Artifact, split: Split) -> list[Pair]:
    """Gives the pairs of one split in the order they lie in the file.

    Raises SpecError when the corpus has no pairs, or a line that is none.
    """
    file = corpus.path / f"{split}.pairs.jsonl"
    if corpus.format != "text" or not file.is_file():
        remedy = "name a corpus of exercises, such as 'lab-text:qa'"
        raise SpecError("the corpus has no pairs of prompt and answer", file=file, remedy=remedy)
    pairs: list[Pair] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                pairs.append(Pair.model_validate_json(line))
            except ValidationError as error:
                said = error.errors()[0]["msg"]
                raise SpecError("a line is no pair of prompt and answer", file=f"{file}:{number}", found=said) from None
    if not pairs:
        raise SpecError("the corpus has no pairs of prompt and answer", file=file, remedy="choose a larger corpus")
    return pairs


def pack_blocks(
    documents: Sequence[str], *, encode: Encode, shape: tuple[int, int], separator: int, seed: int | None = 0
) -> Blocks:
    """Gives tokens (N, T) for `shape` (N, T), with the token `separator` after every document.

    Only as many documents are encoded as are needed. They come in the order of a shuffle by `seed`, or as they are when
    it is None. The last document may be cut, and blocks start in the middle of documents. Raises SourceError when there
    is too little text: text is never repeated silently.
    """
    import numpy as np

    count, length = shape
    order = list(range(len(documents)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    tokens: list[int] = []
    for index in order:
        if len(tokens) >= count * length:
            break
        tokens.extend(encode(documents[index]))
        tokens.append(separator)
    if len(tokens) < count * length:
        raise SourceError(
            f"the corpus has {len(tokens)} tokens and {count * length} are asked for ({count} blocks of {length})",
            remedy="ask for fewer tokens or choose a larger corpus",
        )
    return np.asarray(tokens[: count * length], dtype=np.int64).reshape(count, length)
