"""llama.cpp behind two handles: `Weights`, a loaded file, and `Engine`, a cache with one batch.

llama.cpp's C interface speaks in pointers, error codes and a log written to stderr. Here every pointer has one owner
that frees it, every code is an exception that says what happened, and the log goes to Python's `logging`. The cache
is *unified*: `cells` positions that all sequences share, so that tokens two sequences have in common are computed and
stored once. A row of logits exists only where a token asked for one.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType

from harness.errors import Unsupported
from harness.runtimes.llama_cpp import PLAIN_KV, Kv

_LOG = logging.getLogger("harness.llama_cpp")
# By ggml_log_level: debug, info, warning, error, and the rest of a line. llama.cpp warns of things that are no fault
# here (a context smaller than the one trained for), so its warnings are information.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.INFO, 4: logging.ERROR, 5: logging.DEBUG}

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Limits:
    """How much an engine may hold: tokens of one decode, positions of the cache, sequences in it."""

    batch_tokens: int
    cells: int
    sequences: int


@dataclass(frozen=True)
class Arithmetic:
    """How an engine computes: the type of keys and values, fused attention or not, and whether a GPU takes part.

    `threads` are those for one token a sequence and those for longer batches.
    """

    kv: Kv
    flash_attention: bool
    threads: tuple[int, int]
    offload: bool


@cache
def _log_sink() -> Any:
    """Gives the function llama.cpp calls with its messages; it must live as long as the library may call it."""
    return lib.llama_log_callback(_pass_on)


def _pass_on(level: int, text: bytes, _data: object) -> None:
    _LOG.log(_LEVELS.get(level, logging.DEBUG), "%s", text.decode("utf-8", errors="replace").rstrip())


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Gives what llama.cpp says inside, in pieces, and passes it on as always."""
    heard: list[str] = []

    def sink(level: int, text: bytes, data: object) -> None:
        heard.append(text.decode("utf-8", errors="replace"))
        _pass_on(level, text, data)

    callback = lib.llama_log_callback(sink)
    lib.llama_log_set(callback, None)
    try:
        yield heard
    finally:
        lib.llama_log_set(_log_sink(), None)


class _Kept(logging.Handler):
    """Keeps the errors llama.cpp logs, which are the only place where it says why something failed."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @property
    def reason(self) -> str:
        return self.lines[0] if self.lines else "it gives no reason"


@contextmanager
def _kept_errors() -> Iterator[_Kept]:
    handler = _Kept()
    _LOG.addHandler(handler)
    try:
        yield handler
    finally:
        _LOG.removeHandler(handler)


def start() -> str:
    """Makes llama.cpp ready and quiet; gives its line of system information (features the library was built with)."""
    lib.llama_log_set(_log_sink(), None)
    lib.llama_backend_init()
    return str(lib.llama_print_system_info().decode())


def offload_is_built_in() -> bool:
    """True when this build of llama.cpp can use a GPU."""
    return bool(lib.llama_supports_gpu_offload())


@contextmanager
def weights(path: Path, *, gpu_layers: int, extra_buffers: bool) -> Iterator[Weights]:
    """Loads a GGUF file; no layer goes to a GPU when `gpu_layers` is 0. Raises Unsupported with llama.cpp's reason."""
    parameters = lib.llama_model_default_params()
    parameters.n_gpu_layers = gpu_layers
    parameters.use_extra_bufts = extra_buffers
    no_devices = (ctypes.c_void_p * 1)(None)
    if gpu_layers == 0:
        # A build with a GPU would otherwise keep a context on it and lend it large matrix products.
        parameters.devices = ctypes.cast(no_devices, ctypes.c_void_p)
    with _kept_errors() as errors:
        pointer = lib.llama_model_load_from_file(str(path).encode(), parameters)
    if not pointer:
        raise Unsupported(f"llama.cpp cannot load {path.name}: {errors.reason}", remedy="convert the model again")
    try:
        yield Weights(pointer)
    finally:
        lib.llama_model_free(pointer)


class Weights:
    """A loaded model file: its sizes and its metadata."""

    def __init__(self, pointer: Any) -> None:
        self.pointer = pointer
        self.vocabulary = lib.llama_model_get_vocab(pointer)
        self.vocabulary_size = int(lib.llama_vocab_n_tokens(self.vocabulary))
        self.trained_length = int(lib.llama_model_n_ctx_train(pointer))
        self.size_bytes = int(lib.llama_model_size(pointer))
        self.parameters = int(lib.llama_model_n_params(pointer))

    @property
    def is_recurrent(self) -> bool:
        """True when the state of a sequence cannot be cut or shared by positions (Mamba, RWKV, hybrids)."""
        return bool(lib.llama_model_is_recurrent(self.pointer) or lib.llama_model_is_hybrid(self.pointer))

    def metadata(self, key: str) -> str | None:
        """Gives a metadata value as text, or None when the file has no such key."""
        length = lib.llama_model_meta_val_str(self.pointer, key.encode(), None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, length + 1)
        return buffer.value.decode("utf-8", errors="replace")


@contextmanager
def engine(model: Weights, *, limits: Limits, arithmetic: Arithmetic) -> Iterator[Engine]:
    """Creates a cache and its compute buffers. Raises MemoryError when they do not fit, Unsupported otherwise."""
    with _kept_errors() as errors, _listening() as heard:
        pointer = lib.llama_init_from_model(model.pointer, _context_parameters(limits, arithmetic))
    if not pointer:
        if "alloc" in errors.reason:
            raise MemoryError(f"llama.cpp cannot create a cache of {limits.cells} positions: {errors.reason}")
        raise Unsupported(f"llama.cpp cannot create a context: {errors.reason}")
    batch = lib.llama_batch_init(limits.batch_tokens, 0, limits.sequences)
    try:
        rotates = require_as_asked("".join(heard), arithmetic)
        yield Engine(pointer, batch=batch, vocabulary_size=model.vocabulary_size, limits=limits, rotates=rotates)
    finally:
        lib.llama_batch_free(batch)
        lib.llama_free(pointer)


def require_as_asked(log: str, arithmetic: Arithmetic) -> bool:
    r"""Reads in llama.cpp's log which cache it made; True when it rotates keys or values before it rounds them.

    Raises Unsupported when a quantized cache was asked for and made another way.

    >>> asked = Arithmetic("q8_0", flash_attention=True, threads=(1, 1), offload=False)
    >>> require_as_asked("flash_attn = enabled\nK (q8_0): 1.06 MiB, V (q8_0): 1.06 MiB\nattn_rot_k = 1", asked)
    True
    """
    if arithmetic.kv in PLAIN_KV:
        return False
    types, fused = set(re.findall(r"\b[KV] \((\w+)\):", log)), set(re.findall(r"flash_attn += (\w+)", log))
    if types != {arithmetic.kv} or fused != {"enabled"}:
        said = f"types {', '.join(sorted(types)) or 'none'}, flash attention {', '.join(sorted(fused)) or 'unknown'}"
        raise Unsupported(
            f"llama.cpp was asked for keys and values in {arithmetic.kv} and flash attention, and made: {said}",
            remedy="leave `kv` out for this model",
        )
    return re.search(r"attn_rot_[kv] = 1", log) is not None


def _context_parameters(limits: Limits, arithmetic: Arithmetic) -> Any:
    parameters = lib.llama_context_default_params()
    parameters.n_ctx = limits.cells
    parameters.n_batch = parameters.n_ubatch = limits.batch_tokens
    parameters.n_seq_max = limits.sequences
    parameters.n_threads, parameters.n_threads_batch = arithmetic.threads
    parameters.type_k = parameters.type_v = int(GGMLQuantizationType[arithmetic.kv.upper()])
    parameters.flash_attn_type = (
        lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if arithmetic.flash_attention else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    parameters.offload_kqv = parameters.op_offload = arithmetic.offload
    parameters.kv_unified = True
    # A window-sized cache for sliding-window layers would forget the prefixes that are shared between sequences.
    parameters.swa_full = True
    return parameters


class Engine:
    """A cache and a batch: `add` tokens, `run`, read the rows of logits that were asked for."""

    def __init__(self, context: Any, *, batch: Any, vocabulary_size: int, limits: Limits, rotates: bool) -> None:
        self.limits, self.rotates = limits, rotates
        self._context, self._batch, self._vocabulary_size = context, batch, vocabulary_size
        self._memory = lib.llama_get_memory(context)
        length = (limits.batch_tokens,)
        self._tokens = np.ctypeslib.as_array(batch.token, length)
        self._positions = np.ctypeslib.as_array(batch.pos, length)
        self._counts = np.ctypeslib.as_array(batch.n_seq_id, length)
        self._wanted = np.ctypeslib.as_array(batch.logits, length)
        self._members = [
            np.ctypeslib.as_array(batch.seq_id[i], (limits.sequences,)) for i in range(limits.batch_tokens)
        ]
        self._filled = 0

    @property
    def room(self) -> int:
        """How many more tokens the batch takes."""
        return self.limits.batch_tokens - self._filled

    def add(self, token: int, *, position: int, sequences: Sequence[int], wanted: bool) -> None:
        """Adds a token at a position of one or more sequences; `wanted` asks for the logits after it."""
        index = self._filled
        self._tokens[index], self._positions[index], self._wanted[index] = token, position, wanted
        self._counts[index] = len(sequences)
        self._members[index][: len(sequences)] = sequences
        self._filled += 1

    def run(self) -> Floats:
        """Decodes the batch and empties it; gives the wanted rows (N, V), a view that the next run overwrites."""
        self._batch.n_tokens = self._filled
        rows = int(np.count_nonzero(self._wanted[: self._filled]))
        self._filled = 0
        with _kept_errors() as errors:
            code = lib.llama_decode(self._context, self._batch)
        if code:
            raise decode_error(code, reason=errors.reason)
        if not rows:
            lib.llama_synchronize(self._context)
            return np.empty((0, self._vocabulary_size), dtype=np.float32)
        return np.ctypeslib.as_array(lib.llama_get_logits(self._context), (rows, self._vocabulary_size))

    def clear(self) -> None:
        """Forgets every sequence and empties the batch."""
        self._filled = 0
        lib.llama_memory_clear(self._memory, False)

    def forget(self, sequence: int, *, start: int = 0) -> bool:
        """Drops a sequence's positions from `start` on; False when this kind of cache cannot do that."""
        return bool(lib.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def share(self, source: int, *, target: int, end: int) -> None:
        """Makes `target` begin with the positions before `end` of `source`, without copying them."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, end)


def decode_error(code: int, *, reason: str) -> Exception:
    """Gives the exception for a code of `llama_decode` (1: no room, 2: aborted, -1: bad batch, -2: out of memory)."""
    if code == 1:
        return Unsupported(
            f"llama.cpp found no room in its cache ({reason})", remedy="give the runtime a larger `context`"
        )
    if code == -2:
        return MemoryError(f"llama.cpp could not allocate what a decode needs: {reason}")
    return RuntimeError(f"llama_decode gave {code}: {reason}")
