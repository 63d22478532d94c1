"""The oracle is lm-eval itself: its own Hugging Face backend on the same weights, task and items.

Everything is float32 on the CPU. Both sides sum the same numbers in other orders, so log-probabilities of some hundred
tokens agree to about 1e-4; scores, which are decisions, must be equal.
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from harness.evaluations.tasks._loading import load_tasks
from harness.evaluations.tasks.lm_eval import LmEval
from harness.interfaces import Artifact, Session
from harness.record import Observation
from harness.runtimes.transformers import Transformers
from harness.spec import Hardware
from tests.evaluations.tasks.slow_session import SlowSession
from tests.evaluations.tasks.worlds import artifact, artifacts, context
from tests.tiny import tiny_llama

CONTEXT = 300  # shorter than the passages of 800 characters, so that rolling windows are needed
LIMIT = 6
CASES = [
    LmEval(task="offline_arithmetic", limit=LIMIT),
    LmEval(task="offline_geography", limit=LIMIT, num_fewshot=0),
    LmEval(task="offline_cloze", limit=LIMIT, chat=True),
    LmEval(task="offline_next_word", limit=LIMIT),
    LmEval(task="offline_text", limit=LIMIT),
    LmEval(task="offline_arithmetic_write", limit=LIMIT),
    LmEval(task="offline_instructions", limit=3, chat=True),
]


def add_bos(folder: Path) -> None:
    """Lets the tokenizer put a BOS in front of a text by itself, as those of Llama and Gemma do."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).encode("a")[0] == tokenizer.bos_token_id


@pytest.fixture(scope="module", params=["no BOS", "own BOS"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_llama(tmp_path_factory.mktemp("tiny"))
    if request.param == "own BOS":
        add_bos(folder)
    return folder


@pytest.fixture(scope="module")
def by_lm_eval(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[LmEval], dict[str, Any]]:
    """What lm-eval's own evaluator finds with its own model class, once for each evaluation."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    given = artifacts(tmp_path_factory.mktemp("artifacts"))
    model = HFLM(pretrained=str(tiny), device="cpu", dtype="float32", batch_size=1)
    model._max_length = CONTEXT - 1  # what it may feed; we count the last token too, which is scored and not fed

    @cache
    def found(evaluation: LmEval) -> dict[str, Any]:
        tasks = load_tasks(evaluation.task, given)
        for task in tasks.values():
            if evaluation.num_fewshot is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=evaluation.num_fewshot or 0)
        return evaluate(
            model,
            {"tasks": tasks},
            limit=evaluation.limit,
            bootstrap_iters=0,
            apply_chat_template=evaluation.chat,
            fewshot_as_multiturn=evaluation.chat,
        )

    return found


def compare(ours: list[Observation], theirs: list[dict[str, Any]]) -> None:
    assert len(ours) == len(theirs)
    for row, sample in zip(ours, theirs, strict=True):
        assert row.sample == sample["doc"]["id"]
        for metric in set(sample["metrics"]) & {"acc", "acc_norm", "exact_match", "followed", "checks_followed"}:
            assert row.values[metric] == sample[metric]
        answers = sample["resps"]
        if "target_logprob" in row.values:
            logprobs = [answer[0][0] for answer in answers]
            right = logprobs[row.values["target"]]
            best_wrong = max(value for place, value in enumerate(logprobs) if place != row.values["target"])
            assert row.values["target_logprob"] == pytest.approx(right, abs=1e-4)
            assert row.values["margin"] == pytest.approx(right - best_wrong, abs=2e-4)
        elif "bits_per_byte" in sample["metrics"]:
            assert (row.values["logprob"], row.values["bytes"]) == pytest.approx(sample["bits_per_byte"], rel=1e-5)
            assert row.values["words"] == sample["word_perplexity"][1]
        elif "perplexity" in sample["metrics"]:
            assert row.values["perplexity:perplexity"] == pytest.approx(sample["perplexity"], abs=1e-4)
        else:
            # lm-eval's backend decodes without special tokens, which a random model writes now and then.
            assert re.sub(r"<\|\w+\|>", "", row.values["response"]) == answers[0][0]


@contextmanager
def opened(name: str, folder: Path) -> Iterator[Session]:
    if name == "plain":
        yield SlowSession.open(folder, max_length=CONTEXT)
        return
    # The runtime takes its context from the configuration, so the copy with a shorter one has the same weights.
    with Transformers(dtype="float32").open(shortened(folder), hardware=Hardware(threads=1)) as session:
        yield session


def shortened(folder: Path) -> Artifact:
    copy = folder.with_name(f"{folder.name}-short")
    if not copy.exists():
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return artifact(copy, "hf")


@pytest.mark.parametrize("runtime", ["plain", "transformers"])
@pytest.mark.parametrize("evaluation", CASES, ids=lambda evaluation: evaluation.task)
def test_every_item_and_every_summary_is_what_lm_eval_says(
    evaluation: LmEval, runtime: str, tiny: Path, tmp_path: Path, by_lm_eval: Callable[[LmEval], dict[str, Any]]
) -> None:
    with opened(runtime, tiny) as session:
        rows = list(evaluation.observe(session, context=context(tmp_path, artifacts(tmp_path))))
    found = by_lm_eval(evaluation)
    compare(rows, found["samples"][evaluation.task])
    theirs = {key.removesuffix(",none"): value for key, value in found["results"][evaluation.task].items()}
    ours = evaluation.summarize(rows)
    assert {metric.name for metric in ours} - theirs.keys() <= {"score", "truncated_share", "unparsed_share"}
    for metric in ours:
        if metric.name in theirs:
            assert metric.value == pytest.approx(theirs[metric.name], rel=1e-4)
            assert metric.higher_is_better == found["higher_is_better"][evaluation.task][metric.name]


@pytest.mark.model
@pytest.mark.parametrize("evaluation", [CASES[0], CASES[5]], ids=lambda evaluation: evaluation.task)
def test_a_real_model_scores_as_lm_evals_own_command_does(
    evaluation: LmEval, smollm2_dir: Path, tmp_path: Path
) -> None:
    from lm_eval import simple_evaluate

    given = artifacts(tmp_path)
    with Transformers(dtype="float32").open(artifact(smollm2_dir, "hf"), hardware=Hardware(threads=2)) as session:
        ours = list(evaluation.observe(session, context=context(tmp_path, given)))
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(smollm2_dir), "dtype": "float32"},
        device="cpu",
        tasks=list(load_tasks(evaluation.task, given).values()),
        limit=evaluation.limit,
        bootstrap_iters=0,
    )
    compare(ours, found["samples"][evaluation.task])
