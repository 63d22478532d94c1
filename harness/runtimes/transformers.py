"""Hugging Face transformers as a runtime: the reference that every compressed version is compared with.

It opens a model directory as it is, plain or packed by any quantizer that transformers knows, and refuses one that
would load wrong. Scoring and generation are batched here rather than by `model.generate`, so that contexts are computed
once, tokens are seen as they come, and the harness can say exactly what ran.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from harness.errors import Unsupported
from harness.interfaces import Artifact, Session
from harness.spec import Hardware, Use

if TYPE_CHECKING:
    from harness.runtimes._hf_session import HfSession

DTYPES = ("auto", "float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager")
KV = ("none", "int8", "int4", "int2")


@final
@dataclass(frozen=True)
class Transformers:
    """PyTorch execution of a Hugging Face model directory.

    Does: loads the directory with every weight accounted for, scores with shared contexts computed once, generates in a
        continuous batch, gives full logits and renders the model's own chat template. `kv` keeps keys and values in
        int8, int4 or int2, a scale for at most 64 numbers of a head; the latest ones gather unrounded until there are
        `kv_residual`, and then all are rounded.
    Needs: torch and transformers; CUDA or MPS if the hardware says so. Packed formats need their own package. For `kv`
        optimum-quanto (int4, int2) or hqq (int8) and a model whose layers all attend to everything.
    Why: it runs nearly every architecture and format, and what it computes is what the authors of a model meant.
    Known: `dtype: auto` computes in the stored type. Models with a sliding window are batched and share contexts while
        a whole row fits into the window; models with recurrent state generate one request at a time. One request alone
        may exceed `max_batch_tokens`. A request that asks for more tokens than the model has room for ends with
        `length` when the room does. In bfloat16 results depend, by rounding, on what shares a batch. With `kv` the
        library's cache can neither be batched nor cut: requests run one after another, only a context that is the same
        to the last token is shared, and speeds are those of one request; every pass unpacks the whole cache, so it is
        slow. A prompt attends to itself unrounded but for its last token, which, unlike in the library's `generate`,
        attends to it when it is rounded; scores and logits are those of a text that is generated so, the context (for
        logits the first token) being the prompt. So a score shows what rounding the context costs, and a text without
        one shows little before it has `kv_residual` tokens: with 2 it shows all. Rounding anew what was rounded before
        adds errors as a text grows. In bfloat16 hqq's zero points have 8 bits, which makes int8's squared error half as
        large again.
    Source: transformers 5.17, `AutoModelForCausalLM`, `DynamicCache` and `QuantizedCache` (after KIVI, arXiv
        2402.02750, but with scales for each position); log-probabilities in float32.
    """

    dtype: str = "auto"
    max_batch_tokens: int = 4096
    attention: str = "sdpa"
    kv: str = "none"
    kv_residual: int = 128

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    extra: ClassVar[str | None] = "torch"
    capabilities: ClassVar[frozenset[str]] = frozenset({"score", "generate", "logits", "chat", "batch"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda", "mps"})

    def __post_init__(self) -> None:
        for name, found, allowed in (("dtype", self.dtype, DTYPES), ("attention", self.attention, ATTENTION)):
            if found not in allowed:
                raise ValueError(f"{name} is {found!r}; allowed are {', '.join(allowed)}")
        if self.kv not in KV:
            raise ValueError(f"kv is {self.kv!r}; allowed are {', '.join(KV)}")
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens is {self.max_batch_tokens}; at least 1 is needed")
        if self.kv_residual < 2:
            raise ValueError(
                f"kv_residual is {self.kv_residual}; at least 2 is needed, which is what the library keeps"
            )

    @property
    def formats(self) -> Mapping[str, tuple[Use, ...]]:
        return {"hf": (), "grid": (), "packed": ()}

    def open(self, artifact: Artifact, *, hardware: Hardware) -> AbstractContextManager[Session]:
        if artifact.format not in self.formats:
            raise Unsupported(f"transformers opens hf directories, not {artifact.format}")
        return self._session(artifact, hardware)

    @contextmanager
    def _session(self, artifact: Artifact, hardware: Hardware) -> Iterator[HfSession]:
        import gc

        import torch

        from harness.runtimes._hf_kv import QuantizedKv
        from harness.runtimes._hf_load import load_model, load_tokenizer
        from harness.runtimes._hf_session import HfSession
        from harness.runtimes._hf_text import HfText

        torch.set_num_threads(hardware.threads)
        text = HfText(load_tokenizer(artifact.path), directory=artifact.path)
        model = load_model(artifact.path, dtype=self.dtype, attention=self.attention, hardware=hardware)
        kv = None if self.kv == "none" else QuantizedKv(self.kv, self.kv_residual)
        session = HfSession(model, text, directory=artifact.path, max_batch_tokens=self.max_batch_tokens, kv=kv)
        try:
            yield session
        finally:
            session.close()
            del model
            gc.collect()
            if hardware.device == "cuda":
                torch.cuda.empty_cache()
