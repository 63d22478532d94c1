"""Peak memory on an accelerator, as far as the engine in this process tells.

CUDA memory that torch allocated has high-water marks of its own: what tensors held, and what the allocator reserved.
Apple GPUs have no mark, so what the driver holds is sampled and labelled so. An engine that does not use torch tells
neither.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

PERIOD_S = 0.005


@contextmanager
def watch(device: Literal["cpu", "cuda", "mps"]) -> Iterator[dict[str, int]]:
    """Gives a dictionary that holds the peaks by source once the block has ended; empty where none can be told."""
    peaks: dict[str, int] = {}
    # Only a runtime that already uses torch has anything to tell, and importing it here would change host memory.
    if device == "cpu" or "torch" not in sys.modules:
        yield peaks
        return
    import torch

    if device == "mps":
        with sampled(torch.mps.driver_allocated_memory) as peak:
            yield peaks
        peaks["torch.mps driver_allocated, sampled"] = max(peak)
        return
    torch.cuda.reset_peak_memory_stats()
    yield peaks
    if torch.cuda.max_memory_allocated():
        peaks["torch.cuda max_memory_allocated"] = torch.cuda.max_memory_allocated()
        peaks["torch.cuda max_memory_reserved"] = torch.cuda.max_memory_reserved()


@contextmanager
def sampled(read: Callable[[], int], *, period_s: float = PERIOD_S) -> Iterator[list[int]]:
    """Reads a number from a thread while the block runs; the list holds what was read, the first before the block."""
    seen, done = [read()], threading.Event()

    def sample() -> None:
        while not done.wait(period_s):
            seen.append(read())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        seen.append(read())
