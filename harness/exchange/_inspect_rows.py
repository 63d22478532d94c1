"""From Inspect's samples to rows: one row a sample, its score the mean over epochs.

A scorer gives letters or numbers. Letters become numbers as Inspect's own `value_to_float` makes them (C 1, P 0.5, I
and N 0; yes and true 1, no and false 0); what it could not read would be 0 there and has no score here. A scorer that
could not judge leaves NaN: no score either. A sample whose run failed is kept with its error and without a score, so
that the gate counts it as unanswered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import SourceError
from harness.exchange.reading import Node, content_digest
from harness.record import Observation, Scalar

EVALUATION = "inspect"
LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
NO_ANSWER = "N"
CUT = frozenset({"max_tokens", "model_length"})
"""Stop reasons of an answer that would have gone on."""
CHARACTERS = 200


@dataclass(frozen=True)
class Epoch:
    """One run of one sample: what was asked, what each scorer said, and how the answer ended."""

    place: str
    sample: str
    epoch: int
    asked: str
    item: str
    scores: Mapping[str, float | None]
    facts: Mapping[str, Scalar]


def epoch(sample: Node, *, scorer: str) -> Epoch:
    """Reads a sample of a log. Raises SourceError with its member and key."""
    scores, failure = dict(_scores(sample.get("scores"))), sample.get("error")
    answer = sample.get("output").get("completion").value if _has_output(sample) else None
    given = sample.get("target").value
    target = given if isinstance(given, str) else json.dumps(given)
    facts: dict[str, Scalar] = {"target": target[:CHARACTERS]}
    if isinstance(answer, str):
        facts["response"] = answer[:CHARACTERS]
    if failure.value is not None:
        facts["error"] = failure.need("message").text()[:CHARACTERS]
    stops = [one.get("stop_reason").optional_text() for one in _choices(sample)]
    if stops:
        facts["truncated"] = stops[0] in CUT
    said = sample.get("scores").get(scorer).get("value").value if scorer in scores else None
    if isinstance(said, str) and said in LETTERS:
        facts["unparsed"] = said == NO_ANSWER
    return Epoch(
        place=sample.place,
        sample=str(sample.need("id").value),
        epoch=sample.need("epoch").integer(),
        asked=content_digest(list(_asked(sample))),
        item=content_digest([sample.need("input").value, given]),
        scores=scores,
        facts=facts,
    )


def _has_output(sample: Node) -> bool:
    return isinstance(sample.get("output").value, dict)


def _choices(sample: Node) -> list[Node]:
    choices = sample.get("output").get("choices") if _has_output(sample) else None
    return choices.array() if choices is not None and choices.value else []


def _asked(sample: Node) -> Iterator[list[object]]:
    """Yields the messages that stood before the model's first answer: the prompt as it was sent."""
    messages = sample.get("messages")
    for message in messages.array() if messages.value else []:
        role = message.need("role").text()
        if role == "assistant":
            return
        yield [role, message.get("content").value]


def _scores(scores: Node) -> Iterator[tuple[str, float | None]]:
    if scores.value is None:
        return
    for name, score in scores.items():
        value = score.get("value")
        if isinstance(value.value, dict):
            yield from ((f"{name}.{key}", number(one.value)) for key, one in value.items())
        else:
            yield name, number(value.value)


def number(value: object) -> float | None:
    """Gives a scorer's value as a number; None for NaN and for what says none.

    >>> [number(value) for value in ("C", "P", "Yes", "0.25", True, "perhaps")]
    [1.0, 0.5, 1.0, 0.25, 1.0, None]
    """
    if isinstance(value, (bool, int, float)):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    known = LETTERS.get(value, WORDS.get(value.lower()))
    if known is not None:
        return known
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def rows(task: str, epochs: Iterable[Epoch], *, scorer: str) -> tuple[Observation, ...]:
    """Gives a row a sample, ordered by its id."""
    grouped: dict[str, dict[int, Epoch]] = {}
    for one in epochs:
        group = grouped.setdefault(one.sample, {})
        if one.epoch in group:
            raise SourceError(
                "a sample is here twice in one epoch",
                file=one.place,
                found=f"{one.sample}, epoch {one.epoch}",
                remedy=f"it stands first in {group[one.epoch].place}",
            )
        group[one.epoch] = one
    ordered = sorted(grouped.items(), key=lambda item: (len(item[0]), item[0]) if item[0].isdecimal() else (0, item[0]))
    return tuple(_row(task, [epoch for _, epoch in sorted(group.items())], scorer) for _, group in ordered)


def _row(task: str, group: Sequence[Epoch], scorer: str) -> Observation:
    first = group[0]
    values: dict[str, Scalar] = {}
    for name in sorted({name for one in group for name in one.scores}):
        found = [value for one in group if (value := one.scores.get(name)) is not None]
        if found:
            values[name.replace(":", "_")] = math.fsum(found) / len(found)
    if (score := values.get(scorer.replace(":", "_"))) is not None:
        values["score"] = score
    values |= first.facts
    for flag in ("truncated", "unparsed"):
        told = [fact for one in group if (fact := one.facts.get(flag)) is not None]
        if told:
            values[flag] = any(told)
    errors = [fact for one in group if (fact := one.facts.get("error")) is not None]
    if errors:
        values["error"] = errors[0]
    if len(group) > 1:
        values["epochs"] = len(group)
    return Observation(
        evaluation=EVALUATION,
        task=task,
        sample=first.sample,
        values={**values, "item_hash": first.item, "prompt_hash": first.asked},
    )
