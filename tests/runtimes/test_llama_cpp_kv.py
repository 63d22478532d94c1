"""The runtime llama_cpp with quantized keys and values: how many bytes they take, and what that costs and where."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from harness.errors import Unsupported
from harness.interfaces import Artifact, GenerateRequest, ScoreRequest, Session
from harness.runtimes import _llama_api as api
from harness.runtimes.llama_cpp import LlamaCpp
from harness.spec import Hardware
from harness.testing import check_session
from tests.runtimes.tiny_gguf import write_gguf
from tests.tiny import TEXT, tiny_llama, tiny_tokenizer

CPU = Hardware(threads=1)
LAYERS, KEY_WIDTH = 2, 64  # one key head
# Bytes of a block of 32 numbers (ggml-common.h): 16-bit scale, with _1 a 16-bit minimum, and the bits of the numbers.
BLOCK = {"f32": 128, "f16": 64, "bf16": 64, "q8_0": 34, "q5_1": 24, "q5_0": 22, "q4_1": 20, "q4_0": 18, "iq4_nl": 18}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A tiny random Llama whose heads are 64 wide, so that blocks of 32 divide them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("hf"), tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.15,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return write_gguf(folder, tmp_path_factory.mktemp("gguf"))


def opened(model: Artifact, kv: str, *, flash: bool = True) -> Iterator[Session]:
    runtime = LlamaCpp(context=512, kv=kv, flash_attention=flash)  # type: ignore[arg-type]
    with runtime.open(model, hardware=CPU) as session:
        yield session


def state_bytes(session: Session, tokens: list[int]) -> int:
    """Bytes of what llama.cpp keeps of one sequence, with a header that depends on nothing here."""
    session.logits(tokens)
    return int(lib.llama_state_seq_get_size(session.engine._context, 0))  # type: ignore[attr-defined]


@pytest.mark.parametrize("kv", BLOCK)
def test_the_cache_takes_the_bytes_of_its_type(model: Artifact, kv: str) -> None:
    for plain, session in zip(opened(model, "f16"), opened(model, kv), strict=True):
        tokens = session.encode(TEXT)[:100]
        saved = state_bytes(plain, tokens) - state_bytes(session, tokens)
    # Keys and values of 64 numbers, two blocks each, in every layer.
    assert saved == len(tokens) * LAYERS * 2 * (KEY_WIDTH // 32) * (BLOCK["f16"] - BLOCK[kv])


def test_fewer_bits_move_scores_further_and_the_same_type_moves_none(model: Artifact) -> None:
    found = {}
    for name in ("f32", "f16", "again", "q8_0", "q5_1", "q4_0"):
        # Flash attention takes f32 for f16.
        for session in opened(model, "f16" if name == "again" else name, flash=name != "f32"):
            tokens = session.encode(TEXT)
            scored = session.score([ScoreRequest(tokens[:1], tokens[1:200])])
            found[name] = np.array(scored[0].logprobs)
    assert np.array_equal(found["again"], found["f16"])
    off = {name: np.abs(found[name] - found["f32"]).mean() for name in ("f16", "q8_0", "q5_1", "q4_0")}
    assert 0 < off["f16"] < off["q8_0"] < off["q5_1"] < off["q4_0"] < 1


def test_a_score_reads_the_cache_even_for_tokens_that_are_computed_together(model: Artifact) -> None:
    """The logits after one token alone, which attends to nothing but itself, already pass through the cache."""
    logits = {}
    for kv in ("f16", "q4_0"):
        for session in opened(model, kv):
            logits[kv] = session.logits(session.encode(TEXT)[:1])
    assert np.abs(logits["q4_0"] - logits["f16"]).max() > 1e-3


def test_generating_and_scoring_agree_on_a_quantized_cache(model: Artifact) -> None:
    for session in opened(model, "q4_0"):
        prompt = session.encode(TEXT)[:20]
        answer = [token.token for token in session.generate([GenerateRequest(prompt, 40, ignore_eos=True)])]
        (scored,) = session.score([ScoreRequest(prompt, answer)])
        assert all(scored.greedy)
        check_session(session)


def test_the_identity_names_type_and_flash_attention_and_the_default_stays_as_it_was(model: Artifact) -> None:
    kernels = []
    for kv, flash in (("f16", False), ("f16", True), ("q8_0", True)):
        kernels += [session.identity.kernel for session in opened(model, kv, flash=flash)]
    assert "; kv f16; flash off; threads" in kernels[0]
    assert "; kv f16; flash on; threads" in kernels[1]
    assert "; kv q8_0 rotated; flash on; threads" in kernels[2]


def test_a_quantized_cache_without_flash_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed with flash_attention: true"):
        LlamaCpp(kv="q8_0")


def test_heads_that_blocks_do_not_divide_are_unsupported(tmp_path: Path) -> None:
    model = write_gguf(tiny_llama(tmp_path / "hf"), tmp_path / "gguf")  # heads of 16
    with pytest.raises(Unsupported, match="block size 32"):
        list(opened(model, "q8_0"))


ASKED = api.Arithmetic("q8_0", flash_attention=True, threads=(1, 1), offload=False)
MADE = "llama_context: flash_attn = {}\nllama_kv_cache: K ({}): 1.06 MiB, V ({}): 1.06 MiB\nattn_rot_k = {}\n"


def test_what_llama_cpp_says_it_made_is_held_against_what_was_asked_for() -> None:
    assert api.require_as_asked(MADE.format("enabled", "q8_0", "q8_0", 1), ASKED)
    assert not api.require_as_asked(MADE.format("enabled", "q8_0", "q8_0", 0), ASKED)
    for said in (("disabled", "q8_0", "q8_0", 1), ("enabled", "q8_0", "f16", 1)):
        with pytest.raises(Unsupported, match="and made: types"):
            api.require_as_asked(MADE.format(*said), ASKED)
    with pytest.raises(Unsupported, match="types none, flash attention enabled"):
        api.require_as_asked("flash_attn = enabled\nllama_memory_recurrent: R (f32): 1 MiB, S (f32): 1 MiB", ASKED)
