"""From lm-eval's sample lines to rows: the item's score is chosen as our own evaluation chooses it.

`samples_<task>_<time>.jsonl` has one line a document and filter. The lines of one document become one row. Its score
is the first metric under the first filter that is a mean over items, when it lies in 0..1 and more is better; the
other metrics stay beside it under `metric` or `metric,filter`. A value that is no mean over items gets the name of its
aggregation (`perplexity:perplexity`); whether it is one is what the task's own configuration says.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import SourceError
from harness.evaluations.tasks._rows import AVERAGED, RESPONSE_CHARACTERS, ROLLING
from harness.exchange.reading import Node
from harness.record import Observation, Scalar

EVALUATION = "tasks.lm_eval"
PURE = AVERAGED | {"perplexity"}
"""The aggregations that are computed here; others are taken from lm-eval's results as they are."""
NAME_DIGITS = 12
PLACE, TEXT = "place", "text"


@dataclass(frozen=True)
class Task:
    """What lm-eval's results say about a task: how its metrics are averaged, which way is better, its output type."""

    name: str
    aggregations: Mapping[str, str]
    lower: frozenset[str]
    output_type: str | None

    def aggregation(self, metric: str) -> str:
        """Gives how a metric is averaged; lm-eval takes the mean of what a task does not say."""
        return self.aggregations.get(metric, "perplexity" if metric == "perplexity" else "mean")


def rows(task: Task, lines: Iterable[Node]) -> tuple[Observation, ...]:
    """Gives a row a document, in the order of the file. Raises SourceError with the line."""
    documents: dict[int, dict[str, Node]] = {}
    for line in lines:
        filters = documents.setdefault(line.need("doc_id").integer(), {})
        name = line.need("filter").text()
        if name in filters:
            raise SourceError(
                "a document is here twice under one filter",
                file=line.place,
                key="doc_id",
                found=line.get("doc_id").value,
                remedy=f"its first line is {filters[name].place}; keep the file of one run",
            )
        filters[name] = line
    seen: Counter[str] = Counter()
    firsts = [next(iter(filters.values())) for filters in documents.values()]
    is_choice = task.output_type == "multiple_choice"
    told_by = _told_by(firsts) if is_choice else frozenset()
    return tuple(
        _row(task, filters, _choice(first, told_by) if is_choice else _text(task, first), seen)
        for first, filters in zip(firsts, documents.values(), strict=True)
    )


def _row(task: Task, filters: Mapping[str, Node], facts: Mapping[str, Scalar], seen: Counter[str]) -> Observation:
    first = next(iter(filters.values()))
    item = first.need("doc_hash").text()
    sample = item[:NAME_DIGITS]
    seen[sample] += 1
    if seen[sample] > 1:
        sample = f"{sample}-{seen[sample]}"
    values: dict[str, Scalar] = {
        **_measured(task, filters),
        **facts,
        "item_hash": item,
        "prompt_hash": first.need("prompt_hash").text(),
    }
    return Observation(evaluation=EVALUATION, task=task.name, sample=sample, values=values)


def _measured(task: Task, filters: Mapping[str, Node]) -> dict[str, Scalar]:
    values: dict[str, Scalar] = {}
    lower: list[str] = []
    for name, line in filters.items():
        for metric in (one.text() for one in line.need("metrics").array()):
            key = metric if name == "none" else f"{metric},{name}"
            values.update(_kept(task, key, line.need(metric)))
            if metric in task.lower:
                lower.append(key)
    primary = next((key for key in values if ":" not in key), None)
    score = values[primary] if primary else None
    if isinstance(score, float) and 0 <= score <= 1 and primary not in lower:
        values["score"] = score
    return {**values, "lower_is_better": " ".join(lower)} if lower else values


def _kept(task: Task, key: str, found: Node) -> dict[str, Scalar]:
    metric = key.partition(",")[0]
    if metric in ROLLING and isinstance(found.value, list):
        pair = found.array()
        if len(pair) != 2:
            raise found.wrong("a log-probability and a count")
        return {"logprob": pair[0].number(), ROLLING[metric]: int(pair[1].number())}
    how = task.aggregation(metric)
    name = key if how in AVERAGED else f"{key}:{how if how in PURE else 'custom'}"
    if isinstance(found.value, (bool, int, float)):
        value = float(found.value)
        return {name: value} if math.isfinite(value) else {}
    return {} if how in AVERAGED or how == "bypass" else {name: json.dumps(found.value)}


def _choice(line: Node, told_by: frozenset[str]) -> dict[str, Scalar]:
    """Gives what was chosen, by how much, and what guessing would give."""
    offered = _offered(line)
    count = len(offered)
    logprobs = [_first(one).number() for one in line.need("resps").array()][:count]
    if not logprobs or len(logprobs) != count:
        raise line.need("resps").wrong("a log-probability for each choice")
    facts: dict[str, Scalar] = {"response": logprobs.index(max(logprobs)), "chance": 1 / count}
    gold = _gold(line.need("target").text(), offered, told_by)
    if isinstance(gold, list):
        return {**facts, "target": json.dumps(gold), "chance": len(set(gold)) / count}
    if gold is None or not 0 <= gold < count:
        return facts
    wrong = [value for index, value in enumerate(logprobs) if index != gold]
    margin = {"margin": logprobs[gold] - max(wrong)} if wrong else {}
    return {**facts, "target": gold, "target_logprob": logprobs[gold], **margin}


def _first(response: Node) -> Node:
    """Gives the log-probability of the first answer: `[[logprob, was it the likeliest]]`."""
    repeats = response.array()
    pair = repeats[0].array() if repeats else []
    if not pair:
        raise response.wrong("a log-probability")
    return pair[0]


def _gold(target: str, offered: Sequence[str], told_by: frozenset[str]) -> int | list[int] | None:
    """Gives the place of the right choice, the places of several, or None where the line leaves it open."""
    if (several := _places(target)) is not None:
        return several
    found = set()
    if PLACE in told_by and target.isdecimal():
        found.add(int(target))
    if TEXT in told_by and offered.count(target.strip()) == 1:
        found.add(offered.index(target.strip()))
    return found.pop() if len(found) == 1 else None


def _places(target: str) -> list[int] | None:
    try:
        several = json.loads(target) if target.startswith("[") else None
    except (ValueError, RecursionError):
        return None
    return several if isinstance(several, list) and several and all(type(one) is int for one in several) else None


def _told_by(lines: Iterable[Node]) -> frozenset[str]:
    """Gives how the targets of a task can be meant: lm-eval writes a choice's place and its text alike.

    A task means all of them in one way: one target that is no place, or no text of a choice, tells of the rest.
    """
    targets = [(line.need("target").text(), _offered(line)) for line in lines]
    plain = [(target, offered) for target, offered in targets if _places(target) is None]
    places = all(target.isdecimal() and int(target) < len(offered) for target, offered in plain)
    texts = all(target.strip() in offered for target, offered in plain)
    return frozenset(([PLACE] if places else []) + ([TEXT] if texts else []))


def _offered(line: Node) -> list[str]:
    """Gives the texts of the choices."""
    offered = [str(entry.get("arg_1").value).strip() for _, entry in line.need("arguments").items()]
    mutual = any(one.value == "acc_mutual_info" for one in line.need("metrics").array())
    return offered[: len(offered) // 2] if mutual else offered  # that metric asks again without the question


def _text(task: Task, line: Node) -> dict[str, Scalar]:
    if task.output_type == "loglikelihood_rolling":
        return {}
    values: dict[str, Scalar] = {"target": line.need("target").text()[:RESPONSE_CHARACTERS]}
    answers = line.need("resps").array()
    told = answers[0].array() if answers and isinstance(answers[0].value, list) else []
    if told and isinstance(told[0].value, str):
        values["response"] = told[0].text()[:RESPONSE_CHARACTERS]
    return values


def hashes(lines: Iterable[Node]) -> Iterator[str]:
    """Yields what lm-eval strings together and hashes to name the items that were asked."""
    for line in lines:
        yield "".join(line.need(key).text() for key in ("doc_hash", "prompt_hash", "target_hash"))
