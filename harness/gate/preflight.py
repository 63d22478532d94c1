"""May two sides be compared at all? Every field in which they differ that should be alike, named.

The best-known failures of this field are comparisons that were none: another prompt template, another tokenizer, a
cache that served the baseline's answers, items that one side quietly dropped, answers cut short on one side. A hard
difference forbids the comparison; a soft one is told beside it. A policy may allow a hard field to differ, and the
report then keeps saying so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pydantic import JsonValue

from harness.gate.measured import Measured
from harness.gate.policy import Policy
from harness.gate.verdict import Mismatch
from harness.record import Identity, Record, Scalar
from harness.spec import Cell
from harness.statistics.items import Item, Paired, Task, pair

ABSENT = "not known"
FIELDS = (
    "cell.model",
    "cell.runtime",
    "cell.hardware",
    "identity",
    "kernel",
    "weights_digest",
    "suite.evaluations",
    "tokenizer_hash",
    "chat_template_hash",
    "runtime_version",
    "versions.<plug-in>",
    "libraries.<name>",
    "item_hash",
    "prompt_hash",
    "items",
    "answers",
    "truncated_share",
    "unparsed_share",
    "machine.<fact>",
)
"""What a policy's `allow_different` may name, by shell patterns."""
SERVED_AGAIN = "identical to the last digit although the weights differ: a cache may have served them"
SCORING = ("lm-eval", "datasets")
"""Libraries whose version decides what is asked and how it is judged."""


@dataclass(frozen=True)
class Difference:
    """A field with what the two sides say, before a policy has its word."""

    field: str
    baseline: object
    candidate: object
    hard: bool
    remedy: str = ""


def may_differ(pattern: str) -> bool:
    """True when a pattern of `allow_different` fits a field that is compared; names after a dot are anybody's."""
    open_ended = tuple(field.partition("<")[0] for field in FIELDS if "<" in field)
    return pattern.startswith(open_ended) or any(fnmatchcase(field, pattern) for field in FIELDS)


def preflight(candidate: Measured, baseline: Measured, policy: Policy) -> tuple[Mismatch, ...]:
    """Gives every difference that matters for scores and fidelity; `machine_mismatches` has those for speed."""
    # Of a suite in parts, what one side stopped before is not what the other has more.
    ours, theirs = candidate.shared_parts(baseline), baseline.shared_parts(candidate)
    found = [
        *_specification(candidate, baseline, policy),
        *_identity(candidate.identity, baseline.identity),
        *_same_weights(candidate, baseline),
        *_same_answers(ours, theirs),
        *_versions(candidate.records[0], baseline.records[0]),
        *_items(ours, theirs),
        *_answers(ours, theirs, policy),
    ]
    return _judged(found, candidate, policy)


def machine_mismatches(candidate: Measured, baseline: Measured, policy: Policy) -> tuple[Mismatch, ...]:
    """Gives the differences that forbid comparing times: the machine, the device, its threads, unpacked weights."""
    ours, theirs = _fixed(candidate.records[0]), _fixed(baseline.records[0])
    remedy = "measure both on one machine in one night: harness nightly"
    found = [
        Difference(f"machine.{name}", theirs.get(name), ours.get(name), True, remedy)
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if candidate.cell.hardware != baseline.cell.hardware:
        found.append(Difference("cell.hardware", baseline.cell.hardware, candidate.cell.hardware, True, remedy))
    return _judged(found, candidate, policy)


def _judged(found: Sequence[Difference], candidate: Measured, policy: Policy) -> tuple[Mismatch, ...]:
    return tuple(
        Mismatch(
            label=candidate.label,
            suite=candidate.cell.suite.name,
            field=one.field,
            baseline=_words(one.baseline),
            candidate=_words(one.candidate),
            hard=one.hard and not any(fnmatchcase(one.field, allowed) for allowed in policy.allow_different),
            remedy=one.remedy,
        )
        for one in found
    )


def _words(value: object) -> str:
    text = ABSENT if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:199]}…"


def _specification(candidate: Measured, baseline: Measured, policy: Policy) -> Iterator[Difference]:
    ours, theirs = candidate.cell, baseline.cell
    if policy.against == "cell" and ours.model.id != theirs.model.id:
        yield Difference("cell.model", _model(theirs), _model(ours), True, "compare cells of one model")
    if ours.runtime != theirs.runtime:
        remedy = "measure the baseline on the candidate's runtime too, or allow cell.runtime to differ"
        yield Difference("cell.runtime", theirs.runtime, ours.runtime, True, remedy)
    if ours.hardware != theirs.hardware:
        yield Difference("cell.hardware", theirs.hardware.name, ours.hardware.name, False)
    mine, others = (set(map(str, side.whole_suite.evaluations)) for side in (candidate, baseline))
    if mine != others:
        remedy = "run both with the same suite; tasks, limits, few-shot examples and templates are part of it"
        yield Difference("suite.evaluations", _listed(others - mine), _listed(mine - others), True, remedy)


def _model(cell: Cell) -> str:
    model = cell.model
    return " ".join(str(part) for part in (model.source, model.revision, model.args) if part)


def _listed(texts: set[str]) -> str:
    return "; ".join(sorted(texts)) or "nothing else"


def _identity(ours: Identity | None, theirs: Identity | None) -> Iterator[Difference]:
    if ours is None or theirs is None:
        if ours is not theirs:
            remedy = "records made elsewhere may lack it: then allow_different: [identity]"
            yield Difference("identity", theirs and "known", ours and "known", False, remedy)
        return
    for field, remedy in (
        ("tokenizer_hash", "a stage changed the tokenizer: the two sides were asked other tokens"),
        ("chat_template_hash", "keep the chat template when compressing"),
        ("runtime_version", "measure the baseline again under the new version, or allow runtime_version to differ"),
    ):
        if getattr(ours, field) != getattr(theirs, field):
            yield Difference(field, getattr(theirs, field), getattr(ours, field), True, remedy)
    if ours.kernel != theirs.kernel:
        yield Difference("kernel", theirs.kernel, ours.kernel, False)


def _same_weights(candidate: Measured, baseline: Measured) -> Iterator[Difference]:
    """A compressed model with the weights of its reference was not compressed, or a cache served the reference."""
    ours, theirs = candidate.identity, baseline.identity
    was_compressed = candidate.cell.pipeline.stages and not baseline.cell.pipeline.stages
    if was_compressed and ours and theirs and ours.weights_digest == theirs.weights_digest:
        yield Difference("weights_digest", theirs.weights_digest[:16], "the very same weights", False)


def _same_answers(candidate: Measured, baseline: Measured) -> Iterator[Difference]:
    """Other weights give other margins in the last digits; where no digit moved, nobody asked the candidate."""
    ours, theirs = candidate.identity, baseline.identity
    if ours is None or theirs is None or ours.weights_digest == theirs.weights_digest:
        return
    mine, others = _margins(candidate), _margins(baseline)
    # Right or wrong alone may well be alike on every item; numbers with digits are not.
    if mine and mine == others:
        remedy = "empty the cache between runtime and model, measure again, and see whether a digit moves"
        yield Difference("answers", f"{len(others)} items", SERVED_AGAIN, False, remedy)


def _margins(side: Measured) -> dict[tuple[str, str, str], dict[str, Scalar]]:
    """Gives all values of the scored rows that hold a number with digits besides what guessing scores."""
    return {
        (row.evaluation, row.task, row.sample): row.values
        for part in side.rows
        for row in part
        if "score" in row.values
        and any(isinstance(told, float) and told % 1 for name, told in row.values.items() if name != "chance")
    }


def _versions(ours: Record, theirs: Record) -> Iterator[Difference]:
    remedy = "numbers of two versions are not one series: measure the baseline again"
    asked = {use.use for use in ours.cell.suite.evaluations}
    for name in sorted(ours.versions.keys() | theirs.versions.keys()):
        if ours.versions.get(name) != theirs.versions.get(name) and (name in ours.versions and name in theirs.versions):
            yield Difference(f"versions.{name}", theirs.versions[name], ours.versions[name], name in asked, remedy)
    mine, others = _facts(ours, "libraries"), _facts(theirs, "libraries")
    for name in sorted(mine.keys() | others.keys()):
        if mine.get(name) != others.get(name):
            yield Difference(f"libraries.{name}", others.get(name), mine.get(name), name in SCORING, remedy)


def _items(candidate: Measured, baseline: Measured) -> Iterator[Difference]:
    remedy = "the data or the template changed: run both sides from the same data"
    for task, found in paired(candidate, baseline).items():
        where = f" of {task[1]}"
        if found.unlike:
            yield Difference("prompt_hash", f"{found.unlike} items{where}", "other prompts", True, remedy)
        if found.extra:
            yield Difference("items", f"lacks {found.extra}{where}", f"has {found.extra} more", True, remedy)
        changed = _changed_documents(candidate, baseline, task)
        if changed:
            yield Difference("item_hash", f"{changed} items{where}", "other content", True, remedy)


def _changed_documents(candidate: Measured, baseline: Measured, task: Task) -> int:
    mine, others = _documents(candidate, task), _documents(baseline, task)
    return sum(mine[name] != others[name] for name in mine.keys() & others.keys())


def _documents(side: Measured, task: Task) -> dict[str, Scalar]:
    """Gives the hash of every item's content, where rows have one."""
    return {
        row.sample: row.values["item_hash"]
        for part in side.rows
        for row in part
        if (row.evaluation, row.task) == task and row.values.get("item_hash") is not None
    }


def _answers(candidate: Measured, baseline: Measured, policy: Policy) -> Iterator[Difference]:
    """Compares how often answers were cut or held nothing that could be read, where both sides know."""
    for task in sorted(candidate.items.keys() & baseline.items.keys()):
        for field, remedy in (
            ("truncated", "raise the task's token limit: a cut answer is no wrong answer"),
            ("unparsed", "look at the answers: the format may be lost and not the skill"),
        ):
            before, after = (_share(side.items[task], field) for side in (baseline, candidate))
            if before is not None and after is not None and after - before > policy.max_extra_truncated:
                shown, told = (f"{share:.1%} of {task[1]}" for share in (before, after))
                yield Difference(f"{field}_share", shown, told, field == "truncated", remedy)


def _share(items: Mapping[str, Item], field: str) -> float | None:
    told = [value for item in items.values() if (value := getattr(item, field)) is not None]
    return sum(told) / len(told) if told else None


def paired(candidate: Measured, baseline: Measured) -> dict[Task, Paired]:
    """Pairs the items of the tasks that both sides answered."""
    return {
        task: pair(candidate.items[task], baseline.items[task])
        for task in sorted(candidate.items.keys() & baseline.items.keys())
    }


def _fixed(record: Record) -> dict[str, JsonValue]:
    return _facts(record, "hard")


def _facts(record: Record, name: str) -> dict[str, JsonValue]:
    found = record.machine.get(name)
    return found if isinstance(found, dict) else {}
