"""The runtime llama_cpp on a tiny random model: what it says must not depend on how it was batched."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from scipy.special import log_softmax

from harness import testing
from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, GenerateRequest, ScoreRequest, Session, Token
from harness.runtimes import _llama_api as api
from harness.runtimes.llama_cpp import AMX_CAVEAT, LlamaCpp
from harness.spec import Hardware
from tests.runtimes.tiny_gguf import write_gguf
from tests.tiny import BOS, EOS, TEXT, TURN, tiny_llama

CPU = Hardware(threads=1)
# One forward pass over many tokens and many passes over few take different matrix kernels, which round differently; on
# this model, whose logits are of the size of 10, float32 (relative error 6e-8 per operation) leaves less than this.
CLOSE = 1e-4
# Float16 keeps 11 bits: a relative error of up to 2^-11 in keys and in values, in two layers, on the same logits.
HALF = 10 * 2 * 2 * 2**-11


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def model(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_gguf(directory, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def session(model: Artifact) -> Iterator[Session]:
    with LlamaCpp(context=512, kv="f32").open(model, hardware=CPU) as session:
        yield session


@pytest.fixture(scope="module")
def tokens(session: Session) -> list[int]:
    return session.encode(TEXT)


def slow_score(session: Session, request: ScoreRequest) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and greedy flags from the full logits of one sequence alone."""
    whole = [*request.context, *request.continuation]
    logprobs_TV = log_softmax(session.logits(whole[:-1]).astype(np.float64), axis=1)[len(request.context) - 1 :]
    chosen = logprobs_TV[np.arange(len(request.continuation)), request.continuation]
    return chosen, logprobs_TV.argmax(axis=1) == np.array(request.continuation)


def requests_of_many_kinds(tokens: list[int]) -> list[ScoreRequest]:
    """Shared contexts, contexts that begin alike, one that begins another, repetitions, long ones, empty ones."""
    few_shot = tokens[:60]
    return [
        *(ScoreRequest([*few_shot, *tokens[100:110]], [token]) for token in tokens[110:114]),
        *(ScoreRequest([*few_shot, *tokens[120:130]], tokens[n : n + 1 + n % 5]) for n in range(130, 138)),
        ScoreRequest(tokens[:1], tokens[1:200]),
        ScoreRequest(tokens[:30], tokens[30:70]),
        ScoreRequest(tokens[:30], tokens[30:70]),
        ScoreRequest(tokens[:5], []),
        ScoreRequest(tokens[50:52], tokens[52:60]),
    ]


def answers(tokens: Iterator[Token]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for token in tokens:
        found.setdefault(token.request, []).append(token.token)
    return found


def last(tokens: Iterator[Token]) -> Token:
    *_, final = tokens
    return final


# Scoring


@pytest.mark.parametrize(
    ("batch_tokens", "context", "sequences"),
    [(512, 512, 16), (7, 256, 3), (16, 512, 1), (64, 256, 64)],
)
def test_scores_are_those_of_one_sequence_at_a_time(
    model: Artifact, session: Session, tokens: list[int], batch_tokens: int, context: int, sequences: int
) -> None:
    requests = requests_of_many_kinds(tokens)
    runtime = LlamaCpp(batch_tokens=batch_tokens, context=context, sequences=sequences, kv="f32")
    with runtime.open(model, hardware=CPU) as tight:
        found = tight.score(requests)
    assert len(found) == len(requests)
    for request, scored in zip(requests, found, strict=True):
        if request.continuation:
            logprobs, greedy = slow_score(session, request)
            np.testing.assert_allclose(scored.logprobs, logprobs, atol=CLOSE)
            assert list(scored.greedy) == list(greedy)
        else:
            assert (list(scored.logprobs), list(scored.greedy)) == ([], [])


def test_the_order_of_requests_changes_no_score(session: Session, tokens: list[int]) -> None:
    requests = requests_of_many_kinds(tokens)
    order = np.random.default_rng(0).permutation(len(requests))
    straight = session.score(requests)
    shuffled = session.score([requests[n] for n in order])
    # The plan is made from the sorted requests, so even the last bit is the same.
    assert [straight[n] for n in order] == shuffled


def test_a_float16_cache_moves_log_probabilities_by_little(
    model: Artifact, session: Session, tokens: list[int]
) -> None:
    request = ScoreRequest(tokens[:1], tokens[1:200])
    with LlamaCpp(context=512).open(model, hardware=CPU) as half:
        (found,) = half.score([request])
    assert 0 < np.abs(np.array(found.logprobs) - slow_score(session, request)[0]).max() < HALF


def test_flash_attention_moves_log_probabilities_by_little(
    model: Artifact, session: Session, tokens: list[int]
) -> None:
    """On CPUs the fused kernel keeps some of its intermediate values in float16, whatever the type of the cache."""
    request = ScoreRequest(tokens[:20], tokens[20:120])
    with LlamaCpp(context=512, kv="f32", flash_attention=True).open(model, hardware=CPU) as flash:
        (found,) = flash.score([request])
    assert 0 < np.abs(np.array(found.logprobs) - slow_score(session, request)[0]).max() < HALF


def test_every_row_of_logits_belongs_to_its_token(session: Session, tokens: list[int]) -> None:
    """The logits after t tokens are those of the sequence cut there: nothing looks ahead, nothing is out of order."""
    whole_TV = session.logits(tokens[:40])
    assert whole_TV.shape == (40, session.vocabulary_size)
    assert whole_TV.dtype == np.float32
    for length in (1, 7, 39):
        np.testing.assert_allclose(session.logits(tokens[:length])[-1], whole_TV[length - 1], atol=CLOSE)


# Generating


def test_a_greedy_generation_is_the_chain_of_most_likely_tokens(session: Session, tokens: list[int]) -> None:
    prompt, expected = tokens[:17], list(tokens[:17])
    for _ in range(20):
        expected.append(int(session.logits(expected)[-1].argmax()))
    found = answers(session.generate([GenerateRequest(prompt, 20, ignore_eos=True)]))
    assert found[0] == expected[17:]


def test_requests_generate_together_what_they_generate_alone(
    model: Artifact, session: Session, tokens: list[int]
) -> None:
    lengths = itertools.cycle((3, 40, 9, 1, 25))
    requests = [
        GenerateRequest(tokens[n : n + length], 4 + n % 7, ignore_eos=True)
        for n, length in zip(range(0, 100, 9), lengths, strict=False)
    ]
    # Three sequences, batches of eight: prompts are fed in pieces beside running requests, and a place is used again.
    with LlamaCpp(batch_tokens=8, context=256, sequences=3, kv="f32").open(model, hardware=CPU) as narrow:
        together = answers(narrow.generate(requests))
    for index, request in enumerate(requests):
        assert together[index] == answers(session.generate([request]))[0]
        assert len(together[index]) == request.max_tokens


def test_a_generation_that_does_not_fit_beside_others_waits_for_room(model: Artifact, tokens: list[int]) -> None:
    # 150 positions each, 256 in all: never two at a time, however many sequences there are.
    requests = [GenerateRequest(tokens[n : n + 140], 10, ignore_eos=True) for n in range(3)]
    with LlamaCpp(batch_tokens=64, context=256, sequences=8).open(model, hardware=CPU) as session:
        order = [token.request for token in session.generate(requests)]
    assert order == [0] * 10 + [1] * 10 + [2] * 10


def test_only_the_last_token_of_a_request_carries_text(session: Session, tokens: list[int]) -> None:
    found = list(session.generate([GenerateRequest(tokens[:9], 6, ignore_eos=True)]))
    assert [token.finish for token in found] == [None] * 5 + ["length"]
    assert [token.text for token in found[:-1]] == [None] * 5
    assert found[-1].text == session.decode([token.token for token in found])


def test_a_stop_string_ends_the_text_before_it(session: Session, tokens: list[int]) -> None:
    free = last(session.generate([GenerateRequest(tokens[:9], 30, ignore_eos=True)])).text
    assert free is not None
    stop = free[12:15]
    final = last(session.generate([GenerateRequest(tokens[:9], 30, stop=(stop,))]))
    assert final.finish == "stop"
    assert final.text == free[: free.index(stop)]


def test_the_end_token_ends_a_generation_unless_it_is_to_be_ignored(
    directory: Path, tmp_path: Path, tokens: list[int]
) -> None:
    """A model whose final norm is zero gives equal logits, so greedy takes token 0; where that is the end, it ends."""

    def silent(name: str, weights: np.ndarray) -> np.ndarray:
        return np.zeros_like(weights) if name == "output_norm.weight" else weights

    def generated(end: int, *, ignore_eos: bool) -> list[Token]:
        folder = tmp_path / f"{end} {ignore_eos}"
        shutil.copytree(directory, folder)
        config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": end}
        (folder / "config.json").write_text(json.dumps(config))
        with LlamaCpp(context=512).open(write_gguf(folder, folder / "gguf", change=silent), hardware=CPU) as session:
            return list(session.generate([GenerateRequest(tokens[:5], 7, ignore_eos=ignore_eos)]))

    assert [token.token for token in generated(1, ignore_eos=False)] == [0] * 7
    assert generated(0, ignore_eos=False) == [Token(0, 0, "eos", "")]
    assert [token.token for token in generated(0, ignore_eos=True)] == [0] * 7


def test_a_seed_repeats_a_sample_and_another_seed_gives_another(session: Session, tokens: list[int]) -> None:
    def sample(seed: int) -> list[int]:
        return answers(
            session.generate([GenerateRequest(tokens[:9], 24, temperature=1.0, seed=seed, ignore_eos=True)])
        )[0]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)


def test_two_generations_at_once_are_refused(session: Session, tokens: list[int]) -> None:
    first = session.generate([GenerateRequest(tokens[:5], 5, ignore_eos=True)])
    next(first)
    session.score([ScoreRequest(tokens[:2], tokens[2:4])])
    with pytest.raises(AssertionError, match="another call used the cache"):
        next(first)


# Limits and failures


def test_what_does_not_fit_is_refused_before_anything_runs(session: Session, tokens: list[int]) -> None:
    long = list(itertools.islice(itertools.cycle(tokens), 600))
    assert session.max_length == 512
    with pytest.raises(Unsupported, match="512"):
        session.score([ScoreRequest(tokens[:2], [3]), ScoreRequest(long, [3])])
    with pytest.raises(Unsupported, match="512"):
        session.generate([GenerateRequest(long, 5)])
    with pytest.raises(Unsupported, match="512"):
        session.generate([GenerateRequest(long[:510], 5, ignore_eos=True)])
    with pytest.raises(Unsupported, match="512"):
        session.logits(long)


def test_what_just_fits_runs(session: Session, tokens: list[int]) -> None:
    long = list(itertools.islice(itertools.cycle(tokens), 513))
    (scored,) = session.score([ScoreRequest(long[:500], long[500:])])
    assert len(scored.logprobs) == 13
    assert len(answers(session.generate([GenerateRequest(long[:507], 5, ignore_eos=True)]))[0]) == 5


def test_an_answer_is_cut_where_the_room_ends(session: Session, tokens: list[int]) -> None:
    long = list(itertools.islice(itertools.cycle(tokens), 509))
    final = last(session.generate([GenerateRequest(long, 100, stop=("\x00",))]))
    assert final.finish in ("length", "eos")


def test_the_context_limits_the_length(model: Artifact) -> None:
    with LlamaCpp(batch_tokens=64, context=256).open(model, hardware=CPU) as session:
        assert session.max_length == 256
        with pytest.raises(Unsupported, match="larger `context`"):
            session.logits([3] * 257)


def test_weights_that_are_nan_are_a_model_error(directory: Path, tmp_path: Path, tokens: list[int]) -> None:
    def broken(name: str, weights: np.ndarray) -> np.ndarray:
        return np.full_like(weights, np.nan) if name == "blk.1.ffn_down.weight" else weights

    with LlamaCpp(context=512).open(write_gguf(directory, tmp_path, change=broken), hardware=CPU) as session:
        with pytest.raises(ModelError):
            session.score([ScoreRequest(tokens[:4], tokens[4:8])])
        with pytest.raises(ModelError):
            list(session.generate([GenerateRequest(tokens[:4], 4)]))
        with pytest.raises(ModelError):
            session.logits(tokens[:4])


def test_a_token_outside_the_vocabulary_is_an_error_and_no_crash(session: Session) -> None:
    with pytest.raises(RuntimeError, match="llama_decode gave -1"):
        session.logits([session.vocabulary_size])


def test_a_model_opens_without_extra_buffers_and_says_so(
    model: Artifact, tokens: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "start", lambda: "CPU : AVX2 = 1 | AMX_INT8 = 1 | ")
    with LlamaCpp(context=512).open(model, hardware=CPU) as session:
        assert session.identity.caveats == (AMX_CAVEAT,)
        assert "repack off" in session.identity.kernel
        assert np.isfinite(session.logits(tokens[:3])).all()


# Identity and text


def test_the_identity_is_read_from_the_file(directory: Path, tmp_path: Path) -> None:
    packed = write_gguf(directory, tmp_path, matrices=gguf.GGMLQuantizationType.Q8_0)
    file = packed.path / "model.gguf"
    with LlamaCpp(context=512).open(packed, hardware=CPU) as session:
        identity = session.identity
    # Hidden 64, MLP 256, 4 heads and 2 key heads of 16, 2 layers, 384 tokens; input and output embeddings are one.
    per_layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 256
    matrices, vectors = 384 * 64 + 2 * per_layer, (2 * 2 + 1) * 64
    assert identity.parameters == matrices + vectors
    assert identity.tensor_types == {"q8_0": matrices, "f32": vectors}
    # Q8_0 holds 32 weights in 32 bytes and a float16 scale.
    assert identity.weights_memory_bytes == matrices * 34 // 32 + 4 * vectors
    assert identity.weights_disk_bytes == file.stat().st_size
    assert identity.weights_digest == hashlib.sha256(file.read_bytes()).hexdigest()
    template = (directory / "chat_template.jinja").read_text()
    assert identity.chat_template_hash == hashlib.sha256(template.encode()).hexdigest()


def test_the_tokenizer_hash_tells_tokenizers_apart(model: Artifact, session: Session, tmp_path: Path) -> None:
    other = write_gguf(tiny_llama(tmp_path / "hf", vocab=400), tmp_path / "gguf")
    with LlamaCpp(context=512).open(model, hardware=CPU) as again:
        assert again.identity.tokenizer_hash == session.identity.tokenizer_hash
    with LlamaCpp(context=512).open(other, hardware=CPU) as different:
        assert different.identity.tokenizer_hash != session.identity.tokenizer_hash


def test_special_tokens_inside_a_text_become_themselves(session: Session) -> None:
    bos, eos, turn = 0, 1, 2
    assert session.encode(f"{BOS}{TURN}{EOS}") == [bos, turn, eos]
    assert session.prefix_token == bos
    assert session.end_tokens == {eos}


@pytest.mark.parametrize(
    "text", ["", "plain text", "naïve Über 你好 🚀", "a\x00b", f"{TURN}user\nhello{EOS}\n", " \n\t "]
)
def test_decoding_gives_back_what_was_encoded(session: Session, text: str) -> None:
    assert session.decode(session.encode(text)) == text


def test_half_a_character_decodes_to_a_replacement_mark(session: Session) -> None:
    tokens = session.encode("🚀")
    assert session.decode(tokens[:1]) == "\ufffd"


def test_the_session_and_the_plugin_conform(session: Session) -> None:
    testing.check_plugin("runtimes", LlamaCpp)
    testing.check_session(session)
