"""Understanding a request: which of two to four functions answers it, judged by the functions' names.

The requests and the functions are those of the Berkeley Function Calling Leaderboard, category `multiple`, as the
package `bfcl-eval` carries them. The choices are the names alone (`triangle_properties.get`): with the descriptions in
front of them small models score hardly better than chance, with the names they score far above it. Nothing is called,
so this measures whether a request is understood and no skill at tools. Chance is one over the number of functions.

Source: Patil et al., "The Berkeley Function Calling Leaderboard", ICML 2025; data of `bfcl-eval` 2026.3.23, version 4.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.interfaces import Artifact
from harness.spec import Need

MEMBERS = ("bfcl_eval/data/BFCL_v4_multiple.json", "bfcl_eval/data/possible_answer/BFCL_v4_multiple.json")
NEED = Need(name="bfcl", source="wheel:bfcl-eval==2026.3.23", args={"members": list(MEMBERS)})
SEED = 2026
SHOTS = 4


def items(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives the requests in a fixed random order, the first of them as examples."""
    folder = artifacts[NEED.name].path
    answers = {one["id"]: next(iter(one["ground_truth"][0])) for one in _lines(folder / MEMBERS[1])}
    found = [_item(one, answers[one["id"]]) for one in _lines(folder / MEMBERS[0])]
    random.Random(SEED).shuffle(found)
    return {"test": found[SHOTS:], "fewshot": found[:SHOTS]}


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _item(raw: dict[str, Any], right: str) -> dict[str, Any]:
    names = [one["name"] for one in raw["function"]]
    return {
        "id": raw["id"],
        "category": f"{len(names)} functions",
        "question": f"Request: {raw['question'][0][-1]['content'].strip()}\nFunction to call:",
        "choices": names,
        "answer": names.index(right),
    }
