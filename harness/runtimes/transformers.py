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


@final
@dataclass(frozen=True)
class Transformers:
    """PyTorch execution of a Hugging Face model directory.

    Does: loads the directory with every weight accounted for, scores with shared contexts computed once, generates in a
        continuous batch, gives full logits and renders the model's own chat template.
    Needs: torch and transformers; CUDA or MPS if the hardware says so. Packed formats need their own package.
    Why: it runs nearly every architecture and format, and what it computes is what the authors of a model meant.
    Known: `dtype: auto` computes in the stored type. Models with a sliding window are batched and share contexts while
        a whole row fits into the window; models with recurrent state generate one request at a time. One request alone
        may exceed `max_batch_tokens`. A request that asks for more tokens than the model has room for ends with
        `length` when the room does. In bfloat16 results depend, by rounding, on what shares a batch.
    Source: transformers 5.17, `AutoModelForCausalLM` and `DynamicCache`; log-probabilities in float32.
    """

    dtype: str = "auto"
    max_batch_tokens: int = 4096
    attention: str = "sdpa"

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers")
    extra: ClassVar[str | None] = "torch"
    capabilities: ClassVar[frozenset[str]] = frozenset({"score", "generate", "logits", "chat", "batch"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda", "mps"})

    def __post_init__(self) -> None:
        for name, found, allowed in (("dtype", self.dtype, DTYPES), ("attention", self.attention, ATTENTION)):
            if found not in allowed:
                raise ValueError(f"{name} is {found!r}; allowed are {', '.join(allowed)}")
        if self.max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens is {self.max_batch_tokens}; at least 1 is needed")

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

        from harness.runtimes._hf_load import load_model, load_tokenizer
        from harness.runtimes._hf_session import HfSession
        from harness.runtimes._hf_text import HfText

        torch.set_num_threads(hardware.threads)
        text = HfText(load_tokenizer(artifact.path), directory=artifact.path)
        model = load_model(artifact.path, dtype=self.dtype, attention=self.attention, hardware=hardware)
        session = HfSession(model, text, directory=artifact.path, max_batch_tokens=self.max_batch_tokens)
        try:
            yield session
        finally:
            session.close()
            del model
            gc.collect()
            if hardware.device == "cuda":
                torch.cuda.empty_cache()
