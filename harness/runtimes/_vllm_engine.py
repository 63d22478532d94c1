"""Starts and ends vLLM's engine in this process, and keeps what that changes inside a `with` block.

vLLM is steered by environment variables as much as by arguments, sets some itself, and on CPUs replaces a function of
torch. All of it is put back when the session ends.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import Unsupported
from harness.spec import Hardware

if TYPE_CHECKING:
    from harness.runtimes._vllm_session import VllmSession


def variables(*, kv_cache_gib: int) -> dict[str, str]:
    """Gives the environment in which vLLM must be imported and run."""
    return {
        # The engine in this process: its memory is ours to measure, and it ends when we do.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib),
        # By default 4-bit weights meet activations rounded to 8 bits on AMX processors, whatever the checkpoint says.
        "VLLM_CPU_INT4_W4A8": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }


@contextmanager
def surroundings(changes: Mapping[str, str]) -> Iterator[None]:
    """Changes the environment for a `with` block and restores all of it, what others changed meanwhile included."""
    before = dict(os.environ)
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def opened(
    path: Path, *, settings: Mapping[str, object], kv_cache_gib: int, hardware: Hardware
) -> Iterator[VllmSession]:
    """Loads a model directory. Raises Unsupported when vLLM cannot, or was built for another device."""
    with surroundings(variables(kv_cache_gib=kv_cache_gib)), threads(hardware.threads), ExitStack() as stack:
        require_importable()
        require_platform(hardware.device)
        from harness.runtimes._hf_load import load_tokenizer
        from harness.runtimes._hf_text import HfText
        from harness.runtimes._vllm_session import VllmSession

        stack.callback(_forget)
        text = HfText(load_tokenizer(path), directory=path)
        session = VllmSession(_engine(path, settings), text, directory=path)
        stack.callback(session.close)
        require_cache(session, str(settings["kv_cache_dtype"]))
        yield session


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets torch's threads; then puts back the function that does so, which vLLM on CPUs replaces by an empty one."""
    import torch

    set_num_threads = torch.set_num_threads
    set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads = set_num_threads


def require_importable() -> None:
    """Raises Unsupported when vLLM is installed and broken, which a torchvision for another torch is enough for."""
    try:
        from vllm import LLMEngine  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise Unsupported(
            f"the vLLM installed here cannot be imported: {reason(error)}",
            remedy="if torchvision is at fault, which text needs not: "
            f"{sys.executable} -m pip uninstall --yes torchvision torchaudio torchcodec",
        ) from error


def require_cache(session: VllmSession, asked: str) -> None:
    """Raises Unsupported when an 8-bit cache was asked for and vLLM keeps keys and values some other way."""
    if asked != "auto" and (found := session.byte_caches) != {asked}:
        kept = ", ".join(sorted(found)) or "none"
        raise Unsupported(
            f"vLLM was asked to keep keys and values in {asked}, and of those in 8 bits there are: {kept}",
            remedy="leave `kv` out for this model",
        )


def require_platform(device: str) -> None:
    """Raises Unsupported unless the installed vLLM runs on the device."""
    from vllm.platforms import current_platform

    found = current_platform.device_type
    if found != device:
        package = "vllm-cpu" if device == "cpu" else "vllm"
        raise Unsupported(
            f"the vLLM installed here runs on {found or 'no device of this machine'}, and the cell asks for {device}",
            remedy=f"install {package} in an environment of its own",
        )


def _engine(path: Path, settings: Mapping[str, object]) -> Any:
    from vllm import EngineArgs, LLMEngine

    try:
        return LLMEngine.from_engine_args(EngineArgs(model=str(path), **settings))
    except (ValueError, NotImplementedError, ImportError) as error:
        raise Unsupported(
            f"vLLM cannot open {path.name}: {reason(error)}",
            remedy="read the cell's log.txt; `dtype`, `max_model_len` and the memory for the cache are arguments",
        ) from error


def reason(error: Exception) -> str:
    r"""Gives what an error says in one line; vLLM's configuration errors hide it between a heading and a dump.

    >>> reason(ValueError("1 validation error for ModelConfig\n  Value error, too long [type=value_error]\n  For"))
    'too long'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    marked = next((line for line in lines if line.startswith("Value error, ")), None)
    if marked is not None:
        return marked.removeprefix("Value error, ").split(" [type=")[0]
    return lines[0] if lines else type(error).__name__


def _forget() -> None:
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    gc.collect()
    cleanup_dist_env_and_memory()
