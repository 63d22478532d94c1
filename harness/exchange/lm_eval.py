"""Results of lm-eval: a folder of `lm_eval run --output_path ... --log_samples`, or one of its results files.

lm-eval writes `results_<time>.json` for a run and `samples_<task>_<time>.jsonl` for each of its tasks into one folder
a model. The time ties them together; every run becomes one record, so that a task that was run twice gives two
attempts. A run without `--log_samples` gives its averages and no rows, and says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pydantic import JsonValue

from harness.errors import SourceError
from harness.exchange._lm_eval_facts import loading, machine
from harness.exchange.imported import Role, check_labels, device, named, storable, untouched
from harness.exchange.reading import file_digest, load, recordable
from harness.interfaces import Imported
from harness.record import Outcome, Record
from harness.spec import Cell, Use

RESULTS, SAMPLES = "results_", "samples_"


@final
@dataclass(frozen=True)
class LmEvalLog:
    """Records from the output of lm-evaluation-harness.

    Does:   reads `results_<time>.json` and the `samples_<task>_<time>.jsonl` beside it; one record a run, one row a
            document. An item's score is chosen as by `tasks.lm_eval`; items are named by lm-eval's own hash of the
            document, prompts by its hash of the prompt, so that two imported runs pair exactly where lm-eval asked the
            same. Samples are held against the counts, hashes and averages of the results.
    Needs:  `--log_samples` for rows; nothing has to be installed.
    Why:    the gate compares items, and lm-eval is where most teams already have theirs.
    Known:  weights are not hashed by lm-eval, so the record has no identity; a device that it chose itself is not
            stated. Items do not pair with those of our own `tasks.lm_eval`, whose hashes are others. Aggregations over
            the whole corpus (F1, BLEU) are taken as lm-eval computed them. Parts of a group are tasks of their own.
            What is told apart by loading (`dtype`, `load_in_4bit`) belongs to the model, not to the runtime.
    Source: EleutherAI lm-evaluation-harness 0.4.13, `loggers/evaluation_tracker.py` and `result_schema.py`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    family: str | None = None
    pipeline: str = "imported"
    role: Role = "reference"
    suite: str | None = None

    def __post_init__(self) -> None:
        check_labels(self.family, self.pipeline, self.role)

    def recognizes(self, file: Path) -> bool:
        return bool(_results_files(file))

    def read(self, file: Path) -> Iterator[Imported]:
        found = _results_files(file)
        if not found:
            raise SourceError(
                "there is no results file of lm-eval here",
                file=file,
                allowed=f"a folder with {RESULTS}<time>.json and {SAMPLES}<task>_<time>.jsonl, or such a results file",
                remedy="run lm-eval with --output_path and --log_samples; samples alone do not say which model it was",
            )
        for results in found:
            with recordable(results):
                made = storable(self._imported(results))
            yield made

    def _imported(self, file: Path) -> Imported:
        from harness.exchange._lm_eval_run import Run

        results = load(file)
        run = Run(results, _samples(file))
        made = tuple(run.rows())
        source, suite = run.source(), run.suite()
        model = named(source, self.family, self.role)
        cell = Cell(
            model=model.model_copy(update=loading(results, source)),
            pipeline=untouched(self.pipeline),
            runtime=Use(use=f"lm_eval:{results.need('model_source').text()}"),
            hardware=device(results.need("config").get("device").optional_text()),
            suite=suite.model_copy(update={"name": self.suite}) if self.suite else suite,
        )
        seconds = results.get("total_evaluation_time_seconds")
        record = Record(
            cell=cell,
            outcome=Outcome.OK,
            metrics=tuple(run.metrics(made)),
            machine={**machine(results), "imported": _provenance(file, run.samples)},
            versions={"lm_eval importer": self.version, **({"lm_eval": run.version} if run.version else {})},
            seconds={} if seconds.value is None else {"total": seconds.number()},
            started_at=run.started_at(),
        )
        return Imported(record, made)


def _results_files(file: Path) -> list[Path]:
    """Gives the results files in a folder and below, oldest first, or the file itself if it is one."""
    if file.is_dir():
        return sorted(file.rglob(f"{RESULTS}*.json"), key=lambda found: (found.stem, str(found)))
    return [file] if file.is_file() and file.name.startswith(RESULTS) and file.suffix == ".json" else []


def _samples(file: Path) -> dict[str, Path]:
    """Gives the sample files of the same run, by task."""
    end = f"_{file.stem.removeprefix(RESULTS)}.jsonl"
    beside = sorted(found for found in file.parent.iterdir() if found.is_file() and found.name.endswith(end))
    return {
        found.name.removeprefix(SAMPLES).removesuffix(end): found for found in beside if found.name.startswith(SAMPLES)
    }


def _provenance(file: Path, samples: Mapping[str, Path]) -> dict[str, JsonValue]:
    return {file.name: file_digest(file), **{one.name: file_digest(one) for one in samples.values()}}
