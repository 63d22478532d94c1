"""The transformers runtime against slow oracles: one request at a time, a full forward, and `model.generate`.

Everything runs in float32, where two orders of summation differ by some 1e-6 in a log-probability; TOLERANCE leaves
room for a hundred of those. A wrong mask or position moves the log-probabilities of these models by more than 0.01.
"""

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    MambaConfig,
    MistralConfig,
    PreTrainedConfig,
)

from harness.errors import CorruptArtifact, ModelError, Unsupported
from harness.interfaces import Artifact, GenerateRequest, Scored, ScoreRequest, Token
from harness.record import ArtifactFacts
from harness.runtimes._hf_session import HfSession
from harness.runtimes.transformers import Transformers
from harness.spec import Hardware
from tests.tiny import BOS, EOS, TURN, tiny_llama, tiny_tokenizer

TOLERANCE = 1e-4
VOCABULARY = 384


def artifact(path: Path) -> Artifact:
    return Artifact(path, ArtifactFacts(lineage=(), format="hf", digest="0", size_bytes=0))


def opened(path: Path, **arguments: object) -> Iterator[HfSession]:
    with Transformers(**arguments).open(artifact(path), hardware=Hardware()) as session:  # type: ignore[arg-type]
        assert isinstance(session, HfSession)
        yield session


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def session(llama: Path) -> Iterator[HfSession]:
    yield from opened(llama, max_batch_tokens=256)


@pytest.fixture(scope="module")
def oracle(llama: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(llama)


def slow_score(model: torch.nn.Module, request: ScoreRequest) -> Scored:
    """One request, one full forward pass, every position through the head."""
    with torch.no_grad():
        logits = model(torch.tensor([[*request.context, *request.continuation]])).logits[0].float()
    logprobs = logits.log_softmax(-1)[len(request.context) - 1 : -1]
    chosen = [row[token] for row, token in zip(logprobs, request.continuation, strict=True)]
    greedy = [int(row.argmax()) == token for row, token in zip(logprobs, request.continuation, strict=True)]
    return Scored([float(value) for value in chosen], greedy)


def slow_generate(model: torch.nn.Module, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Greedy, one prompt, no cache, every step a full forward pass; goes on behind an end token."""
    tokens = list(prompt)
    with torch.no_grad():
        for _ in range(max_tokens):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def assert_scores(found: Sequence[Scored], expected: Sequence[Scored]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)
        assert list(one.greedy) == list(other.greedy)


def some_tokens(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCABULARY), k=length)


def mixed_requests() -> list[ScoreRequest]:
    """Questions with choices of every length, few-shot contexts that begin alike, long texts, and repetitions."""
    examples = some_tokens(0, 70)
    questions = [[*examples, *some_tokens(n, 5 + 3 * n)] for n in range(1, 4)] + [some_tokens(9, 20)]
    choices = [ScoreRequest(q, some_tokens(10 * i + c, 1 + c)) for i, q in enumerate(questions) for c in range(4)]
    letters = [ScoreRequest(questions[0], [letter]) for letter in (5, 6, 7)]
    texts = [ScoreRequest([0], some_tokens(50, 100)), ScoreRequest(some_tokens(51, 3), some_tokens(52, 30))]
    return [*choices, *letters, *texts, choices[0], ScoreRequest([0], [])]


def collect(stream: Iterator[Token]) -> dict[int, list[Token]]:
    found: dict[int, list[Token]] = {}
    for token in stream:
        found.setdefault(token.request, []).append(token)
    return found


# Scoring


@pytest.mark.parametrize("max_batch_tokens", [1, 64, 256, 4096])
def test_scores_equal_those_of_one_full_forward_pass_a_request(
    llama: Path, oracle: torch.nn.Module, max_batch_tokens: int
) -> None:
    (session,) = opened(llama, max_batch_tokens=max_batch_tokens)
    with pytest.raises(AttributeError):
        session.score([ScoreRequest([1], [2])])  # closed on exit
    requests = mixed_requests()
    for live in opened(llama, max_batch_tokens=max_batch_tokens):
        found = live.score(requests)
    assert_scores(found[:-1], [slow_score(oracle, request) for request in requests[:-1]])
    assert found[-1] == Scored([], [])


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_requests_changes_no_score(session: HfSession, seed: int) -> None:
    requests = mixed_requests()
    order = random.Random(seed).sample(range(len(requests)), len(requests))
    expected = session.score(requests)
    shuffled = session.score([requests[n] for n in order])
    assert shuffled == [expected[n] for n in order]


def test_a_context_and_a_common_beginning_are_computed_once(
    session: HfSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed: list[int] = []
    original = session._forward.extend

    def counting(rows: Sequence[Sequence[int]], **rest: object) -> object:
        fed.append(sum(len(row) for row in rows))
        return original(rows, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(session._forward, "extend", counting)
    examples, first, second = some_tokens(0, 80), [4, 5, 6], [7, 8, 9]
    session.score([ScoreRequest([*examples, *q], [choice, 3]) for q in (first, second) for choice in (10, 11, 12)])
    # The examples once (80), then two questions of three tokens, then one token of three continuations each.
    assert fed == [80, 6, 6]
    fed.clear()
    session.score([ScoreRequest([*examples, *first], [letter]) for letter in (10, 11, 12)])
    assert fed == [83]


def family(name: str) -> PreTrainedConfig:
    size = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.15}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    match name:
        case "soft-capped logits, every second layer slides":
            return Gemma2Config(**size, **heads, **tokens, sliding_window=24, final_logit_softcapping=2.0)
        case "sliding window":
            return MistralConfig(**size, **heads, **tokens, sliding_window=24, max_position_embeddings=512)
        case "learned positions":
            return GPT2Config(
                vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=112, initializer_range=0.15, **tokens
            )
        case "recurrent state":
            return MambaConfig(**size, **tokens, state_size=8)
    raise AssertionError(name)


FAMILIES = ("soft-capped logits, every second layer slides", "sliding window", "learned positions", "recurrent state")


@pytest.fixture(scope="module", params=FAMILIES)
def other(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("other")
    AutoModelForCausalLM.from_config(family(request.param)).save_pretrained(out)
    tiny_tokenizer().save_pretrained(out)
    return out


def test_other_architectures_score_and_generate_as_a_full_forward_pass_does(other: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(other).eval()
    requests = mixed_requests()[:-1]
    prompts = [some_tokens(n, length) for n, length in enumerate((3, 30, 9))]
    attention = model.config._attn_implementation  # models without attention know no sdpa
    for session in opened(other, max_batch_tokens=512, attention=attention or "eager"):
        assert_scores(session.score(requests), [slow_score(model, request) for request in requests])
        found = collect(session.generate([GenerateRequest(prompt, 12, ignore_eos=True) for prompt in prompts]))
        assert [[t.token for t in found[n]] for n in range(3)] == [slow_generate(model, p, 12) for p in prompts]


def test_logits_are_those_of_the_model(session: HfSession, oracle: torch.nn.Module) -> None:
    tokens = some_tokens(1, 12)
    with torch.no_grad():
        expected = oracle(torch.tensor([tokens])).logits[0].numpy()
    found = session.logits(tokens)
    assert (found.dtype, found.shape) == (np.float32, (12, session.vocabulary_size))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_a_model_without_a_projection_to_narrow_gives_the_same_scores(
    session: HfSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = mixed_requests()
    expected = session.score(requests)
    monkeypatch.setattr(session._model, "get_output_embeddings", lambda: None)
    assert_scores(session.score(requests), expected)


# Generation


@pytest.mark.parametrize("max_batch_tokens", [1, 40, 4096])
def test_greedy_texts_equal_those_of_generate(llama: Path, oracle: torch.nn.Module, max_batch_tokens: int) -> None:
    prompts = [some_tokens(n, length) for n, length in enumerate((3, 17, 8, 1, 30))]
    limits = [20, 5, 12, 30, 1]
    for session in opened(llama, max_batch_tokens=max_batch_tokens):
        requests = [GenerateRequest(p, limit) for p, limit in zip(prompts, limits, strict=True)]
        found = collect(session.generate(requests))
        for n, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            ids = torch.tensor([prompt])
            whole = oracle.generate(  # type: ignore[operator]
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False, pad_token_id=1
            )
            expected = whole[0, len(prompt) :].tolist()
            assert [token.token for token in found[n]] == expected
            assert [token.finish for token in found[n][:-1]] == [None] * (len(expected) - 1)
            assert found[n][-1].finish == ("eos" if expected[-1] in session.end_tokens else "length")


def test_requests_advance_together_and_the_next_is_admitted_when_one_ends(llama: Path) -> None:
    for session in opened(llama, max_batch_tokens=16):  # room for two rows of up to 32 cached tokens
        requests = [GenerateRequest(some_tokens(n, 8), 4 + 8 * n, ignore_eos=True) for n in range(3)]
        order = [token.request for token in session.generate(requests)]
    # Both start together; 0 ends after four tokens, 2 takes its place and gives its first, then 1 and 2 alternate.
    assert order[:13] == [0, 1, 0, 1, 0, 1, 0, 1, 2, 1, 2, 1, 2]
    assert [order.count(n) for n in range(3)] == [4, 12, 20]


def test_a_stop_string_across_tokens_ends_a_text_before_it(session: HfSession) -> None:
    prompt = some_tokens(3, 6)
    (free,) = collect(session.generate([GenerateRequest(prompt, 24, ignore_eos=True)])).values()
    ids = [token.token for token in free]
    # Two characters that meet at a token boundary, so that no single token holds the stop string.
    boundary, stop = next(
        (n, (session.decode([a]) + session.decode([b]))[-2:])
        for n, (a, b) in enumerate(itertools.pairwise(ids[4:]), start=4)
        if len(session.decode([b])) == 1 and (session.decode([a]) + session.decode([b])).isascii()
    )
    (found,) = collect(session.generate([GenerateRequest(prompt, 24, stop=(stop,))])).values()
    whole = session.decode(ids)
    assert found[-1].finish == "stop"
    assert found[-1].text == whole[: whole.index(stop)]
    assert len(found) <= boundary + 2


def test_an_end_token_ends_a_text_unless_it_is_to_be_ignored(
    session: HfSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = some_tokens(3, 6)
    (free,) = collect(session.generate([GenerateRequest(prompt, 10, ignore_eos=True)])).values()
    ids = [token.token for token in free]
    monkeypatch.setitem(vars(session._text), "end_tokens", frozenset({ids[4]}))
    first = ids.index(ids[4])
    (found,) = collect(session.generate([GenerateRequest(prompt, 10)])).values()
    assert [token.token for token in found] == ids[: first + 1]
    assert (found[-1].finish, found[-1].text) == ("eos", session.decode(ids[:first]))
    (ignored,) = collect(session.generate([GenerateRequest(prompt, 10, ignore_eos=True)])).values()
    assert [token.token for token in ignored] == ids
    assert ignored[-1].finish == "length"


def test_a_sampled_text_depends_on_its_seed_and_not_on_its_company(session: HfSession) -> None:
    def texts(seeds: Sequence[int]) -> list[str | None]:
        requests = [GenerateRequest(some_tokens(1, 5), 16, temperature=1.5, seed=seed) for seed in seeds]
        return [tokens[-1].text for _, tokens in sorted(collect(session.generate(requests)).items())]

    one, other = texts([1])[0], texts([2])[0]
    assert one != other
    assert texts([2, 1, 2]) == [other, one, other]


def test_a_sampled_token_comes_as_often_as_its_probability_says(session: HfSession) -> None:
    prompt, n = some_tokens(1, 5), 400
    requests = [GenerateRequest(prompt, 1, temperature=0.7, seed=seed) for seed in range(n)]
    drawn = [token.token for token in session.generate(requests)]
    logits = session.logits(prompt)[-1].astype(np.float64) / 0.7
    probability = np.exp(logits - logits.max())
    probability /= probability.sum()
    likely = int(probability.argmax())
    # Five standard errors of a proportion: the seeds are fixed, so this does not flicker.
    assert abs(drawn.count(likely) / n - probability[likely]) < 5 * np.sqrt(probability[likely] / n)


def test_a_text_ends_where_the_models_room_does(session: HfSession) -> None:
    prompt = some_tokens(1, session.max_length - 3)
    (found,) = collect(session.generate([GenerateRequest(prompt, 10)])).values()
    assert len(found) == 3 or found[-1].finish == "eos"
    with pytest.raises(Unsupported, match="do not fit"):
        session.generate([GenerateRequest(prompt, 10, ignore_eos=True)])
    with pytest.raises(Unsupported, match="do not fit"):
        session.score([ScoreRequest(prompt, some_tokens(2, 5))])


# Text


def test_encoding_adds_no_token_and_parses_special_ones(session: HfSession) -> None:
    tokenizer = tiny_tokenizer()
    bos, eos, turn = (tokenizer.convert_tokens_to_ids(name) for name in (BOS, EOS, TURN))
    tokens = session.encode(f"{TURN}a model{EOS}")
    assert (tokens[0], tokens[-1]) == (turn, eos)
    assert session.encode("a model", bos=True) == session.encode("a model")  # this tokenizer puts no BOS by itself
    assert session.decode(tokens) == f"{TURN}a model{EOS}"
    assert session.prefix_token == bos
    assert session.end_tokens == {eos}


def test_encoding_adds_a_bos_only_when_asked_and_where_the_tokenizer_would(llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama, tmp_path / "copy")
    plain = json.loads((copy / "tokenizer.json").read_text())
    template = [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}}
    plain["post_processor"] = {
        "type": "TemplateProcessing", "single": template, "pair": template, "special_tokens": special
    }  # fmt: skip
    (copy / "tokenizer.json").write_text(json.dumps(plain))
    for session in opened(copy):
        assert session._text.tokenizer("a")["input_ids"][0] == 0  # the tokenizer left alone adds its BOS
        assert 0 not in session.encode("a model")
        assert session.encode("a", bos=True) == [0, *session.encode("a")]


def test_a_chat_is_rendered_by_the_models_own_template(session: HfSession, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = [{"role": "user", "content": "hi"}]
    assert session.chat(messages) == f"{BOS}{TURN}user\nhi{EOS}\n{TURN}assistant\n"
    assert session.chat(messages, add_generation_prompt=False) == f"{BOS}{TURN}user\nhi{EOS}\n"
    monkeypatch.setattr(session._text.tokenizer, "chat_template", "{{ raise_exception('no system role') }}")
    with pytest.raises(Unsupported, match="no system role"):
        session.chat(messages)
    monkeypatch.setattr(session._text.tokenizer, "chat_template", None)
    with pytest.raises(Unsupported, match="no chat template"):
        session.chat(messages)


# Identity and refusals


def test_the_identity_counts_what_the_files_and_tensors_hold(llama: Path, session: HfSession) -> None:
    tensors = load_file(llama / "model.safetensors")
    elements = sum(tensor.numel() for tensor in tensors.values())  # the tied projection is stored once
    identity = session.identity
    assert identity.weights_digest == hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    assert identity.weights_disk_bytes == (llama / "model.safetensors").stat().st_size
    assert identity.parameters == elements
    assert identity.tensor_types == {"float32": elements}
    # Two buffers beside the weights: 8 inverse frequencies for heads of 16, kept twice.
    assert identity.weights_memory_bytes == 4 * (elements + 2 * 8)
    assert identity.kernel == f"torch {torch.__version__} sdpa float32"
    assert identity.tokenizer_hash == hashlib.sha256((llama / "tokenizer.json").read_bytes()).hexdigest()
    assert identity.chat_template_hash is not None


def test_a_requested_dtype_is_what_the_weights_have(llama: Path) -> None:
    for session in opened(llama, dtype="bfloat16", attention="eager"):
        assert set(session.identity.tensor_types) == {"bfloat16"}
        assert session.identity.kernel.endswith("eager bfloat16")
        assert session.logits([1, 2]).dtype == np.float32


def altered(llama: Path, out: Path, **tensors: torch.Tensor | None) -> Path:
    """A copy with tensors set, or left out when None."""
    shutil.copytree(llama, out)
    kept = {**load_file(out / "model.safetensors"), **tensors}
    save_file(
        {name: tensor for name, tensor in kept.items() if tensor is not None},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    return out


@pytest.mark.parametrize(
    ("kind", "tensor"), [("missing", None), ("mismatched", torch.zeros(3)), ("unexpected", torch.zeros(3))]
)
def test_a_checkpoint_whose_tensors_do_not_match_is_refused(
    llama: Path, tmp_path: Path, kind: str, tensor: torch.Tensor | None
) -> None:
    name = "model.layers.0.extra" if kind == "unexpected" else "model.layers.1.mlp.up_proj.weight"
    path = altered(llama, tmp_path / "bad", **{name: tensor})
    with pytest.raises(CorruptArtifact, match=kind):
        list(opened(path))


def test_quantized_weights_that_no_quantizer_read_are_refused(llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "unheard-of"}}))
    with pytest.raises(Unsupported):
        list(opened(copy))


def test_a_directory_without_weights_or_with_a_broken_file_is_refused(llama: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(llama, tmp_path / "copy")
    (copy / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not a header")
    with pytest.raises(CorruptArtifact):
        list(opened(copy))
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")  # a pickle is never read
    with pytest.raises(CorruptArtifact):
        list(opened(copy))


def test_weights_that_are_no_numbers_are_a_model_error(llama: Path, tmp_path: Path) -> None:
    weight = load_file(llama / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    path = altered(llama, tmp_path / "nan", **{"model.layers.1.mlp.up_proj.weight": weight * float("nan")})
    for session in opened(path):
        with pytest.raises(ModelError):
            session.score([ScoreRequest([0], [4, 5])])
        with pytest.raises(ModelError):
            list(session.generate([GenerateRequest([0], 3)]))
        with pytest.raises(ModelError):
            session.logits([0, 4])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused(llama: Path) -> None:
    with (
        pytest.raises(Unsupported, match="cuda"),
        Transformers().open(artifact(llama), hardware=Hardware(device="cuda")),
    ):
        pass


def test_another_format_is_refused(llama: Path) -> None:
    facts = ArtifactFacts(lineage=(), format="gguf", digest="0", size_bytes=0)
    with pytest.raises(Unsupported, match="gguf"):
        Transformers().open(Artifact(llama, facts), hardware=Hardware())


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"attention": "flash"}, {"max_batch_tokens": 0}])
def test_an_argument_it_cannot_take_is_refused_at_once(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Transformers(**wrong)  # type: ignore[arg-type]


# The real model


@pytest.mark.model
def test_a_real_models_scores_give_the_loss_that_transformers_computes(smollm2_dir: Path) -> None:
    text = "The capital of France is Paris. " * 3 + "Water boils at one hundred degrees Celsius at sea level."
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    for session in opened(smollm2_dir, dtype="float32"):
        tokens = session.encode(text)
        ids = torch.tensor([tokens])
        with torch.no_grad():
            loss = float(model(ids, labels=ids).loss)
        (found,) = session.score([ScoreRequest(tokens[:1], tokens[1:])])
        assert -np.mean(found.logprobs) == pytest.approx(loss, abs=TOLERANCE)
        assert session.chat([{"role": "user", "content": "hi"}]).endswith("<|im_start|>assistant\n")
        assert session.end_tokens == set(session.encode("<|im_end|>"))
