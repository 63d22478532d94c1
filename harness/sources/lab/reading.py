"""What a lab model reads: the family's tokenizer, and text in blocks of tokens.

The tokenizer comes from one fixed sample of all kinds of text, whatever a model is trained on, so that every model of
the family cuts text alike. The text to train on is that of `lab-text` under the model's own kinds and seed.

Shapes: N blocks, T tokens.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from harness.interfaces import Artifact, BuildReport, StageContext
from harness.record import ArtifactFacts
from harness.sources.corpus import Split, pack_blocks, read_documents
from harness.sources.lab.text import CHARACTERS, LabText
from harness.sources.lab.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from harness.sources.corpus import Blocks

SAMPLE_CHARACTERS: Final = 3_000_000
# As the family's tokenizer cuts them. `MARGIN` covers other seeds and versions: too much text costs seconds, too little
# is an error.
CHARACTERS_PER_TOKEN: Final = {"english": 3.3, "arithmetic": 1.0, "copy": 3.0, "lookup": 2.5, "qa": 3.7, "tools": 2.1}
MARGIN: Final = 1.15
FEWEST_CHARACTERS: Final = 100_000
# One in 25 characters is held out; this many of the blocks can always be had of it.
HELDOUT_ONE_IN: Final = 50
MOST_HELDOUT_BLOCKS: Final = 64


@dataclass(frozen=True)
class Lesson:
    """Blocks (N, T) to train on, and blocks of held-out text of the same kinds to measure on."""

    train_NT: Blocks
    heldout_NT: Blocks


def family_tokenizer(context: StageContext) -> PreTrainedTokenizerFast:
    """Gives the tokenizer of every lab model; the same wherever the packages of its English are the same."""
    context.progress(None, "training the family's tokenizer")
    sample = LabText("all", characters=SAMPLE_CHARACTERS)
    return train_tokenizer(read_documents(_written(sample, "tokenizer", context), "train"))


def lesson(
    kinds: Sequence[str],
    shape: tuple[int, int],
    *,
    seed: int,
    tokenizer: PreTrainedTokenizerFast,
    context: StageContext,
) -> Lesson:
    """Gives blocks of `shape` (N, T) of text of some kinds. Raises SourceError when there is not so much English."""
    from harness.stages.hf_folder import encoder, separator_token

    count, length = shape
    text = LabText(",".join(kinds), characters=characters_for(count * length, kinds), seed=seed)
    corpus = _written(text, "text", context)

    def blocks(split: Split, count: int) -> Blocks:
        return pack_blocks(
            read_documents(corpus, split),
            encode=encoder(tokenizer),
            shape=(count, length),
            separator=separator_token(tokenizer),
            seed=seed,
        )

    heldout = min(MOST_HELDOUT_BLOCKS, max(1, count // HELDOUT_ONE_IN))
    return Lesson(blocks("train", count), blocks("heldout", heldout))


def characters_for(tokens: int, kinds: Sequence[str]) -> int:
    """Gives how much text of a mixture of kinds is surely enough for so many tokens."""
    shares = {kind: CHARACTERS[kind] for kind in kinds}
    per_token = sum(shares.values()) / sum(share / CHARACTERS_PER_TOKEN[kind] for kind, share in shares.items())
    return max(FEWEST_CHARACTERS, round(tokens * per_token * MARGIN))


def _written(text: LabText, name: str, context: StageContext) -> Artifact:
    """Writes a corpus into scratch; what it notes about itself is left out, but for the versions of packages."""
    folder = context.scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    report = BuildReport()
    text.fetch(folder, context=replace(context, report=report))
    if "packages" in report.notes:
        context.report.notes["packages"] = report.notes["packages"]
    return Artifact(folder, ArtifactFacts(lineage=(), format=text.format, digest="", size_bytes=0))
