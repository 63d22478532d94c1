"""The lab's tasks: held-out exercises that one who reads the prompt answers without a mistake."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import yaml

from harness import matrix
from harness.evaluations.tasks import offline
from harness.evaluations.tasks.lm_eval import LmEval
from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Token
from harness.sources.lab.exercises import KINDS, Exercise, exercises
from harness.sources.lab.tokenizer import train_tokenizer
from harness.testing import VOCABULARY, FakeSession
from tests.evaluations.tasks.worlds import context
from tests.sources.lab.solving import solve

WRITTEN = [f"lab_{kind}" for kind in KINDS]
LAB = [*WRITTEN, "lab_likelihood"]


def items(name: str) -> list[dict]:
    return offline.TASKS[name].items({})["test"]


class Reader:
    """A session over characters that answers by reading the prompt and goes on until it is stopped."""

    def __init__(self) -> None:
        self._characters = FakeSession(np.zeros((VOCABULARY, VOCABULARY), np.float32), "0")
        self.asked: list[GenerateRequest] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._characters, name)

    def generate(self, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
        self.asked += requests
        for number, request in enumerate(requests):
            text = self._answer(self.decode(request.prompt)) + "\nand so on"
            stopped = min(text.index(stop) for stop in request.stop if stop in text)
            yield Token(number, 0, "stop", text[:stopped])

    def score(self, requests: Sequence[ScoreRequest]) -> list[Scored]:
        return [self._scored(self.decode(one.context), self.decode(one.continuation)) for one in requests]

    def _scored(self, before: str, after: str) -> Scored:
        # lm-eval moves white space at the end of a prompt to the beginning of what is scored.
        moved = after[: len(after) - len(after.lstrip("\n"))]
        right = (moved + self._answer(before + moved)).startswith(after)
        return Scored([-0.5 if right else -9.0] * len(after), [right] * len(after))

    def _answer(self, prompt: str) -> str:
        kind = {"copy": "copy", "reverse": "copy", "lookup": "lookup", "user": "tools"}.get(prompt.split(":")[0])
        return solve(kind or ("arithmetic" if prompt.endswith("=") else "qa"), prompt)


def observe(name: str, session: object, folder, limit: int | None = None) -> list:
    return list(LmEval(task=name, limit=limit).observe(session, context=context(folder, {})))


@pytest.mark.parametrize("name", LAB)
def test_one_who_reads_the_prompt_scores_one(name, tmp_path) -> None:
    rows = observe(name, Reader(), tmp_path)
    assert len(rows) == len(items(name))
    assert {row.values["score"] for row in rows} == {1.0}
    assert {row.values["chance"] for row in rows} == {0.0}


@pytest.mark.parametrize("name", WRITTEN)
def test_one_who_says_something_else_scores_nothing(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Reader, "_answer", lambda self, prompt: " no")
    assert {row.values["score"] for row in observe(name, Reader(), tmp_path, limit=20)} == {0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_asked_as_it_stands_and_is_nothing_but_the_beginning_of_a_document(kind, tmp_path) -> None:
    reader = Reader()
    observe(f"lab_{kind}", reader, tmp_path, limit=10)
    asked = [reader.decode(request.prompt) for request in reader.asked]
    assert asked == [item["prompt"] for item in items(f"lab_{kind}")[:10]]
    for prompt, item in zip(asked, items(f"lab_{kind}"), strict=False):
        one = Exercise(kind, prompt, solve(kind, prompt))
        assert one.text.startswith(prompt + item["continuation"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_prompt_is_held_out_and_comes_once(kind) -> None:
    prompts = [item["prompt"] for item in items(f"lab_{kind}")]
    # Fewer than 200 of the 2465 prompts of arithmetic are held out; 4000 draws find nearly all of them.
    assert len(set(prompts)) == len(prompts)
    assert 70 < len(prompts) < 178 if kind == "arithmetic" else len(prompts) == 200
    assert {Exercise(kind, prompt, "").split for prompt in prompts} == {"heldout"}


def test_the_scored_items_are_the_first_written_ones_of_every_kind_in_turn() -> None:
    scored = items("lab_likelihood")
    assert [item["category"] for item in scored[:5]] == list(KINDS)
    for kind in KINDS:
        mine = [item["prompt"] for item in scored if item["category"] == kind]
        assert mine == [item["prompt"] for item in items(f"lab_{kind}")[:40]]


def test_every_answer_fits_what_may_be_written() -> None:
    sample = [one.text for kind in KINDS for one in itertools.islice(exercises(kind, seed=0, split="train"), 400)]
    tokenizer = train_tokenizer(sample, vocabulary=1024)
    for name in WRITTEN:
        limit = offline.TASKS[name].config()["generation_kwargs"]["max_gen_toks"]
        longest = max(len(tokenizer.encode(item["continuation"] + "\n")) for item in items(name))
        assert longest <= limit, (name, longest)


def test_the_suite_asks_every_task_of_the_lab() -> None:
    suite = yaml.safe_load((matrix.suites_dir() / "accuracy" / "lab.yaml").read_text(encoding="utf-8"))
    assert [one["args"]["task"] for one in suite["evaluations"]] == LAB
