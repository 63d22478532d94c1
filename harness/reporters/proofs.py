"""What quantizers really stored, read back from the tensors they wrote, and the kernel that computed with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from harness.record import StageCost
from harness.reporters.sections import WORDS
from harness.reporters.summary import Entry, Summary
from harness.reporters.text import NOTHING, listed, number, plain, table

COVERAGE, RELOAD = "coverage", "reload_difference"
LONGEST = 3
"""Kinds of packed layers named in one row."""


def stored_section(summary: Summary) -> Iterator[str]:
    """Yields what lies in the files of every row whose quantizer proved it; nothing where none did."""
    rows = [
        _stored(summary, entry, step, proof) for entry in summary.entries for step, proof in [_proof(entry)] if step
    ]
    if rows:
        yield (
            "Bits are those of the bytes in the files, scales and zero points included. *Reload* is by how much the "
            "logits of the files, opened in a fresh process, are off from those of the model in memory, in parts of "
            "their spread."
        )
        yield table(rows, left=("Family", *WORDS, "Stored as", "Activations", "Head", "Kernel"))


def _proof(entry: Entry) -> tuple[StageCost | None, Mapping[str, JsonValue]]:
    """Gives the last step that left a proof, and the proof."""
    steps = entry.row.artifact.costs if entry.row.artifact else ()
    for step in reversed(steps):
        found = step.notes.get(COVERAGE)
        if isinstance(found, dict):
            return step, found
    return None, {}


def _stored(summary: Summary, entry: Entry, step: StageCost | None, proof: Mapping[str, JsonValue]) -> dict[str, str]:
    layers, activations = proof.get("layers"), proof.get("activations")
    kinds = [f"{kind} ({count})" for kind, count in layers.items()] if isinstance(layers, dict) else []
    return {
        "Family": plain(entry.row.family),
        "Pipeline": plain(entry.row.label),
        "Runtime": plain(summary.place(entry)),
        "Stored as": plain(listed(kinds, most=LONGEST)) if kinds else NOTHING,
        "Share packed": _percent(proof.get("share_quantized")),
        "Bits a packed weight": _number(proof.get("bits_per_quantized_weight")),
        "Bits/weight": _number(proof.get("bits_per_weight")),
        "without embeddings": _number(proof.get("bits_per_weight_without_embeddings")),
        "Head": plain(str(proof.get("head", NOTHING))),
        "Activations": plain(", ".join(map(str, activations))) if isinstance(activations, list) else NOTHING,
        "Reload": _number(step.notes.get(RELOAD)) if step else NOTHING,
        "Kernel": plain(entry.row.identity.kernel) if entry.row.identity else NOTHING,
    }


def _number(value: JsonValue) -> str:
    return number(value) if isinstance(value, (int, float)) else NOTHING


def _percent(value: JsonValue) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else NOTHING
