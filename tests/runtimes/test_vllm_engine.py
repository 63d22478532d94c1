"""The vllm runtime with vLLM itself, against the transformers runtime; only where vLLM is installed.

Both compute in float32 and sum in another order. On a random model of two layers, whose logits are of the size of 5,
some hundred roundings of 6e-8 stay below TOLERANCE; a wrong position or mask moves log-probabilities by 0.01 and more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from harness.errors import Unsupported
from harness.interfaces import Artifact, GenerateRequest, ScoreRequest, Session
from harness.record import ArtifactFacts
from harness.runtimes.transformers import Transformers
from harness.runtimes.vllm import Vllm
from harness.spec import Hardware
from harness.testing import check_session
from tests.tiny import TEXT, tiny_tokenizer

pytest.importorskip("vllm", reason="vLLM is not installed here: harness env create vllm")
pytestmark = [
    # Raised inside vLLM, whose look-up of kernels touches every attribute of torch.distributed.
    pytest.mark.filterwarnings("ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning"),
    # Raised by torch's own compiler while it is imported.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    # Raised by the types of a SWIG library that vLLM imports.
    pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning"),
]
TOLERANCE = 1e-4
CPU = Hardware(threads=1)
GROUP = 32


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32, which is the smallest that vLLM's attention on CPUs takes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    out, tokenizer = tmp_path_factory.mktemp("llama"), tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.15,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return out


def artifact(path: Path) -> Artifact:
    return Artifact(path, ArtifactFacts(lineage=(), format="hf", digest="0", size_bytes=0))


@pytest.fixture(scope="module")
def ours(directory: Path) -> Iterator[Session]:
    runtime = Vllm(dtype="float32", enforce_eager=True, max_batch_tokens=64, sequences=4)
    with runtime.open(artifact(directory), hardware=CPU) as session:
        yield session


@pytest.fixture(scope="module")
def theirs(directory: Path) -> Iterator[Session]:
    with Transformers(dtype="float32").open(artifact(directory), hardware=CPU) as session:
        yield session


def test_every_token_has_the_log_probability_that_transformers_gives_it(ours: Session, theirs: Session) -> None:
    tokens = theirs.encode(TEXT)
    # The first is longer than a batch of vLLM, so that it is read in pieces.
    requests = [ScoreRequest([theirs.prefix_token], tokens[:200]), ScoreRequest(tokens[:5], [])]
    requests += [ScoreRequest(tokens[:40], tokens[n : n + 1 + n % 4]) for n in range(40, 48)]
    for mine, expected in zip(ours.score(requests), theirs.score(requests), strict=True):
        np.testing.assert_allclose(mine.logprobs, expected.logprobs, atol=TOLERANCE, rtol=0)
        assert list(mine.greedy) == list(expected.greedy)


def test_greedy_texts_are_those_of_transformers(ours: Session, theirs: Session) -> None:
    tokens = theirs.encode(TEXT)
    requests = [GenerateRequest(tokens[n : n + 3 + n], 12, ignore_eos=n % 2 == 0) for n in range(6)]
    answers = []
    for session in (ours, theirs):
        answers.append({n: [t for t in session.generate(requests) if t.request == n] for n in range(len(requests))})
    assert answers[0] == answers[1]


def test_a_text_as_long_as_the_context_is_scored_and_a_longer_one_refused(ours: Session) -> None:
    tokens = (ours.encode(TEXT) * 2)[: ours.max_length]
    assert ours.max_length == 256
    (scored,) = ours.score([ScoreRequest(tokens[:1], tokens[1:])])
    assert len(scored.logprobs) == 255
    with pytest.raises(Unsupported, match="do not fit"):
        ours.score([ScoreRequest(tokens, tokens[:1])])


def test_the_laws_of_a_session_hold(ours: Session) -> None:
    check_session(ours)


def test_both_say_the_same_about_the_model(ours: Session, theirs: Session) -> None:
    for fact in ("vocabulary_size", "prefix_token", "end_tokens", "max_length"):
        assert getattr(ours, fact) == getattr(theirs, fact)
    assert ours.encode(TEXT, bos=True) == theirs.encode(TEXT, bos=True)
    messages = [{"role": "user", "content": "Hello"}]
    assert ours.chat(messages) == theirs.chat(messages)
    mine, expected = ours.identity, theirs.identity
    for fact in ("weights_digest", "weights_disk_bytes", "parameters", "tensor_types", "tokenizer_hash"):
        assert getattr(mine, fact) == getattr(expected, fact), fact
    assert mine.chat_template_hash == expected.chat_template_hash
    assert mine.weights_memory_bytes == 4 * mine.parameters
    assert "kv" not in mine.kernel


def test_packed_weights_stay_packed_and_the_kernel_is_named(directory: Path, tmp_path: Path) -> None:
    parameters = pack(directory, tmp_path)
    runtime = Vllm(dtype="bfloat16", enforce_eager=True, max_batch_tokens=64, sequences=4)
    with runtime.open(artifact(tmp_path), hardware=CPU) as session:
        identity = session.identity
        (scored,) = session.score([ScoreRequest([1], session.encode(TEXT)[:30])])
    assert all(value <= 0 for value in scored.logprobs)
    assert identity.parameters == parameters
    # Eight weights in 32 bits, a scale of 16 bits for each group; vLLM keeps two numbers a matrix for its shape.
    packed = identity.tensor_types["int32"] * 8
    plain = parameters - packed
    assert identity.tensor_types["bfloat16"] == plain + packed // GROUP
    assert "WNA16" in identity.kernel


@pytest.mark.parametrize(("kv", "step"), [("fp8_e4m3", 2**-4), ("fp8_e5m2", 2**-3)])
def test_an_8_bit_cache_takes_a_byte_and_is_read_even_for_a_token_alone(
    directory: Path, theirs: Session, kv: str, step: float
) -> None:
    """Half a step of the type's fraction is the largest relative error; keys and values of two layers have it."""
    tokens = theirs.encode(TEXT)[:120]
    requests = [ScoreRequest(tokens[:1], tokens[1:]), ScoreRequest(tokens[:1], tokens[1:2])]
    expected = theirs.score(requests)
    runtime = Vllm(dtype="float32", enforce_eager=True, max_batch_tokens=64, sequences=4, kv=kv)
    with runtime.open(artifact(directory), hardware=CPU) as session:
        found, kernel = session.score(requests), session.identity.kernel
        prompt = GenerateRequest(tokens[:20], 20, ignore_eos=True)
        answer = [token.token for token in session.generate([prompt])]
        assert all(session.score([ScoreRequest(tokens[:20], answer)])[0].greedy)
    assert kernel.endswith(f" kv {kv}")
    off = [np.abs(np.subtract(one.logprobs, other.logprobs)) for one, other in zip(found, expected, strict=True)]
    # Logits of these models are of the size of 5.
    assert TOLERANCE < off[0].mean() < 5 * 2 * 2 * step
    assert off[1] > TOLERANCE


def pack(source: Path, out: Path) -> int:
    """Writes the model with 4-bit weights as compressed-tensors packs them; gives the number of weights."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
    from safetensors.torch import load_file, save_file

    written, count = {}, 0
    for name, weight in load_file(source / "model.safetensors").items():
        count += weight.numel()
        if not name.endswith("proj.weight"):
            written[name] = weight.bfloat16()
            continue
        rows, columns = weight.shape
        groups = weight.reshape(rows, columns // GROUP, GROUP)
        scale = (groups.abs().amax(-1) / 7.5).bfloat16()
        codes = (groups / scale.float()[..., None]).round().clamp(-8, 7).reshape(rows, columns).to(torch.int8)
        stem = name.removesuffix("weight")
        written[stem + "weight_packed"] = pack_to_int32(codes, 4).contiguous()
        written[stem + "weight_scale"] = scale.contiguous()
        written[stem + "weight_shape"] = torch.tensor([rows, columns])
    save_file(written, out / "model.safetensors", metadata={"format": "pt"})
    for file in source.glob("*.json"):
        (out / file.name).write_bytes(file.read_bytes())
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP}
    config = json.loads((source / "config.json").read_text()) | {
        "dtype": "bfloat16",
        "quantization_config": {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        },
    }
    (out / "config.json").write_text(json.dumps(config))
    return count
