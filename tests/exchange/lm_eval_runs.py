"""Output folders that lm-eval itself writes: its own evaluator, its own tracker, a tiny model, no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.evaluations.tasks._loading import load_tasks
from tests.evaluations.tasks.worlds import artifacts

FILTERED = "colours"
DOCUMENTS = [
    {"id": str(n), "question": f"Colour {n}?", "answer": word} for n, word in enumerate(["red", "blue", "red"])
]


class Index:
    """The tasks at hand, in place of lm-eval's index of thousands."""

    def __init__(self, tasks: dict[str, Any]) -> None:
        self.tasks, self.all_tasks, self.task_index = tasks, list(tasks), dict[str, Any]()

    def load(self, names: Sequence[str]) -> dict[str, Any]:
        return {"tasks": {name: self.tasks[name] for name in names}, "groups": {}}


def run(out: Path, model: Path, tasks: Sequence[str], *, limit: int = 6, samples: bool = True) -> Path:
    """Runs lm-eval as its command line does with `--log_samples`; gives the folder it wrote into."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    given = artifacts(out / "artifacts")
    found = {name: task for name in tasks for name, task in _tasks(name, given).items()}
    tracker = EvaluationTracker(output_path=str(out / "out"))
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model), "dtype": "float32"},
        tasks=list(found),
        task_manager=Index(found),
        limit=limit,
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
        evaluation_tracker=tracker,
    )
    kept = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=kept if samples else None)
    for name in results["configs"] if samples else ():
        tracker.save_results_samples(task_name=name, samples=kept[name])
    return out / "out"


def _tasks(name: str, given: Any) -> dict[str, Any]:
    return {FILTERED: two_filters()} if name == FILTERED else load_tasks(name, given)


def two_filters() -> Any:
    """A task judged twice: the whole answer must be the word, or its second filter always answers `red`."""
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    tables = DatasetDict({"test": Dataset.from_list(DOCUMENTS)})
    fixed = {"function": "regex", "regex_pattern": "(never there)", "fallback": "red"}
    return ConfigurableTask(
        config={
            "task": FILTERED,
            "custom_dataset": lambda **_: tables,
            "output_type": "generate_until",
            "test_split": "test",
            "doc_to_text": "question",
            "doc_to_target": "answer",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
            "filter_list": [
                {"name": "whole", "filter": [{"function": "take_first"}]},
                {"name": "fixed", "filter": [fixed, {"function": "take_first"}]},
            ],
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            "metadata": {"version": 3},
        }
    )
