"""llama.cpp as a runtime: GGUF files at the storage types they really have, on CPU or GPU, through its C interface.

The C interface is used because nothing above it gives the probabilities of a prompt's tokens at full speed: the Python
class recomputes, the server has no prompt scores. Scoring and generating both run many sequences in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, final, get_args

from harness.errors import Unsupported
from harness.interfaces import Artifact, Session
from harness.spec import Hardware, Use

Kv = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""Types that llama.cpp keeps keys and values in."""
PLAIN_KV = ("f32", "f16", "bf16")
QUANTIZED_KV = tuple(kv for kv in get_args(Kv) if kv not in PLAIN_KV)
AMX_CAVEAT = (
    "weight repacking is off because this llama.cpp was built with AMX, where some compilers produce code that crashes"
    " on quantized weights (llama.cpp #20824): prefill is slower than it could be"
)


@final
@dataclass(frozen=True)
class LlamaCpp:
    """Opens GGUF files in llama.cpp.

    Does: scores and generates with up to `sequences` sequences in batches of `batch_tokens`, over one cache of
        `context` positions that all sequences share, so that a shared beginning is computed once. `kv` is the type of
        keys and values in it: f32, f16, bf16, or quantized in blocks of 32 numbers (q8_0 8.5 bits a number, q5_1 6,
        q5_0 5.5, q4_1 5, q4_0 and iq4_nl 4.5), which takes `flash_attention`. A session's `max_length` is `context` or
        the length the model was trained for, whichever is less. On `cuda` and `mps`, `gpu_layers` layers run on the GPU
        (all when left out); on `cpu` none do. Prompts are read with the cell's threads; so are tokens generated, unless
        `decode_threads` gives them a number of their own.
    Needs: the extra `llama-cpp`; for a GPU a build of llama-cpp-python with one; for a quantized `kv` heads whose width
        32 divides.
    Why: the most used runtime of quantized models on CPUs, whose kernels really read packed weights.
    Known: a cache in f16 moves log-probabilities by some thousandths against f32; `kv: f32` removes that, but not with
        flash attention, which takes f32 for f16. Every token is written into the cache and read from it, also by itself
        and by those computed with it, so scores and logits show all that a quantized cache costs; compare them with
        f16 and `flash_attention`. llama.cpp rotates keys and values before it rounds them where the heads' width
        allows, which the record says ("rotated"). The bytes of weights in the record do not count the cache.
        Attention costs in proportion to all that is in the shared cache, so more `sequences` are not always faster.
        Weights in memory are counted as packed; copies that llama.cpp repacks for its kernels come on top. Threads
        meet after each of the hundreds of operations of a token, so a small model may decode faster with one than with
        two. Where llama.cpp was built with AMX, repacking is switched off, and the record says so. Recurrent models run
        one sequence at a time.
    Source: llama.cpp as vendored by llama-cpp-python 0.3.36, `include/llama.h`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("llama_cpp", "gguf")
    extra: ClassVar[str | None] = "llama-cpp"
    capabilities: ClassVar[frozenset[str]] = frozenset({"score", "generate", "logits", "chat", "batch"})
    devices: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda", "mps"})

    batch_tokens: int = 512
    context: int = 4096
    kv: Kv = "f16"
    flash_attention: bool = False
    sequences: int = 16
    gpu_layers: int | None = None
    decode_threads: int | None = None

    def __post_init__(self) -> None:
        if self.kv not in (*PLAIN_KV, *QUANTIZED_KV):
            raise ValueError(f"kv is {self.kv!r}; allowed are {', '.join((*PLAIN_KV, *QUANTIZED_KV))}")
        if self.kv in QUANTIZED_KV and not self.flash_attention:
            raise ValueError(f"kv is {self.kv} and flash_attention is false; allowed with flash_attention: true alone")
        if not 1 <= self.sequences <= 256:
            raise ValueError(f"sequences is {self.sequences}; allowed are 1 to 256")
        if not self.sequences <= self.batch_tokens <= self.context:
            raise ValueError(
                f"batch_tokens is {self.batch_tokens}; allowed are `sequences` to `context`, here {self.sequences} to"
                f" {self.context}"
            )
        if self.gpu_layers is not None and self.gpu_layers < 0:
            raise ValueError(f"gpu_layers is {self.gpu_layers}; allowed are 0 and more, or nothing for all layers")
        if self.decode_threads is not None and self.decode_threads < 1:
            raise ValueError(f"decode_threads is {self.decode_threads}; allowed are 1 and more, or nothing")

    @property
    def formats(self) -> Mapping[str, tuple[Use, ...]]:
        return {"gguf": (), "hf": (Use(use="convert.gguf"),), "grid": (Use(use="convert.gguf"),)}

    @contextmanager
    def open(self, artifact: Artifact, *, hardware: Hardware) -> Iterator[Session]:
        from harness.runtimes import _llama_api as api
        from harness.runtimes._llama_session import LlamaSession

        features = api.start()
        if hardware.device != "cpu" and not api.offload_is_built_in():
            raise Unsupported(
                f"this build of llama.cpp has no GPU support, and the cell asks for {hardware.device}",
                remedy='reinstall llama-cpp-python with CMAKE_ARGS="-DGGML_CUDA=on" (or -DGGML_METAL=on)',
            )
        file, repacks = model_file(artifact.path), repacking_is_safe(features)
        layers = 0 if hardware.device == "cpu" else -1 if self.gpu_layers is None else self.gpu_layers
        threads = (self.decode_threads or hardware.threads, hardware.threads)
        arithmetic = api.Arithmetic(self.kv, self.flash_attention, threads, hardware.device != "cpu")
        with api.weights(file, gpu_layers=layers, extra_buffers=repacks) as model:
            # The state of a recurrent model cannot be shared or cut at a position.
            limits = api.Limits(self.batch_tokens, self.context, 1 if model.is_recurrent else self.sequences)
            with api.engine(model, limits=limits, arithmetic=arithmetic) as engine:
                kv = f"{self.kv} rotated" if engine.rotates else self.kv
                switches = f"repack {_on(repacks)}; kv {kv}; flash {_on(self.flash_attention)}"
                kernel = f"{short(features)}; {switches}; threads {threads[0]} to decode, {threads[1]} to read"
                yield LlamaSession(file, model, engine, kernel, () if repacks else (AMX_CAVEAT,))


def model_file(folder: Path) -> Path:
    """Gives the folder's one GGUF file. Raises Unsupported when there is none or more than one (split files)."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise Unsupported(
            f"an artifact of format gguf has exactly one *.gguf file, found {names}", remedy="merge or remove"
        )
    return files[0]


def repacking_is_safe(system_info: str) -> bool:
    """False when llama.cpp was built with AMX: its repacked buffers then go to kernels that some compilers break.

    >>> repacking_is_safe("CPU : AVX512 = 1 | AMX_INT8 = 1 | REPACK = 1 | ")
    False
    """
    return "AMX_INT8 = 1" not in system_info


def short(system_info: str) -> str:
    """Gives llama.cpp's list of features without the filling.

    >>> short("CPU : AVX2 = 1 | FMA = 1 | CUDA : ARCHS = 900 | ")
    'CPU: AVX2 FMA CUDA: ARCHS=900'
    """
    words = (
        part.strip().replace(" : ", ": ").removesuffix(" = 1").replace(" = ", "=") for part in system_info.split("|")
    )
    return " ".join(word for word in words if word)


def _on(switch: bool) -> str:
    return "on" if switch else "off"
