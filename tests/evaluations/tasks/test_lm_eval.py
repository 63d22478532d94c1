"""What an evaluation of ours keeps of lm-eval's tasks: names, hashes, chance, and rows that come as they are made."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from harness.errors import SpecError, Unsupported
from harness.evaluations.tasks import _loading, offline
from harness.evaluations.tasks.lm_eval import LmEval
from harness.interfaces import GenerateRequest, ScoreRequest
from harness.record import Observation
from harness.spec import Need
from harness.testing import VOCABULARY, FakeSession
from tests.evaluations.tasks.worlds import artifacts, context


@pytest.fixture
def session() -> FakeSession:
    """A model whose next character depends on the last one alone; its context holds 512 of them."""
    return FakeSession(np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32), "0")


def observe(
    evaluation: LmEval, session: FakeSession, folder: Path, told: list[float] | None = None
) -> list[Observation]:
    return list(evaluation.observe(session, context=context(folder, artifacts(folder), told)))


def test_a_row_says_which_item_which_prompt_and_what_guessing_gives(session, tmp_path) -> None:
    rows = observe(LmEval(task="offline_arithmetic", limit=5), session, tmp_path)
    assert [row.sample for row in rows] == [item["id"] for item in offline.arithmetic.choices({})["test"][:5]]
    for row in rows:
        assert row.values["chance"] == 0.25
        assert row.values["score"] == row.values["acc"] == float(row.values["response"] == row.values["target"])
        assert (row.values["margin"] > 0) == bool(row.values["acc"])
        assert len(row.values["item_hash"]) == len(row.values["prompt_hash"]) == 12


def test_the_prompt_hash_changes_with_the_prompt_and_the_item_hash_does_not(session, tmp_path) -> None:
    plain, shots = (
        observe(LmEval(task="offline_arithmetic", limit=3, num_fewshot=n), session, tmp_path) for n in (0, 3)
    )
    assert [row.values["item_hash"] for row in plain] == [row.values["item_hash"] for row in shots]
    assert not {row.values["prompt_hash"] for row in plain} & {row.values["prompt_hash"] for row in shots}


def test_rows_leave_while_the_rest_still_runs_and_progress_is_told(session, tmp_path) -> None:
    told: list[float] = []
    running = LmEval(task="offline_reading", limit=80).observe(
        session, context=context(tmp_path, artifacts(tmp_path), told)
    )
    first = [next(running) for _ in range(33)]
    assert told == [pytest.approx(32 / 80)]
    assert len(first) + len(list(running)) == 80
    assert told[-1] == 1.0


def test_another_metric_can_be_the_score(session, tmp_path) -> None:
    rows = observe(LmEval(task="offline_functions", metric="acc_norm"), session, tmp_path)
    assert all(row.values["score"] == row.values["acc_norm"] for row in rows)
    assert {row.values["chance"] for row in rows} == {1 / 2, 1 / 3}


def test_a_metric_that_the_task_does_not_give_is_refused_with_those_it_gives(session, tmp_path) -> None:
    with pytest.raises(SpecError, match=r"acc_norm"):
        observe(LmEval(task="offline_functions", metric="accuracy", limit=2), session, tmp_path)


def test_texts_keep_what_their_cost_is_computed_from(session, tmp_path) -> None:
    rows = observe(LmEval(task="offline_text", limit=2), session, tmp_path)
    assert all(row.values["bytes"] == 800 and row.values["logprob"] < 0 for row in rows)
    assert not any("score" in row.values for row in rows)


def test_the_cost_of_a_text_is_the_sum_over_its_characters(session, tmp_path) -> None:
    row = observe(LmEval(task="offline_text", limit=1), session, tmp_path)[0]
    text = next(one for one in offline.text.passages(artifacts(tmp_path))["test"] if one["id"] == row.sample)["text"]
    # A model that wants a BOS gets it twice, as in lm-eval: from its tokenizer, and to start the first window.
    before = [session.prefix_token, *session.encode(text, bos=True)]
    each = [session.score([ScoreRequest([a], [b])])[0].logprobs[0] for a, b in pairwise(before)]
    assert row.values["logprob"] == pytest.approx(sum(each), rel=1e-5)


def test_written_answers_are_kept_and_judged(session, tmp_path) -> None:
    rows = observe(LmEval(task="offline_instructions", limit=4, chat=True), session, tmp_path)
    item = offline.instructions.items({})["test"][0]
    prompt = session.encode(session.chat([{"role": "user", "content": item["prompt"]}]), bos=True)
    written = [token.text for token in session.generate([GenerateRequest(prompt, max_tokens=48)])][-1]
    assert rows[0].values["response"] == written
    assert {row.values["followed"] for row in rows} <= {0.0, 1.0}


def test_our_tasks_ask_for_their_data_and_lm_evals_for_none() -> None:
    assert LmEval(task="arc_easy").needs == ()
    assert LmEval(task="offline_text").needs == (Need(name="corpus", source="docstrings:default"),)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"task": ""}, "offline_geography"),
        ({"task": "offline_nothing"}, "offline_geography"),
        ({"task": "arc_easy", "limit": 0}, "from 1"),
        ({"task": "arc_easy", "num_fewshot": -1}, "0 or more"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_allowed(arguments, told) -> None:
    with pytest.raises(ValueError, match=told):
        LmEval(**arguments)


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline_hub")
def test_a_task_whose_data_are_on_the_hub_is_unsupported_without_it(session, tmp_path) -> None:
    with pytest.raises(Unsupported, match=r"arc_easy needs a data set .* hub") as caught:
        observe(LmEval(task="arc_easy", limit=1), session, tmp_path)
    assert "offline_geography" in caught.value.remedy


def test_a_task_that_lm_eval_does_not_have_is_refused_with_the_closest(session, tmp_path) -> None:
    with pytest.raises(SpecError, match="'arc_easy'"):
        observe(LmEval(task="arc_eazy"), session, tmp_path)


def test_an_answer_longer_than_the_context_is_unsupported(session) -> None:
    from harness.evaluations.tasks._language_model import SessionLM

    with pytest.raises(Unsupported, match="does not fit"):
        SessionLM(session, seed=0)._loglikelihood_tokens([(None, [1], [2] * 512)])


def own_index(folder: Path):
    """An index of lm-eval with a group of two tasks, their data beside them and two filters on their answers."""
    from lm_eval.tasks import TaskManager

    common = (
        "dataset_path: json\ntest_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: a\n"
        'generation_kwargs: {until: ["z"], max_gen_toks: 20}\n'
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
        "filter_list:\n"
        "  - {name: strict, filter: [{function: take_first}]}\n"
        "  - {name: anything, filter: [{function: regex, regex_pattern: '(.)'}, {function: take_first}]}\n"
    )
    for name in ("one", "two"):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps({"q": f"{name} {n}", "a": "x"}) + "\n" for n in (1, 2, 2)), encoding="utf-8")
        kwargs = json.dumps({"data_files": {"test": str(data)}, "cache_dir": str(folder / "cache")})
        (folder / f"{name}.yaml").write_text(f"task: {name}\ndataset_kwargs: {kwargs}\n{common}", encoding="utf-8")
    (folder / "both.yaml").write_text("group: both\ntask: [one, two]\n", encoding="utf-8")
    return TaskManager(include_path=str(folder), include_defaults=False)


def test_a_group_is_one_task_whose_rows_name_their_part_and_every_filter(session, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_loading, "_index", lambda: own_index(tmp_path))
    evaluation = LmEval(task="both")
    rows = observe(evaluation, session, tmp_path)
    assert [row.values["category"] for row in rows] == ["one"] * 3 + ["two"] * 3
    assert {row.sample.split("/")[0] for row in rows} == {"one", "two"}
    assert rows[2].sample == f"{rows[1].sample}-2", "the same question asked twice keeps two names"
    assert {"exact_match,strict", "exact_match,anything", "score"} <= set(rows[0].values)
    names = [metric.name for metric in evaluation.summarize(rows)]
    assert names == ["score", "exact_match,anything", "exact_match,strict"]
    assert all(row.values["score"] == row.values["exact_match,strict"] for row in rows)
