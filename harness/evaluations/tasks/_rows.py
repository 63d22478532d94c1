"""What is kept of one document: who it is, what was asked and answered, and every metric the task gave it.

Metrics that lm-eval averages are kept as numbers under lm-eval's names (`acc`, `exact_match,strict-match`). One that is
a function of the whole corpus is kept as what it is computed from: `logprob`, `bytes` and `words` of a text, or the
document's part under `name:aggregation`.

A written answer also says whether it was `truncated`, still going on at the token limit, and `unparsed`, holding
nothing that could be read: both count as wrong, and neither says that the model did not know. They are absent where
nobody looks: choices are not written, and few filters search an answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError
from harness.evaluations.tasks import offline
from harness.evaluations.tasks._documents import Document, content_hash
from harness.record import Observation, Scalar

if TYPE_CHECKING:
    from harness.evaluations.tasks.lm_eval import LmEval

ROLLING = {"word_perplexity": "words", "byte_perplexity": "bytes", "bits_per_byte": "bytes"}
AVERAGED = frozenset({"mean", "nanmean"})
RESPONSE_CHARACTERS = 200
CLUSTER_CHARACTERS = 40


@dataclass(frozen=True)
class Judged:
    """A document with its answered requests and, by filter, the metrics the task gave it.

    `truncated` says of written answers whether one of them was cut at the token limit.
    """

    evaluation: LmEval
    name: str
    task: Any
    document: Document
    metrics: Mapping[str, Mapping[str, Any]]
    truncated: bool | None = None

    @property
    def requests(self) -> Sequence[Any]:
        return self.document.requests

    @property
    def is_part_of_group(self) -> bool:
        """True when the evaluation asked for a group and this is one of its tasks."""
        return self.name != self.evaluation.task


def row(judged: Judged) -> Observation:
    """Gives the document's row."""
    from harness.evaluations.tasks.lm_eval import NAME

    document = judged.requests[0].doc
    values = {**_measured(judged), **_facts(judged, document), "item_hash": content_hash(document)}
    kept: dict[str, Scalar] = {key: value for key, value in values.items() if value is not None}
    return Observation(evaluation=NAME, task=judged.evaluation.task, sample=judged.document.sample, values=kept)


def cluster_of(document: Any, field: str) -> str | None:
    """Gives what a document has in a field, by hash if that is long, or None where it is empty.

    Raises SpecError when there is no such field.
    """
    fields = document if isinstance(document, Mapping) else {}
    if field not in fields:
        remedy = "name a field of the documents that related items share, or leave `cluster` out"
        raise SpecError("the documents have no such field", key="cluster", found=field, allowed=fields, remedy=remedy)
    value = fields[field]
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= CLUSTER_CHARACTERS else content_hash(text)


def _measured(judged: Judged) -> dict[str, Scalar]:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    names = {function: name for name, function in AGGREGATION_REGISTRY.items()}
    aggregation, higher = judged.task.aggregation(), judged.task.higher_is_better()
    values: dict[str, Scalar] = {}
    lower: list[str] = []
    for filter_name, metrics in judged.metrics.items():
        for metric, value in metrics.items():
            key = metric if filter_name == "none" else f"{metric},{filter_name}"
            how = names.get(aggregation[metric], "custom") if metric in aggregation else "mean"
            values.update(_kept(key, value, how))
            if not higher.get(metric, True):
                lower.append(key)
    primary = judged.evaluation.metric or next((key for key in values if ":" not in key), None)
    if judged.evaluation.metric and primary not in values:
        raise SpecError("the task gives no such metric", key="metric", found=primary, allowed=values)
    score = values[primary] if primary else None
    if primary and isinstance(score, float) and 0 <= score <= 1 and primary not in lower:
        values["score"] = score
        values["unparsed"] = _unparsed(judged, primary)
    if lower:
        values["lower_is_better"] = " ".join(lower)
    return values


def _kept(key: str, value: Any, how: str) -> dict[str, Scalar]:
    metric = key.partition(",")[0]
    if metric in ROLLING and isinstance(value, tuple):
        return {"logprob": float(value[0]), ROLLING[metric]: int(value[1])}
    name = key if how in AVERAGED else f"{key}:{how}"
    if isinstance(value, (bool, int, float)) or _is_numpy_number(value):
        return {name: float(value)} if math.isfinite(value) else {}
    return {} if how in AVERAGED or how == "bypass" else {name: json.dumps(value, default=_plain)}


def _is_numpy_number(value: object) -> bool:
    import numpy as np

    return isinstance(value, np.number)


def _plain(value: Any) -> Any:
    """Says numpy's arrays and numbers as JSON can."""
    return value.tolist()


def _facts(judged: Judged, document: Any) -> dict[str, Scalar]:
    answered = _choice(judged, document) if judged.task.OUTPUT_TYPE == "multiple_choice" else _text(judged, document)
    if judged.is_part_of_group:
        answered["category"] = judged.name
    elif judged.evaluation.is_offline:
        answered.update({key: document[key] for key in ("category", "chance") if key in document})
    if judged.evaluation.cluster is not None:
        cluster = cluster_of(document, judged.evaluation.cluster)
        # Two tasks of a group may number their passages alike.
        answered["cluster"] = f"{judged.name}/{cluster}" if cluster and judged.is_part_of_group else cluster
    prompt = judged.requests[0].args[0]
    return {**answered, "prompt_hash": hashlib.sha256(str(prompt).encode()).hexdigest()[:12]}


def _unparsed(judged: Judged, primary: str) -> bool | None:
    """True when the answer that was scored is what a filter gives where it finds none; None where none searches."""
    if judged.truncated is None:
        return None
    filter_name = primary.partition(":")[0].partition(",")[2] or "none"
    answer = judged.requests[0].filtered_resps[filter_name]
    ours = offline.TASKS.get(judged.name)
    if ours is not None:
        return None if ours.is_answer is None else not ours.is_answer(str(answer))
    fallbacks = list(_fallbacks(judged.task, filter_name))
    if not fallbacks:
        return None
    answers = answer if isinstance(answer, (list, tuple)) else [answer]
    return any(answer == one or all(each == one for each in answers) for one in fallbacks)


def _fallbacks(task: Any, filter_name: str) -> Iterator[Any]:
    """Yields what the searching steps of a filter give where they find nothing."""
    from lm_eval.filters.extraction import POSFilter, RegexFilter

    for ensemble in task._filters:
        if ensemble.name == filter_name:
            steps = (make() for make in ensemble.filters)
            yield from (step.fallback for step in steps if isinstance(step, (RegexFilter, POSFilter)))


def _choice(judged: Judged, document: Any) -> dict[str, Scalar]:
    task = judged.task
    choices = task.doc_to_choice(document)
    logprobs = [float(request.resps[0][0]) for request in judged.requests][: len(choices)]
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    gold = choices.index(gold) if isinstance(gold, str) and gold in choices else gold
    facts: dict[str, Scalar] = {"response": logprobs.index(max(logprobs)), "chance": 1 / len(choices)}
    if isinstance(gold, list):
        return {**facts, "target": json.dumps(gold), "chance": len(set(gold)) / len(choices)}
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        return facts
    best_wrong = max((value for index, value in enumerate(logprobs) if index != gold), default=None)
    margin = None if best_wrong is None else logprobs[gold] - best_wrong
    return {**facts, "target": gold, "target_logprob": logprobs[gold], "margin": margin}


def _text(judged: Judged, document: Any) -> dict[str, Scalar]:
    if judged.task.OUTPUT_TYPE == "loglikelihood_rolling":
        return {}
    target = judged.task.doc_to_target(document)
    response = judged.requests[0].resps[0]
    told = response if isinstance(response, str) else None
    return {
        "response": told[:RESPONSE_CHARACTERS] if told is not None else None,
        "target": str(target)[:RESPONSE_CHARACTERS],
        "truncated": judged.truncated,
    }
