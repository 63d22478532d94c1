"""Who could have taught a student, and who did, as far as its lineage tells.

A candidate is a model given as a distiller's `teacher` is given: a source with its stages, or the word `reference`. An
artifact's lineage holds every distiller that was applied with its arguments, so the teacher is known where one of them
is, by identity and not by name, a candidate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.spec import REFERENCE, Need, Use
from harness.stages.distill.recipe import teacher_need

DISTILLERS = "distill."
SELF_DISTILLERS = "distill.self."
CAPTURES = "capture."


def candidate(said: object) -> Need:
    """Gives the model that `reference`, a source or a mapping names. Raises ValueError for anything else.

    >>> candidate("reference") == candidate({"source": "reference"}) == Need(name="teacher")
    True
    """
    if not isinstance(said, (str, Mapping)):
        raise ValueError(f"a teacher is {said!r}; allowed: `reference`, a source, or source, revision, args and stages")
    need = teacher_need({"source": said} if isinstance(said, str) else said)
    scheme, _, reference = need.source.partition(":")
    if need.source != REFERENCE and not (scheme and reference):
        raise ValueError(f"a teacher's source is {need.source!r}; allowed: `reference`, or scheme:reference")
    return need


def truth(lineage: Sequence[Use], candidates: Mapping[str, Need]) -> str | None:
    """Gives the candidate that the last distiller with a candidate for a teacher learned from.

    None where no distiller has one, and where that distiller learned from several of them.
    """
    names = {need.id: name for name, need in candidates.items()}
    for use in reversed(lineage):
        if use.use.startswith(DISTILLERS):
            known = {names[need.id] for need in _teachers(use) if need.id in names}
            if known:
                return known.pop() if len(known) == 1 else None
    return None


def _teachers(use: Use) -> list[Need]:
    """Gives whom a distiller learned from: its teachers, the model that wrote its text, else the family's reference.

    Nobody else where a model teaches itself, and nobody known where a teacher is given in a form we cannot read.
    """
    try:
        named = [*map(candidate, _named(use)), *_author(use)]
    except ValueError:
        return []
    return named if named or use.use.startswith(SELF_DISTILLERS) else [candidate(REFERENCE)]


def _named(use: Use) -> Iterator[object]:
    if use.args.get("teacher") is not None:
        yield use.args["teacher"]
    several = use.args.get("teachers")
    if isinstance(several, Mapping):
        yield from several.values()
    elif isinstance(several, list):
        yield from several


def _author(use: Use) -> Iterator[Need]:
    """Yields the model that wrote the distiller's corpus, when a model did."""
    corpus = use.args.get("corpus")
    if isinstance(corpus, Mapping):
        text = Need.model_validate({**corpus, "name": "teacher"})
        if text.stages and text.stages[-1].use.startswith(CAPTURES):
            yield text.model_copy(update={"stages": text.stages[:-1]})
