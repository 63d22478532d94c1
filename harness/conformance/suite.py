"""The whole suite: every check in the order of the report, run on one bench; whatever a check raises is its finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from harness.conformance import answers, conduct, declarations
from harness.conformance.bench import Bench
from harness.conformance.verdicts import Finding, NotApplicable
from harness.worker import attempt

Check = Callable[[Bench], str | NotApplicable]

CHECKS: Final[Mapping[str, Check]] = {
    "declares what the contract asks": declarations.declares,
    "is cheap to build": declarations.is_cheap,
    "refuses impossible arguments": declarations.refuses_nonsense,
    "repeats itself under a seed": conduct.repeats_itself,
    "stores the bits it says": answers.stores_what_it_says,
    "weighs like the source": answers.weighs_like_the_source,
    "answers like the source": answers.answers_like_the_source,
    "reads back the same": answers.reads_back_the_same,
    "opens in a runtime": answers.opens_in_a_runtime,
    "honours ignore": answers.honours_ignore,
    "keeps embedding and head": answers.keeps_the_ends,
    "keeps tied models tied": answers.answers_when_tied,
    "copes with odd columns": conduct.copes_with_odd_columns,
    "refuses NaN and infinity": conduct.refuses_what_is_no_number,
    "writes no pickle": conduct.writes_no_pickle,
    "keeps to its folders": conduct.keeps_to_its_folders,
    "leaves the process as it was": conduct.leaves_the_process,
}
"""Names and checks. Those of conduct come last, when everything has been built."""


def run(bench: Bench, names: Sequence[str] = tuple(CHECKS)) -> Iterator[Finding]:
    """Yields the findings of the named checks."""
    for number, name in enumerate(names):
        bench.progress(number / len(names), name)
        yield examine(bench, name)


def examine(bench: Bench, name: str) -> Finding:
    """Gives the finding of one check."""
    seen: list[str | NotApplicable] = []
    error = attempt(lambda: seen.append(CHECKS[name](bench))).error
    if error is not None:
        return Finding(
            check=name,
            verdict="FAILED",
            seen=error.reason.removeprefix("AssertionError: "),
            traceback=error.traceback,
        )
    (found,) = seen
    if isinstance(found, NotApplicable):
        return Finding(check=name, verdict="not applicable", seen=found.reason)
    return Finding(check=name, verdict="passed", seen=found)
