"""Importing what lm-eval writes; the files are made by lm-eval itself."""

import json
import math
import shutil
from pathlib import Path

import pytest

from harness.errors import SourceError
from harness.evaluations.tasks.lm_eval import LmEval
from harness.exchange import _lm_eval_rows
from harness.exchange.imported import Imported
from harness.exchange.lm_eval import LmEvalLog
from harness.exchange.reading import Node
from harness.record import Outcome
from harness.runtimes.transformers import Transformers
from harness.spec import Hardware
from harness.statistics.items import pair, scored
from tests.evaluations.tasks.worlds import artifact, artifacts, context
from tests.exchange import lm_eval_runs
from tests.tiny import tiny_llama

TASKS = ("offline_arithmetic", "offline_next_word", "offline_text", lm_eval_runs.FILTERED)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def written(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lm_eval_runs.run(tmp_path_factory.mktemp("run"), model, TASKS)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil: the one folder with the files."""
    return Path(shutil.copytree(next(written.iterdir()), tmp_path / "copy"))


@pytest.fixture(scope="module")
def imported(written: Path) -> Imported:
    (found,) = LmEvalLog().read(written)
    return found


def results_of(folder: Path) -> Path:
    return next(folder.glob("results_*.json"))


def samples_of(folder: Path, task: str) -> Path:
    return next(folder.glob(f"samples_{task}_*.jsonl"))


def rewrite(file: Path, number: int, **changed: object) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    lines[number] = json.dumps({**json.loads(lines[number]), **changed})
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_rows_are_those_of_our_own_evaluation_on_the_same_model(
    imported: Imported, model: Path, tmp_path: Path
) -> None:
    given = artifacts(tmp_path)
    with Transformers(dtype="float32").open(artifact(model, "hf"), hardware=Hardware()) as session:
        for task in TASKS[:2]:
            ours = list(LmEval(task=task, limit=6).observe(session, context=context(tmp_path, given)))
            theirs = [row for row in imported.rows if row.task == task]
            assert len(ours) == len(theirs) == 6
            for own, row in zip(ours, theirs, strict=True):
                for key in ("score", "acc", "acc_norm", "response", "target", "lower_is_better"):
                    assert row.values.get(key) == own.values.get(key), key
                for key in ("target_logprob", "margin", "perplexity:perplexity"):
                    assert row.values.get(key) == pytest.approx(own.values.get(key), abs=2e-4)
                # lm-eval knows no chance for a written word; our own task says that guessing gives nothing.
                assert row.values.get("chance") in (own.values["chance"], None)


def test_metrics_are_the_averages_that_lm_eval_wrote(imported: Imported, written: Path) -> None:
    results = json.loads(results_of(next(written.iterdir())).read_text())["results"]
    found = {
        (one.task, one.name if "," in one.name else f"{one.name},none"): one.value for one in imported.record.metrics
    }
    for task, averages in results.items():
        for key, value in averages.items():
            if "," in key and "_stderr" not in key:
                assert found[task, key] == pytest.approx(value, rel=1e-9), (task, key)


def test_of_several_filters_the_first_gives_the_score_and_the_others_stay(imported: Imported) -> None:
    rows = [row for row in imported.rows if row.task == lm_eval_runs.FILTERED]
    assert len(rows) == 3
    # The second filter answers `red` whatever the model wrote, and the answers are red, blue, red.
    assert [row.values["exact_match,fixed"] for row in rows] == [1.0, 0.0, 1.0]
    assert all(row.values["score"] == row.values["exact_match,whole"] for row in rows)


def test_the_record_says_what_the_files_say_and_no_more(imported: Imported, model: Path) -> None:
    record = imported.record
    assert record.outcome is Outcome.OK
    assert record.identity is None
    assert record.artifact is None
    assert record.cell.model.source == f"path:{model}"
    assert record.cell.model.args == {"dtype": "float32"}
    assert record.cell.runtime.use == "lm_eval:hf"
    assert record.cell.hardware.device == "cpu"
    assert record.machine["libraries"]["lm-eval"] == record.versions["lm_eval"] == record.cell.suite.version
    assert str(model) not in json.dumps(record.machine)
    asked = {use.args["task"]: use.args for use in record.cell.suite.evaluations}
    assert asked["offline_arithmetic"] == {"task": "offline_arithmetic", "version": 1, "num_fewshot": 2, "limit": 6}
    assert asked["offline_next_word"]["num_fewshot"] == 0


def test_the_same_task_run_twice_is_two_records_of_one_cell_whose_items_all_pair(
    imported: Imported, written: Path, model: Path, tmp_path: Path
) -> None:
    again = lm_eval_runs.run(tmp_path, model, TASKS)
    both = Path(shutil.copytree(written, tmp_path / "both"))
    shutil.copytree(again, both, dirs_exist_ok=True)
    first, second = LmEvalLog().read(both)
    assert first == imported
    assert first.record.cell == second.record.cell
    assert first.record.started_at < second.record.started_at
    mine, others = scored(second.rows), scored(first.rows)
    assert mine.keys() == others.keys() == {("tasks.lm_eval", task) for task in TASKS if task != "offline_text"}
    for task, items in mine.items():
        found = pair(items, others[task])
        assert (found.missing, found.extra, found.unlike) == (0, 0, 0)


def test_a_run_without_samples_gives_averages_that_cannot_be_paired(model: Path, tmp_path: Path) -> None:
    (found,) = LmEvalLog().read(lm_eval_runs.run(tmp_path, model, ["offline_arithmetic"], samples=False))
    assert found.rows == ()
    assert {one.name for one in found.record.metrics} == {"acc", "acc_norm"}
    assert all("cannot be paired" in one.caveats[0] and one.n == 6 for one in found.record.metrics)


def test_an_interval_without_items_is_lm_evals_own_error(folder: Path) -> None:
    results = json.loads(results_of(folder).read_text())
    for file in folder.glob("samples_*"):
        file.unlink()
    results["results"]["offline_arithmetic"] |= {"acc,none": 0.5, "acc_stderr,none": 0.1}
    results_of(folder).write_text(json.dumps(results))
    (found,) = LmEvalLog().read(folder)
    (acc,) = [one for one in found.record.metrics if (one.task, one.name) == ("offline_arithmetic", "acc")]
    # 1.959964 standard errors either way.
    assert (acc.interval.low, acc.interval.high) == pytest.approx((0.5 - 0.1959964, 0.5 + 0.1959964), abs=1e-6)


def test_a_broken_line_late_in_a_file_is_named_by_its_number(folder: Path) -> None:
    file = samples_of(folder, "offline_arithmetic")
    file.write_text(file.read_text()[:-200])
    with pytest.raises(SourceError, match=rf"{file.name}:6\n") as error:
        list(LmEvalLog().read(folder))
    assert "half a" in str(error.value)


def test_a_line_with_a_wrong_type_names_line_and_key(folder: Path) -> None:
    file = samples_of(folder, "offline_arithmetic")
    rewrite(file, 3, doc_id="three")
    with pytest.raises(SourceError, match=r"not what this format") as error:
        list(LmEvalLog().read(folder))
    assert f"{file.name}:4" in str(error.value)
    assert "key:     doc_id" in str(error.value)
    assert "allowed: a whole number" in str(error.value)


def test_samples_that_lack_an_item_are_refused(folder: Path) -> None:
    file = samples_of(folder, "offline_arithmetic")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(SourceError, match="not whole") as error:
        list(LmEvalLog().read(folder))
    assert "found:   5" in str(error.value)
    assert "6 items" in str(error.value)


def test_samples_with_another_prompt_than_the_results_hash_are_refused(folder: Path) -> None:
    rewrite(samples_of(folder, "offline_arithmetic"), 2, prompt_hash="0" * 64)
    with pytest.raises(SourceError, match="not those of the results"):
        list(LmEvalLog().read(folder))


def test_samples_whose_scores_were_changed_are_refused(folder: Path) -> None:
    file = samples_of(folder, "offline_arithmetic")
    line = json.loads(file.read_text().splitlines()[0])
    rewrite(file, 0, acc=1 - line["acc"])
    with pytest.raises(SourceError, match="do not give the average"):
        list(LmEvalLog().read(folder))


def test_a_document_that_is_there_twice_under_one_filter_names_both_lines(folder: Path) -> None:
    rewrite(samples_of(folder, "offline_arithmetic"), 1, doc_id=0)
    with pytest.raises(SourceError, match="twice") as error:
        list(LmEvalLog().read(folder))
    assert ".jsonl:2" in str(error.value)
    assert ".jsonl:1" in str(error.value)


def test_samples_without_results_are_refused_because_they_name_no_model(folder: Path) -> None:
    results_of(folder).unlink()
    with pytest.raises(SourceError, match="no results file"):
        list(LmEvalLog().read(folder))


def test_a_metric_whose_averaging_is_not_stated_and_that_is_no_mean_keeps_lm_evals_number(folder: Path) -> None:
    results = json.loads(results_of(folder).read_text())
    del results["configs"]["offline_arithmetic"]["metric_list"]
    results["results"]["offline_arithmetic"]["acc_norm,none"] = 0.123
    results_of(folder).write_text(json.dumps(results))
    (found,) = LmEvalLog().read(folder)
    (metric,) = [one for one in found.record.metrics if (one.task, one.name) == ("offline_arithmetic", "acc_norm")]
    assert metric.value == 0.123


@pytest.mark.parametrize(
    ("targets", "gold"),
    [
        (["1", "0"], [None, None]),  # places, or the texts of the other choice: nothing tells
        (["1", "2"], [1, 2]),  # 2 is the text of no choice, so they are places
        (["1", "x"], [0, 2]),  # x is no place, so they are texts
        (["[0, 2]", "x"], [[0, 2], 2]),
    ],
)
def test_the_right_choice_is_read_where_the_task_does_not_leave_it_open(targets, gold) -> None:
    offered = ["1", "0", "x"]
    lines = [
        Node(
            {"arguments": {str(n): {"arg_1": f" {one}"} for n, one in enumerate(offered)}, "metrics": [], "target": t},
            "",
        )
        for t in targets
    ]
    told_by = _lm_eval_rows._told_by(lines)
    assert [_lm_eval_rows._gold(target, offered, told_by) for target in targets] == gold


def test_several_right_choices_make_guessing_easier() -> None:
    line = {
        "arguments": {f"gen_args_{n}": {"arg_0": "q", "arg_1": f" {n}x"} for n in range(4)},
        "resps": [[["-1.5", "False"]], [["-0.5", "True"]], [["-3", "False"]], [["-4", "False"]]],
        "metrics": ["acc"],
        "target": "[0, 1]",
    }
    found = _lm_eval_rows._choice(Node(line, "made"), frozenset())
    assert found == {"response": 1, "chance": 0.5, "target": "[0, 1]"}


def test_values_that_are_not_finite_are_absent() -> None:
    task = _lm_eval_rows.Task("t", {"acc": "mean"}, frozenset(), "generate_until")
    assert _lm_eval_rows._kept(task, "acc", Node(math.nan, "made")) == {}
