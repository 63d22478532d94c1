"""What an evaluation of ours keeps of lm-eval's tasks: names, hashes, chance, and rows that come as they are made."""

import itertools
import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from harness.errors import SpecError, Unsupported
from harness.evaluations.tasks import _loading, offline
from harness.evaluations.tasks._rows import cluster_of
from harness.evaluations.tasks.lm_eval import LmEval
from harness.interfaces import Finish, GenerateRequest, ScoreRequest, Token
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
        ({"task": "arc_easy", "part": [0, 5]}, r"\[k, K\]"),
        ({"task": "arc_easy", "part": [6, 5]}, r"\[k, K\]"),
        ({"task": "arc_easy", "part": [1]}, r"\[k, K\]"),
        ({"task": "arc_easy", "part": [True, 2]}, r"\[k, K\]"),
        ({"task": "arc_easy", "order_seed": -1}, "own order"),
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
    assert names == ["score", "exact_match,anything", "exact_match,strict", "truncated_share"]
    assert all(row.values["score"] == row.values["exact_match,strict"] for row in rows)


class Teller:
    """A session over characters that answers every prompt with the next of some texts, and then is asked for more."""

    def __init__(self, session: FakeSession, *answers: tuple[str, Finish]) -> None:
        self._characters, self._answers = session, itertools.cycle(answers)

    def __getattr__(self, name: str) -> object:
        return getattr(self._characters, name)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        # The last request ends first, as in a runtime that runs them together.
        told = [next(self._answers) for _ in requests]
        for number, (text, finish) in reversed(list(enumerate(told))):
            yield Token(number, 1, finish, text)


def shares(evaluation: LmEval, rows: list[Observation]) -> dict[str, float]:
    return {one.name: one.value for one in evaluation.summarize(rows) if one.name.endswith("_share")}


def test_a_row_says_whether_its_answer_was_cut_and_whether_it_held_one(session, tmp_path) -> None:
    evaluation = LmEval(task="offline_arithmetic_write", limit=4)
    told = Teller(session, (" 12", "stop"), (" twelve or", "length"), ("", "eos"), (" -3", "length"))
    rows = observe(evaluation, told, tmp_path)
    assert [row.values["truncated"] for row in rows] == [False, True, False, True]
    assert [row.values["unparsed"] for row in rows] == [False, True, True, False]
    # Two of four each.
    assert shares(evaluation, rows) == {"truncated_share": 0.5, "unparsed_share": 0.5}
    assert not any(one.higher_is_better for one in evaluation.summarize(rows) if one.name.endswith("_share"))
    assert {one.unit for one in evaluation.summarize(rows)} == {"fraction"}


def test_choices_and_texts_are_neither_cut_nor_unparsed(session, tmp_path) -> None:
    for task in ("offline_arithmetic", "offline_text", "offline_next_word"):
        rows = observe(LmEval(task=task, limit=2), session, tmp_path)
        assert not any({"truncated", "unparsed", "cluster"} & row.values.keys() for row in rows)


@pytest.mark.parametrize(
    ("task", "answer", "is_answer"),
    [
        ("lab_arithmetic", "12", True),
        ("lab_arithmetic", "12 apples", False),
        ("lab_lookup", "9", True),
        ("lab_copy", "sun box", True),
        ("lab_qa", "...", False),
        ("lab_tools", "call: add(1,2)", True),
        ("lab_tools", "call: no_such_thing", False),
        ("lab_tools", "call: nothing(1)", True),
        ("lab_tools", "add(1,2)", False),
        ("offline_instructions", "  ", False),
    ],
)
def test_our_own_tasks_know_what_an_answer_looks_like(task, answer, is_answer) -> None:
    assert offline.TASKS[task].is_answer(answer) == is_answer


def test_an_answer_that_lm_evals_filter_could_not_read_is_told_by_the_filter_behind_the_score(
    session, tmp_path, monkeypatch
) -> None:
    index = own_index(tmp_path)
    monkeypatch.setattr(_loading, "_index", lambda: index)
    searched = "filter: [{function: regex, regex_pattern: '([0-9]+)'}, {function: take_first}]}"
    file = tmp_path / "one.yaml"
    text = file.read_text(encoding="utf-8").replace("filter: [{function: take_first}]}", searched, 1)
    file.write_text(text, encoding="utf-8")
    told = Teller(session, ("it is 7", "eos"), ("it is seven", "eos"), ("8", "length"))
    rows = observe(LmEval(task="one"), told, tmp_path)
    assert [row.values["unparsed"] for row in rows] == [False, True, False]
    # Scored by the other filter, which takes any character, nothing is unreadable but an empty answer.
    empty = Teller(session, ("x", "eos"), ("", "eos"), ("y", "eos"))
    rows = observe(LmEval(task="one", metric="exact_match,anything"), empty, tmp_path)
    assert [row.values["unparsed"] for row in rows] == [False, True, False]
    # The tasks that no filter searches say nothing.
    assert not any("unparsed" in row.values for row in observe(LmEval(task="two"), told, tmp_path))


def test_items_that_share_a_field_are_one_cluster(session, tmp_path) -> None:
    evaluation = LmEval(task="offline_functions", limit=4, cluster="category")
    documents = offline.functions.items(artifacts(tmp_path))["test"][:4]
    rows = observe(evaluation, session, tmp_path)
    assert [row.values["cluster"] for row in rows] == [one["category"] for one in documents]


def test_a_long_cluster_is_named_by_its_hash_and_an_empty_one_not_at_all() -> None:
    long = "once upon a time there was a passage of more than forty characters"
    assert cluster_of({"passage": "short"}, "passage") == "short"
    assert cluster_of({"passage": long}, "passage") == cluster_of({"passage": long, "id": 2}, "passage") != long
    assert len(cluster_of({"passage": long}, "passage")) == 12
    assert cluster_of({"passage": ""}, "passage") is cluster_of({"passage": None}, "passage") is None
    assert cluster_of({"page": [3, 4]}, "page") == "[3, 4]"


def test_the_clusters_of_two_tasks_of_a_group_are_kept_apart(session, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_loading, "_index", lambda: own_index(tmp_path))
    rows = observe(LmEval(task="both", cluster="a"), session, tmp_path)
    assert [row.values["cluster"] for row in rows] == ["one/x"] * 3 + ["two/x"] * 3


def test_a_cluster_that_the_documents_do_not_name_is_refused_with_what_they_have(session, tmp_path) -> None:
    with pytest.raises(SpecError, match=r"allowed: .*category.*question"):
        observe(LmEval(task="offline_arithmetic", limit=2, cluster="passage"), session, tmp_path)


def test_the_parts_of_a_task_are_the_whole_with_the_same_rows(session, tmp_path) -> None:
    def of(**args: object) -> dict[str, Observation]:
        return {
            row.sample: row for row in observe(LmEval(task="offline_arithmetic", limit=20, **args), session, tmp_path)
        }

    whole, parts = of(), [of(part=[k, 3]) for k in (1, 2, 3)]
    assert sorted(len(part) for part in parts) == [6, 7, 7]
    assert sum(len(part) for part in parts) == len(whole)
    assert {name: row for part in parts for name, row in part.items()} == whole


def test_equal_documents_keep_their_names_in_parts_and_in_another_order(session, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_loading, "_index", lambda: own_index(tmp_path))
    whole = {row.sample for row in observe(LmEval(task="one"), session, tmp_path)}
    parts = [observe(LmEval(task="one", part=[k, 3], order_seed=4), session, tmp_path) for k in (1, 2, 3)]
    assert {row.sample for part in parts for row in part} == whole
    assert [len(part) for part in parts] == [1, 1, 1]


def test_a_part_without_documents_is_refused(session, tmp_path) -> None:
    observe(LmEval(task="offline_arithmetic", limit=2, part=[1, 5]), session, tmp_path)
    with pytest.raises(SpecError, match="up to 2 parts of 2 documents"):
        observe(LmEval(task="offline_arithmetic", limit=2, part=[2, 5]), session, tmp_path)


def test_another_order_asks_the_same_questions_in_another_order(session, tmp_path) -> None:
    plain, other, again = (
        observe(LmEval(task="offline_arithmetic", limit=50, order_seed=seed), session, tmp_path) for seed in (0, 1, 1)
    )
    assert [row.sample for row in plain] != [row.sample for row in other] == [row.sample for row in again]
    # The fake model gives every request its own answer, whatever else is in the batch.
    assert sorted(plain, key=lambda row: row.sample) == sorted(other, key=lambda row: row.sample)
