"""The same float32 weights in transformers and in llama.cpp: two implementations that share no code check each other.

They must agree on tokens and prompts exactly. Log-probabilities differ only by rounding: both compute in float32, but
sum in another order, and llama.cpp approximates exponentials to a few units in the last place. A float32 operation is
off by 6e-8 relative; what that grows to depends on depth and on the size of activations, and is stated beside each
model below. A wrong mask, position, permutation or tokenizer would show at 0.1 and more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scipy.special import log_softmax

from harness.interfaces import Artifact, GenerateRequest, ScoreRequest, Session
from harness.record import ArtifactFacts
from harness.runtimes.llama_cpp import LlamaCpp
from harness.runtimes.transformers import Transformers
from harness.spec import Hardware
from tests.runtimes.tiny_gguf import write_gguf
from tests.tiny import TEXT, tiny_llama

CPU = Hardware(threads=1)
TEXTS = [
    "",
    "The quick brown fox jumps over the lazy dog.",
    "  leading, double  and trailing spaces  \n\n\n\tand a tab\r\n",
    "don't we'll I'VE it's they'd",
    "1234567890 3.14159 0x1F ½ ² Ⅻ",
    "naïve Ελληνικά нещо 你好，世界 かな 한국어 عربي हिन्दी",
    "🚀👩‍👩‍👧 \u200d\u00a0\ufeff",
    "def f(x):\n    return {'a': [x**2, None]}  # snake_case CamelCase",
    "!!!???...---===>>><<<((()))",
]
MESSAGES = [{"role": "user", "content": "What is 12 + 30?\n\nThink  first."}]


@dataclass(frozen=True)
class Pair:
    """One model in both runtimes, its special tokens, and how far rounding may move a log-probability."""

    transformers: Session
    llama_cpp: Session
    specials: tuple[str, ...]
    tolerance: float


def opened(directory: Path, gguf: Artifact, stack: ExitStack) -> tuple[Session, Session]:
    facts = ArtifactFacts(lineage=(), format="hf", digest="0" * 16, size_bytes=1)
    first = Transformers(dtype="float32").open(Artifact(directory, facts), hardware=CPU)
    second = LlamaCpp(kv="f32", context=512).open(gguf, hardware=CPU)
    return stack.enter_context(first), stack.enter_context(second)


def tiny(folder: Path, stack: ExitStack) -> Pair:
    directory = tiny_llama(folder / "hf")
    sessions = opened(directory, write_gguf(directory, folder / "gguf"), stack)
    # Two layers and logits of the size of 5: a hundred roundings of 6e-8 * 5.
    return Pair(*sessions, specials=("<|bos|>", "<|eos|>", "<|turn|>"), tolerance=3e-5)


@pytest.fixture(scope="module", params=["tiny", pytest.param("smollm2", marks=pytest.mark.model)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp(str(request.param))
        if request.param == "tiny":
            yield tiny(folder, stack)
            return
        directory = request.getfixturevalue("smollm2_dir")
        sessions = opened(directory, write_gguf(directory, folder / "gguf", pre_tokenizer="smollm"), stack)
        # Thirty layers with outlier activations in the hundreds, and logits of the size of 40.
        yield Pair(*sessions, specials=("<|im_start|>", "<|im_end|>", "<|endoftext|>"), tolerance=5e-4)


def test_both_cut_texts_into_the_same_tokens(pair: Pair) -> None:
    inside = ["".join(pair.specials), f"a {pair.specials[0]} b\n{pair.specials[1]}c", f"{pair.specials[2]}\n\nText "]
    for text in [*TEXTS, *inside, TEXT]:
        tokens = pair.llama_cpp.encode(text)
        assert tokens == pair.transformers.encode(text), text
        assert pair.llama_cpp.decode(tokens) == pair.transformers.decode(tokens) == text


def test_both_render_a_chat_alike(pair: Pair) -> None:
    for messages in (
        MESSAGES,
        [{"role": "system", "content": "Short."}, *MESSAGES, {"role": "assistant", "content": "42"}],
    ):
        for add in (True, False):
            expected = pair.transformers.chat(messages, add_generation_prompt=add)
            assert pair.llama_cpp.chat(messages, add_generation_prompt=add) == expected


def test_both_say_the_same_about_the_model(pair: Pair) -> None:
    for fact in ("vocabulary_size", "prefix_token", "end_tokens"):
        assert getattr(pair.llama_cpp, fact) == getattr(pair.transformers, fact)
    ours, theirs = pair.llama_cpp.identity, pair.transformers.identity
    assert ours.parameters == theirs.parameters
    assert ours.chat_template_hash == theirs.chat_template_hash


def test_both_give_every_token_the_same_log_probability(pair: Pair) -> None:
    tokens = pair.transformers.encode(TEXT)
    requests = [ScoreRequest([pair.transformers.prefix_token], tokens)]
    requests += [ScoreRequest(tokens[:40], tokens[n : n + 1 + n % 4]) for n in range(40, 48)]
    for ours, theirs in zip(pair.llama_cpp.score(requests), pair.transformers.score(requests), strict=True):
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=pair.tolerance, rtol=0)


def test_both_give_the_same_distribution_over_the_whole_vocabulary(pair: Pair) -> None:
    tokens = pair.transformers.encode(TEXT)[:64]
    ours, theirs = (
        log_softmax(s.logits(tokens).astype(np.float64), axis=1) for s in (pair.llama_cpp, pair.transformers)
    )
    np.testing.assert_allclose(ours, theirs, atol=2 * pair.tolerance, rtol=0)


def test_both_continue_alike_as_long_as_the_choice_is_clear(pair: Pair) -> None:
    """Greedy texts are equal up to the first step at which the two best tokens are closer than rounding can tell."""
    prompts = [pair.transformers.encode(text) for text in (TEXT[:60], TEXTS[1], pair.transformers.chat(MESSAGES))]
    requests = [GenerateRequest(prompt, 24, ignore_eos=True) for prompt in prompts]
    texts: list[list[list[int]]] = []
    for session in (pair.llama_cpp, pair.transformers):
        texts.append([[] for _ in requests])
        for token in session.generate(requests):
            texts[-1][token.request].append(token.token)
    for prompt, ours, theirs in zip(prompts, *texts, strict=True):
        scores_TV = np.sort(pair.transformers.logits([*prompt, *theirs])[len(prompt) - 1 : -1], axis=1)
        is_clear = scores_TV[:, -1] - scores_TV[:, -2] > 4 * pair.tolerance
        clear = len(theirs) if is_clear.all() else int(is_clear.argmin())
        assert clear >= 8, "the prompts were chosen so that most choices are clear"
        assert ours[:clear] == theirs[:clear]
