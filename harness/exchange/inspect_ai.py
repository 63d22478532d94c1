"""Logs of Inspect, the evaluation framework of the UK AI Security Institute: `.eval` archives and `.json` files.

One log is one run of one task and becomes one record, one sample one row. Inspect itself is not needed and not
imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pydantic import JsonValue

from harness.errors import SourceError
from harness.exchange.imported import Role, check_labels, device, named, storable, untouched
from harness.exchange.reading import Node, file_digest, recordable
from harness.interfaces import Imported
from harness.record import Metric, Observation, Outcome, Record
from harness.spec import Cell, Hardware, Model, Suite, Use

EVALUATION = "inspect"
SUFFIXES = (".eval", ".json")
WEIGHTS = frozenset({"hf", "vllm", "sglang", "transformer_lens", "nnterp"})
"""Providers whose models are named as on the Hugging Face hub."""
CONNECTION = frozenset({"max_connections", "max_retries", "timeout", "attempt_timeout", "adaptive_connections"})
"""Settings of a generation that change when an answer comes and not what it is."""


@final
@dataclass(frozen=True)
class InspectLog:
    """Records from logs of Inspect.

    Does:   reads a `.eval` or `.json` log, or every `.eval` in a folder; one record a log, one row a sample. The score
            is that of `scorer`, else of the scorer that the log calls its headline, else of its first; the other
            scorers' numbers stay beside it. Letters become numbers as Inspect's `value_to_float` makes them; a sample
            that ran in several epochs has their mean.
    Needs:  a log whose run ended well; pyarrow to unpack Zstandard (or `inspect log convert --to json`). Limits: 256
            MiB a sample, 512 MiB a `.json` log.
    Why:    agentic evaluations are run with Inspect, and their samples can be gated like any items.
    Known:  prompts are compared by the messages before the first answer. Tool environments, sandboxes and graders are
            not compared beyond the solver's arguments in the log. Inspect may reduce epochs by another rule than the
            mean. Weights are not hashed by Inspect, so the record has no identity.
    Source: UK AISI inspect_ai 0.3.285, log format 2; PKWARE APPNOTE 6.3.10 for zip.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    family: str | None = None
    pipeline: str = "imported"
    role: Role = "reference"
    scorer: str | None = None

    def __post_init__(self) -> None:
        check_labels(self.family, self.pipeline, self.role)

    def recognizes(self, file: Path) -> bool:
        found = _logs(file)
        if not found or found[0].suffix == ".eval":
            return bool(found)
        with found[0].open("rb") as opened:
            start = opened.read(4096)
        return b'"version"' in start and b'"eval_id"' in start

    def read(self, file: Path) -> Iterator[Imported]:
        found = _logs(file)
        if not found:
            raise SourceError("there is no log of Inspect here", file=file, allowed="LOG.eval, LOG.json, or a folder")
        made = []
        for log in found:
            with recordable(log):
                made.append(storable(self._imported(log)))
        yield from sorted(made, key=lambda one: one.record.started_at)

    def _imported(self, file: Path) -> Imported:
        from harness.exchange import _inspect_archive, _inspect_rows

        head = _inspect_archive.header(file)
        _check_ended(head)
        spec = head.need("eval")
        scorer = self._scorer(head)
        epochs = [_inspect_rows.epoch(one, scorer=scorer) for one in _inspect_archive.samples(file)]
        task = spec.need("task").text()
        made = _inspect_rows.rows(task, epochs, scorer=scorer)
        if not made:
            raise SourceError("the log has no samples", file=file, remedy="run Inspect without --no-log-samples")
        provider, _, name = spec.need("model").text().partition("/")
        cell = Cell(
            model=self._model(spec, provider, name),
            pipeline=untouched(self.pipeline),
            runtime=Use(use=f"inspect:{provider}"),
            hardware=_device(spec),
            suite=_suite(head, scorer),
        )
        inspect_version = spec.get("packages").get("inspect_ai").value if spec.get("packages").value else None
        libraries: dict[str, JsonValue] = dict(spec.get("packages").mapping()) if spec.get("packages").value else {}
        record = Record(
            cell=cell,
            outcome=Outcome.OK,
            metrics=tuple(_metrics(task, made)),
            machine={"libraries": libraries, "imported": {file.name: file_digest(file)}},
            versions={"inspect importer": self.version}
            | ({"inspect_ai": inspect_version} if isinstance(inspect_version, str) else {}),
            started_at=spec.need("created").text(),
        )
        return Imported(record, made)

    def _scorer(self, head: Node) -> str:
        """Gives whose score counts. Raises SourceError when there is none or not the one asked for."""
        results = head.get("results")
        scores = results.get("scores").array() if results.value and results.get("scores").value else []
        names = [one.need("name").text() for one in scores]
        if not names:
            raise SourceError("nothing was scored in this log", file=head.place, remedy="score it: inspect score LOG")
        headline = results.get("headline")
        first = headline.need("score").text() if headline.value else names[0]
        wanted = self.scorer or (first if first in names else names[0])
        if wanted not in names:
            raise SourceError("the log has no such scorer", file=head.place, key="scorer", found=wanted, allowed=names)
        return wanted

    def _model(self, spec: Node, provider: str, name: str) -> Model:
        arguments = dict(spec.get("model_args").mapping()) if spec.get("model_args").value else {}
        folder = arguments.pop("model_path", None)
        if isinstance(folder, str):
            return named(f"path:{folder}", self.family, self.role).model_copy(update={"args": arguments})
        source = f"hub:{name}" if provider in WEIGHTS and name else f"inspect:{provider}/{name}".rstrip("/")
        return named(source, self.family, self.role).model_copy(update={"args": arguments})


def _logs(file: Path) -> list[Path]:
    if file.is_dir():
        return sorted(one for one in file.rglob("*.eval") if one.is_file())
    return [file] if file.is_file() and file.suffix in SUFFIXES else []


def _check_ended(head: Node) -> None:
    status = head.need("status").text()
    if status != "success":
        raise SourceError(
            "the run of this log did not end well",
            file=head.place,
            key="status",
            found=status,
            allowed="success",
            remedy="finish it: inspect eval-retry LOG",
        )


def _device(spec: Node) -> Hardware:
    arguments = spec.get("model_args").value
    said = arguments.get("device") if isinstance(arguments, dict) else None
    return device(said if isinstance(said, str) else None)


def _suite(head: Node, scorer: str) -> Suite:
    """Gives what was asked: the task with its arguments, its solver, its limits and how answers were generated."""
    spec = head.need("eval")
    config = spec.get("config")
    steps = head.get("plan").get("steps") if head.get("plan").value else None
    solver: list[JsonValue] = [
        [one.get("solver").value, one.get("params_passed").value or {}]
        for one in (steps.array() if steps is not None and steps.value else [])
    ]
    generation = dict(spec.get("model_generate_config").mapping()) if spec.get("model_generate_config").value else {}
    args: dict[str, JsonValue] = {
        "task": spec.need("task").text(),
        "task_args": spec.get("task_args").value or None,
        "scorer": scorer,
        "solver": solver,
        "limit": config.get("limit").value if config.value else None,
        "epochs": config.get("epochs").value if config.value else None,
        "generate": {key: value for key, value in generation.items() if key not in CONNECTION and value is not None}
        or None,
    }
    asked = Use(use=EVALUATION, args={key: value for key, value in args.items() if value is not None})
    version = spec.get("task_version").value
    return Suite(name=f"inspect {spec.need('task').text()}", version=str(version or 0), evaluations=(asked,))


def _metrics(task: str, made: Sequence[Observation]) -> Iterator[Metric]:
    from harness.evaluations.tasks._summary import summarize

    epochs = {int(row.values.get("epochs") or 1) for row in made}
    note: tuple[str, ...] = (
        (f"an item is the mean of {'/'.join(map(str, sorted(epochs)))} epochs",) if max(epochs) > 1 else ()
    )
    unscored = sum("score" not in row.values for row in made)
    if unscored:
        note += (f"{unscored} of {len(made)} samples have no score and are left out of the mean",)
    plain = [
        row.model_copy(update={"values": {k: v for k, v in row.values.items() if k not in ("epochs", "error")}})
        for row in made
    ]
    for metric in summarize(EVALUATION, task, [row for row in plain if "score" in row.values]):
        yield metric.model_copy(update={"caveats": (*metric.caveats, *note)})
