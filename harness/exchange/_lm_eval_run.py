"""One run of lm-eval as a record: its results file says what was asked of which model, its sample files what came.

lm-eval hashes the items of every task into its results; sample lines are held against that hash, their count against
the number of items, and the means over them against the averages in the results. What disagrees is refused: half a
file, a file of another run, or one that somebody changed.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from harness.errors import SourceError
from harness.evaluations.rows import column
from harness.evaluations.tasks._summary import summarize
from harness.exchange._lm_eval_rows import EVALUATION, PURE, Task, hashes, rows
from harness.exchange.imported import UNSTATED
from harness.exchange.reading import Node, json_lines
from harness.record import Interval, Metric, Observation
from harness.spec import Suite, Use
from harness.statistics.intervals import normal_quantile

NORMAL = "lm-eval's standard error, normal"
UNPAIRED = "lm-eval's average without its items: it cannot be paired"
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
LONGEST_NAME = 80
DEFAULT_SEED = 1234


@dataclass(frozen=True)
class Run:
    """A results file, read, and the sample files of the same run by task."""

    results: Node
    samples: Mapping[str, Path]

    @property
    def tasks(self) -> list[str]:
        """The tasks that were asked, without the groups that average them."""
        groups = (
            {name for name, parts in self.results.get("group_subtasks").items() if parts.value}
            if self._grouped
            else set()
        )
        return [name for name, _ in self.results.need("results").items() if name not in groups]

    @property
    def _grouped(self) -> bool:
        return isinstance(self.results.get("group_subtasks").value, dict)

    def rows(self) -> Iterator[Observation]:
        """Yields the rows of every task whose samples were kept. Raises SourceError where they are not whole."""
        for name in self.tasks:
            if name in self.samples:
                yield from self._rows(name, self.samples[name])

    def _rows(self, name: str, file: Path) -> tuple[Observation, ...]:
        lines = list(json_lines(file))
        task = self.task(name)
        made = rows(task, lines)
        self._check_whole(name, file, lines, len(made))
        assumed = set()
        for key, stated in self._averages(name):
            values, metric = column(made, key), key.partition(",")[0]
            if not values or math.isclose(math.fsum(values) / len(values), stated, rel_tol=1e-6, abs_tol=1e-9):
                continue
            if task.aggregations.get(metric) == "mean":
                raise _changed(name, file, key, found=math.fsum(values) / len(values), stated=stated)
            assumed.add(metric)
        if not assumed:
            return made
        # The results do not say how it is averaged, and the mean it is not.
        others = {**task.aggregations, **dict.fromkeys(assumed, "custom")}
        return rows(replace(task, aggregations=others), lines)

    def _check_whole(self, name: str, file: Path, lines: Sequence[Node], count: int) -> None:
        remedy = "import the files of one run, whole, as lm-eval wrote them"
        wanted = self._entry("n-samples", name, "effective")
        if isinstance(wanted, int) and wanted != count:
            raise SourceError(
                f"the samples of {name} are not whole", file=file, found=count, allowed=f"{wanted} items", remedy=remedy
            )
        stated = self._value("task_hashes", name)
        found = hashlib.sha256("".join(hashes(lines)).encode()).hexdigest()
        if isinstance(stated, str) and stated != found:
            raise SourceError(
                f"the samples of {name} are not those of the results",
                file=file,
                key=f"task_hashes.{name}",
                found=found,
                allowed=stated,
                remedy=remedy,
            )

    def _averages(self, name: str) -> Iterator[tuple[str, float]]:
        """Yields the averages of a task as rows name them: `acc`, `exact_match,strict-match`."""
        for key, value in self.results.need("results").get(name).items():
            metric, comma, which = key.partition(",")
            stated = value.finite()
            if comma and stated is not None and not metric.endswith("_stderr"):
                yield (metric if which == "none" else key), stated

    def task(self, name: str) -> Task:
        """Gives what the results say about a task."""
        config = self.results.get("configs").get(name) if self.results.get("configs").value else None
        known = config is not None and isinstance(config.value, dict)
        metrics = config.get("metric_list") if config is not None and known else None
        listed = metrics.array() if metrics is not None and metrics.value else []
        output = config.get("output_type").optional_text() if config is not None and known else None
        directions = self._value("higher_is_better", name)
        lower = (
            [metric for metric, better in directions.items() if better is False] if isinstance(directions, dict) else []
        )
        return Task(
            name=name,
            aggregations={
                one.need("metric").text(): str(one.get("aggregation").value)
                for one in listed
                if one.get("aggregation").value
            },
            lower=frozenset(lower),
            output_type=output,
        )

    def metrics(self, made: Sequence[Observation]) -> Iterator[Metric]:
        """Yields the metrics of every task: from its rows where there are any, the rest as lm-eval has them."""
        for name in self.tasks:
            own = [row for row in made if row.task == name]
            found = [self._described(metric) for metric in summarize(EVALUATION, name, own)]
            yield from found
            known = {metric.name for metric in found}
            for key, stated in self._averages(name):
                if key not in known:
                    yield self._stated(name, key, stated, has_rows=bool(own))

    @staticmethod
    def _described(metric: Metric) -> Metric:
        caveats = tuple(
            one for one in metric.caveats if "not summarized" not in one
        )  # lm-eval's own number is beside it
        return metric.model_copy(update={"caveats": caveats})

    def _stated(self, name: str, key: str, value: float, *, has_rows: bool) -> Metric:
        metric, comma, which = key.partition(",")
        error = self.results.need("results").get(name).get(f"{metric}_stderr,{which if comma else 'none'}").finite()
        reach = normal_quantile(0.95) * error if error else None
        n = self._entry("n-samples", name, "effective")
        how = self.task(name).aggregation(metric)
        return Metric(
            evaluation=EVALUATION,
            task=name,
            name=key,
            unit="fraction" if how in PURE and 0 <= value <= 1 else "1",
            value=value,
            n=n if isinstance(n, int) else 0,
            higher_is_better=metric not in self.task(name).lower,
            interval=None if reach is None else Interval(low=value - reach, high=value + reach, method=NORMAL),
            caveats=() if has_rows else (UNPAIRED,),
        )

    def suite(self) -> Suite:
        """Gives what was asked: one evaluation a task with what changes its prompts or its items."""
        tasks = self.tasks
        names = [name for name, parts in self._tops() if parts] + [name for name in tasks if not self._is_part(name)]
        joined = ", ".join(names)
        name = joined if len(joined) <= LONGEST_NAME else f"{names[0]} and {len(names) - 1} more"
        uses = tuple(Use(use=EVALUATION, args=self._asked(task)) for task in tasks)
        return Suite(name=f"lm_eval {name}", version=self.version or UNSTATED, evaluations=uses)

    def _tops(self) -> list[tuple[str, list[Node]]]:
        found = self.results.get("group_subtasks")
        pairs = [(name, parts.array()) for name, parts in found.items()] if self._grouped else []
        inner = {part.text() for _, parts in pairs for part in parts}
        return [(name, parts) for name, parts in pairs if name not in inner]

    def _is_part(self, task: str) -> bool:
        found = self.results.get("group_subtasks")
        return self._grouped and any(part.value == task for _, parts in found.items() for part in parts.array())

    def _asked(self, task: str) -> dict[str, JsonValue]:
        config = self.results.need("config")
        shots = self._value("n-shot", task)
        args: dict[str, JsonValue] = {
            "task": task,
            "version": self._value("versions", task),
            "num_fewshot": shots,
            "limit": config.get("limit").value,
            "chat": bool(self.results.get("chat_template_sha").value or self.results.get("chat_template").value),
            "gen_kwargs": config.get("gen_kwargs").value,
            "system_instruction": self.results.get("system_instruction_sha").value,
        }
        seed = config.get("fewshot_seed").value
        if shots and seed != DEFAULT_SEED:
            args["fewshot_seed"] = seed
        return {key: value for key, value in args.items() if value is not None and value is not False}

    @property
    def version(self) -> str | None:
        return self.results.get("lm_eval_version").optional_text()

    def source(self) -> str:
        """Gives the model as `hub:`, `path:` or, for what is neither, `<backend>:`."""
        name = self.results.need("model_name").text()
        backend = self.results.need("model_source").text()
        arguments = self.results.need("config").get("model_args").value
        weights = (isinstance(arguments, dict) and "pretrained" in arguments) or "pretrained=" in str(arguments)
        if self.results.need("config").get("model_sha").value:
            return f"hub:{name}"
        if name.startswith(("/", "./", "../", "~")) or "\\" in name:
            return f"path:{name}"
        return f"hub:{name}" if weights and HUB_NAME.fullmatch(name) else f"{backend}:{name}"

    def started_at(self) -> str:
        """Gives when the run started, in UTC, or nothing."""
        date = self.results.get("date").finite()
        return "" if date is None else datetime.fromtimestamp(date, UTC).isoformat(timespec="seconds")

    def _value(self, table: str, name: str) -> JsonValue:
        found = self.results.get(table).value
        value: JsonValue = found.get(name) if isinstance(found, dict) else None
        return value

    def _entry(self, table: str, name: str, key: str) -> JsonValue:
        found = self._value(table, name)
        return found.get(key) if isinstance(found, dict) else None


def _changed(name: str, file: Path, key: str, *, found: float, stated: float) -> SourceError:
    return SourceError(
        f"the samples of {name} do not give the average in the results",
        file=file,
        key=key,
        found=found,
        allowed=str(stated),
        remedy="import the files of one run as lm-eval wrote them",
    )
