"""Comparing and gating from the outside: finds records, baselines and policies, judges, and writes what was decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from pydantic import TypeAdapter

from harness import baselines, document, matrix
from harness.environments import DISTRIBUTION
from harness.errors import SpecError, StoreError, closest
from harness.gate import github, junit
from harness.gate.document import decision_json
from harness.gate.judge import Evidence, judge
from harness.gate.markdown import comparison_markdown, decision_markdown
from harness.gate.matching import nearest
from harness.gate.measured import Measured, measured
from harness.gate.noise import NoiseFloor, noise_floor
from harness.gate.planted import selftest_from_records
from harness.gate.policy import Policy
from harness.gate.preflight import FIELDS, may_differ
from harness.gate.scenarios import NIGHTS, Setup
from harness.gate.selftest import SelfTest, Simulated
from harness.gate.selftest import selftest as run_selftest
from harness.gate.selftest_markdown import selftest_markdown
from harness.gate.side_by_side import compare as compare_cells
from harness.gate.simulation import stored_tasks
from harness.gate.verdict import WORST_FIRST, CellComparison, Decision, SuiteVerdict, Verdict, exit_code, worst
from harness.selection import select
from harness.store import Store

DECIDED: frozenset[Verdict] = frozenset(Verdict) - {Verdict.NOT_JUDGED}


def load_policy(name: str) -> Policy:
    """Reads a policy by shipped name or by path. Raises SpecError."""
    file = matrix.find(name, "policies", beside=Path.cwd())
    policy = document.load(file, Policy)
    for pattern in policy.allow_different:
        if not may_differ(pattern):
            remedy = closest(pattern, FIELDS) or "name a field as the gate does where two sides differ"
            raise SpecError(
                "no comparison looks at such a field", file=file, key="allow_different", found=pattern, allowed=FIELDS,
                remedy=remedy,
            )  # fmt: skip
    return policy


def compare(baseline: str, candidate: str, *, policy: Policy) -> list[CellComparison]:
    """Compares every cell of `candidate` with its counterpart in `baseline`; see `selection` for what both may say.

    Raises SpecError when a cell has no counterpart or several.
    """
    chosen = [select(text) for text in (baseline, candidate)]
    before, after = (measured(one) for one in chosen)
    empty = next(
        (text for text, sides in ((baseline, before), (candidate, after)) if all(s.failure for s in sides)), None
    )
    if empty is not None:
        raise StoreError(
            "no cell here has numbers", file=empty, remedy="choose records whose outcome is ok or emulated"
        )
    return [compare_cells(one, _counterpart(one, before), policy) for one in after]


def left_out(baseline: str, candidate: str) -> list[str]:
    """Names the cells of one run of several that another run of several has not."""
    before, after = (measured(select(text)) for text in (baseline, candidate))
    if len(before) < 2 or len(after) < 2:
        return []
    there = {one.key for one in after}
    return [f"{one.label} / {one.cell.suite.name}" for one in before if one.key not in there]


def _counterpart(candidate: Measured, baselines: Sequence[Measured]) -> Measured:
    """The cell of the same name; else the only one of its suite; else the family's reference."""
    same = [one for one in baselines if one.key == candidate.key]
    alike = [one for one in baselines if one.cell.suite.name == candidate.cell.suite.name]
    if same or len(alike) == 1:
        return (same or alike)[0]
    found = nearest(candidate, [one for one in alike if one.cell.is_reference])
    if found is None:
        raise SpecError(
            "a cell has no counterpart",
            found=f"{candidate.label} / {candidate.cell.suite.name}",
            allowed=sorted(f"{one.label} / {one.cell.suite.name}" for one in baselines),
            remedy="pick one cell on each side: FOLDER:pipeline=NAME,runtime=NAME",
        )
    return found


def decide(
    records: Store, baseline: baselines.Baseline, policy: Policy, *, strict: bool, evidence: Evidence | None = None
) -> Decision:
    """Judges the newest records of a store against a baseline. Raises StoreError when there are none."""
    noise = NoiseFloor.model_validate_json(baseline.noise) if baseline.noise else None
    known = evidence or Evidence(noise=noise)
    judged = judge(measured(records), measured(baseline.store), policy, evidence=known)
    verdicts = [suite.verdict for suite in judged.suites]
    stale = _not_measured_again(records, baseline.store) if policy.against == "cell" else []
    if not DECIDED & set(verdicts):
        raise SpecError(
            "the policy judges none of these cells",
            found=", ".join(sorted({record.cell.suite.name for record in records.records})),
            allowed=", ".join(f"{rule.kind}: {rule.suite}" for rule in policy.suites),
            remedy="name the suites in the policy, or pin a baseline with the same cells",
        )
    return Decision(
        policy=policy.name,
        policy_id=policy.id,
        baseline=baseline.pin.name,
        baseline_digest=baseline.pin.digest,
        records=str(records.root),
        harness_version=metadata.version(DISTRIBUTION),
        verdict=worst(verdicts),
        exit_code=exit_code(verdicts, strict=strict),
        strict=strict,
        suites=_worst_first(judged.suites),
        findings=judged.findings,
        mismatches=judged.mismatches,
        warnings=(*judged.warnings, *stale),
    )


def _not_measured_again(records: Store, baseline: Store) -> list[str]:
    """Warns of records that are the baseline's own: against themselves they always pass."""
    before = {record.cell.id: record for record in baseline.records}
    every = records.records
    same = sum(record == before.get(record.cell.id) for record in every)
    return [f"{same} of {len(every)} cells were not measured again: their records are the baseline's"] if same else []


def _worst_first(suites: Sequence[SuiteVerdict]) -> tuple[SuiteVerdict, ...]:
    return tuple(sorted(suites, key=lambda suite: (WORST_FIRST.index(suite.verdict), suite.place.label)))


def pin(name: str, records: Path, *, noise: Path | None, results: Path) -> baselines.Pin:
    """Pins the records of a folder as a baseline, with the noise floor of others where given. Raises StoreError."""
    floor = noise_floor(Store(noise)) if noise else None
    if floor is not None and not floor.speeds and all(one.against for one in floor.answers):
        raise StoreError(
            "no reference was measured twice here, so there is no noise to see",
            file=noise,
            remedy="measure the references again first: harness noise MATRIX",
        )
    text = floor.model_dump_json(indent=1) if floor else None
    return baselines.pin(name, Store(records), results=results, noise=text)


def selftest(
    policy: Policy,
    *,
    records: Path | None = None,
    nights: int = NIGHTS,
    progress: Callable[[Simulated], None] = lambda _: None,
) -> SelfTest:
    """Tests the gate under a policy; see `gate.selftest`.

    With `records` nights are drawn from what their first reference answered, and their other cells are judged against
    it: by this policy where it is one against references, else by the shipped `release`. Raises SpecError, StoreError.
    """
    if records is None:
        return run_selftest(policy, Setup(nights=nights), progress=progress)
    store = Store(records)
    references = [side for side in measured(store) if side.cell.is_reference and side.items]
    if not references:
        raise StoreError("no reference here has answered anything", file=records, remedy="harness run gate")
    tasks, others = stored_tasks(references[0])
    if not tasks:
        raise StoreError("no task here can be simulated", file=records, found="; ".join(others))
    found = run_selftest(policy, Setup(nights=nights, tasks=tuple(tasks)), progress=progress)
    against = policy if policy.against == "reference" else load_policy("release")
    told = (f"items of {references[0].label}", *(f"not simulated: {other}" for other in others))
    return found.model_copy(
        update={
            "assumptions": (*told, *found.assumptions),
            "records": tuple(selftest_from_records(store, against)),
            "records_policy": against.name,
        }
    )


def write_selftest(found: SelfTest, out: Path) -> list[Path]:
    """Writes a self-test as Markdown and JSON. Raises StoreError."""
    return _written(
        {"selftest.md": selftest_markdown(found), "selftest.json": found.model_dump_json(indent=1) + "\n"}, out
    )


def write_comparisons(found: Sequence[CellComparison], out: Path) -> list[Path]:
    """Writes comparisons as Markdown and JSON. Raises StoreError."""
    whole = TypeAdapter(list[CellComparison]).dump_json(list(found), indent=1).decode()
    return _written({"compare.md": "\n".join(map(comparison_markdown, found)), "compare.json": whole + "\n"}, out)


def append_summary(decision: Decision, file: str | None) -> None:
    """Adds a decision to the step summary that GitHub names, where it names one. Raises StoreError."""
    if not file:
        return
    try:
        with Path(file).open("a", encoding="utf-8") as summary:
            summary.write(github.step_summary(decision))
    except OSError as error:
        remedy = "GITHUB_STEP_SUMMARY names it; unset it where no runner reads it"
        raise StoreError(f"the summary cannot be written: {error.strerror}", file=file, remedy=remedy) from error


def write(decision: Decision, out: Path) -> list[Path]:
    """Writes a decision as JSON, Markdown, JUnit XML and a GitHub step summary. Raises StoreError."""
    texts = {
        "decision.json": decision_json(decision),
        "decision.md": decision_markdown(decision),
        "junit.xml": junit.junit(decision),
        "summary.md": github.step_summary(decision),
    }
    return _written(texts, out)


def write_decision(decision: Decision, folder: Path) -> None:
    """Writes the JSON alone, beside the records it is about. Raises StoreError."""
    _written({"decision.json": decision_json(decision)}, folder)


def _written(texts: Mapping[str, str], out: Path) -> list[Path]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise StoreError(f"this cannot be written: {error.strerror}", file=out, remedy="use --out") from error
    return [out / name for name in texts]
