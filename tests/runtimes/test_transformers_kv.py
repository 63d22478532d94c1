"""The transformers runtime with quantized keys and values: against the library fed token by token, and on paper.

Shapes: H heads, S positions, D numbers of a head.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, MambaConfig, MistralConfig, QuantizedCache

from harness.errors import Unsupported
from harness.interfaces import Artifact, GenerateRequest, ScoreRequest
from harness.record import ArtifactFacts
from harness.runtimes._hf_identity import plain_parts
from harness.runtimes._hf_kv import LIBRARIES, Cuts
from harness.runtimes._hf_session import HfSession
from harness.runtimes.transformers import Transformers
from harness.spec import Hardware
from harness.testing import check_session
from tests.tiny import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings(
    # Raised inside hqq and quanto while they are imported.
    "ignore:.*deprecated:DeprecationWarning",
    "ignore:.*deprecated:FutureWarning",
)
VOCABULARY, WIDTH, HEADS = 384, 16, 2
# Two orders of summation differ by 1e-5, and where such a difference moves a code by a step, a score by as much as
# this; rounding moves scores of these models by 0.01 in 8 bits and by 0.5 in two.
TOLERANCE = 5e-3
KINDS = ("int8", "int4", "int2")


def need(kind: str) -> None:
    pytest.importorskip({"hqq": "hqq", "quanto": "optimum.quanto"}[LIBRARIES[kind][0]])


def artifact(path: Path) -> Artifact:
    return Artifact(path, ArtifactFacts(lineage=(), format="hf", digest="0", size_bytes=0))


def opened(path: Path, **arguments: object) -> Iterator[HfSession]:
    with Transformers(**arguments).open(artifact(path), hardware=Hardware()) as session:  # type: ignore[arg-type]
        assert isinstance(session, HfSession)
        yield session


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


def some_tokens(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCABULARY), k=length)


def some_requests() -> list[ScoreRequest]:
    context = some_tokens(1, 40)
    choices = [ScoreRequest(context, some_tokens(n, 1 + 5 * n)) for n in range(4)]
    return [*choices, ScoreRequest([0], some_tokens(9, 60)), choices[1], ScoreRequest([0], [])]


def library_cache(model: Any, kind: str, residual: int) -> QuantizedCache:
    library, bits, axis = LIBRARIES[kind]
    return QuantizedCache(
        library, model.config, nbits=bits, axis_key=axis, axis_value=axis, q_group_size=16, residual_length=residual
    )


def token_by_token(model: Any, kind: str, residual: int, request: ScoreRequest) -> list[float]:
    """The library's cache: the prompt but for its last token in one pass, then a token a pass."""
    cache, found = library_cache(model, kind, residual), []
    *prompt, last = request.context
    inputs = [last]
    with torch.no_grad():
        if prompt:
            model(torch.tensor([prompt]), past_key_values=cache, use_cache=True)
        for token in request.continuation:
            logits = model(torch.tensor([inputs]), past_key_values=cache, use_cache=True).logits[0, -1]
            found.append(float(logits.log_softmax(-1)[token]))
            inputs = [token]
    return found


@pytest.mark.parametrize(("count", "residual", "before"), [*itertools.product((0, 1, 2, 7, 300), (2, 3, 128), (0, 1))])
def test_pieces_end_where_the_library_rounds(count: int, residual: int, before: int) -> None:
    """Simulates the library's rule: a token that would make `residual` of those not rounded is followed by rounding."""
    ends, gathered = [], before
    for position in range(count):
        rounds = gathered > 0 and gathered + 1 >= residual
        gathered = 0 if rounds else gathered + 1
        ends += [position] if rounds else []
    found = list(Cuts(residual, gathered=before).pieces(count))
    assert [begin for begin, _ in found] == [0, *(end for _, end in found)][: len(found)]
    assert (found[-1][1] if found else 0) == count
    # Tokens after which all is rounded go alone, so that no other token of their piece misses or sees it.
    assert all((end, end + 1) in found for end in ends)
    assert all(end - begin < residual for begin, end in found)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "residual"), [*itertools.product(KINDS, (8, 2)), ("int4", 128)])
def test_scores_are_those_of_a_text_that_is_generated_through_the_librarys_cache(
    llama: Path, kind: str, residual: int
) -> None:
    need(kind)
    model = AutoModelForCausalLM.from_pretrained(llama)
    requests = some_requests()
    for session in opened(llama, kv=kind, kv_residual=residual):
        found = session.score(requests)
        assert session.score(requests[::-1]) == found[::-1]
    for request, scored in zip(requests, found, strict=True):
        expected = token_by_token(model, kind, residual, request)
        np.testing.assert_allclose(scored.logprobs, expected, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_generated_is_what_scores_highest_and_what_full_logits_say(llama: Path, kind: str) -> None:
    need(kind)
    prompt = some_tokens(3, 30)
    for session in opened(llama, kv=kind, kv_residual=4):
        requests = [GenerateRequest(prompt[:n], 40, ignore_eos=True) for n in (1, 30)]
        tokens = list(session.generate(requests))
        for index, request in enumerate(requests):
            answer = [token.token for token in tokens if token.request == index]
            (scored,) = session.score([ScoreRequest(request.prompt, answer)])
            assert all(scored.greedy)
            if len(request.prompt) == 1:
                logits = session.logits([*request.prompt, *answer])
                assert logits.shape == (41, VOCABULARY)
                assert logits[:-1].argmax(1).tolist() == answer
        check_session(session)


@pytest.mark.slow
def test_fewer_bits_move_scores_further_and_those_of_the_first_token_too(llama: Path) -> None:
    for kind in KINDS:
        need(kind)
    request = ScoreRequest(some_tokens(1, 40), some_tokens(2, 60))
    found = {}
    for kind in ("none", *KINDS):
        for session in opened(llama, kv=kind, kv_residual=8):
            found[kind] = np.array(session.score([request])[0].logprobs)
    off = [np.abs(found[kind] - found["none"]) for kind in KINDS]
    assert 0 < off[0].mean() < off[1].mean() < off[2].mean()
    # The answer to a question is often one token: it was predicted from a rounded context.
    assert 1e-4 < off[0][0] < off[2][0]


def unrounded(llama: Path, tokens: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values (H, S, D) of the first layer, which depend on nothing that was rounded."""
    model = AutoModelForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        layer = model(torch.tensor([tokens]), use_cache=True).past_key_values.layers[0]
    return layer.keys[0].numpy(), layer.values[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_is_rounded_to_the_nearest_of_the_steps_between_smallest_and_largest(llama: Path, kind: str) -> None:
    need(kind)
    tokens, bits = some_tokens(5, 33), LIBRARIES[kind][1]
    for session in opened(llama, kv=kind):
        _, past = session._forward.extend([tokens], picks=[(0, 0)], past=session._forward.empty(1))
        layer = past.cache.layers[0]
        rounded = [layer._dequantize(q)[0].numpy() for q in (layer._quantized_keys, layer._quantized_values)]
    for before_HSD, after_HSD in zip(unrounded(llama, tokens), rounded, strict=True):
        low, high = (side(before_HSD, axis=-1, keepdims=True) for side in (np.min, np.max))
        step = (high - low) / (2**bits - 1)
        if kind != "int8":
            # quanto's steps begin at the smallest number.
            np.testing.assert_allclose(after_HSD, low + np.round((before_HSD - low) / step) * step, atol=1e-5)
        else:
            # hqq takes the same steps and lets them begin where the errors are smallest in its norm.
            steps = (after_HSD - after_HSD[..., :1]) / step
            np.testing.assert_allclose(steps, np.round(steps), atol=1e-2)
        assert (np.abs(after_HSD - before_HSD) <= (0.5 if kind != "int8" else 1) * step + 1e-5).all()


def cache_bytes(stored: object) -> int:
    """Bytes of codes and scales, wherever the library keeps them."""
    if isinstance(stored, torch.Tensor):
        return sum(part.nbytes for part in plain_parts(stored))
    codes, meta = stored  # hqq
    return codes.nbytes + meta["scale"].nbytes + meta["zero"].nbytes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_takes_the_bytes_of_its_codes_and_scales(llama: Path, kind: str) -> None:
    need(kind)
    tokens = some_tokens(5, 32)
    for session in opened(llama, kv=kind):
        _, past = session._forward.extend([tokens], picks=[(0, 0)], past=session._forward.empty(1))
        layer = past.cache.layers[0]
        # Codes of so many bits, and for the 16 numbers of a head and position a scale and a zero point in float32.
        numbers = HEADS * len(tokens) * WIDTH
        expected = numbers * LIBRARIES[kind][1] // 8 + numbers // 16 * 8
        assert cache_bytes(layer._quantized_keys) == cache_bytes(layer._quantized_values) == expected
        assert layer.keys.numel() == layer.values.numel() == 0


@pytest.mark.slow
def test_the_record_says_so_and_without_it_says_what_it_said(llama: Path) -> None:
    need("int4")
    (plain,) = [session.identity for session in opened(llama)]
    for session in opened(llama, kv="int4"):
        quantized = session.identity
    assert quantized.kernel == f"{plain.kernel} kv int4 quanto group 16 residual 128"
    assert quantized.caveats == (
        "the latest keys and values, 127 at most, are not quantized, nor are a prompt's for itself",
    )
    unlike = {"kernel", "caveats"}
    assert quantized.model_dump(exclude=unlike) == plain.model_dump(exclude=unlike)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["window", "recurrent"])
def test_a_model_that_does_not_keep_all_keys_and_values_is_unsupported(kind: str, tmp_path: Path) -> None:
    need("int4")
    common: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2}
    configs = {
        "window": MistralConfig(
            **common, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2, sliding_window=8
        ),
        "recurrent": MambaConfig(**common, state_size=8),
    }
    AutoModelForCausalLM.from_config(configs[kind]).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match="quantized"):
        list(opened(tmp_path, kv="int4", attention="eager"))


@pytest.mark.parametrize("arguments", [{"kv": "int3"}, {"kv": "int4", "kv_residual": 1}])
def test_arguments_that_cannot_work_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"allowed|at least"):
        Transformers(**arguments)
