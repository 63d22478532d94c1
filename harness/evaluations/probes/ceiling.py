"""What this machine could do at most, measured beside what the model did.

Decoding reads every weight once a step, so memory bandwidth over the bytes of the weights bounds it. A speed-up only
means something against that bound, and the bound changes with the neighbours on the machine, so it is measured in the
same process just before and just after. It is the best of reading (as decoding does) and copying, with one thread and
with all that the cell may use, since none of them reaches the limit everywhere. The float32 matrix product compares
machines; it bounds no prefill, because engines multiply in smaller types.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from harness.spec import Hardware, Value

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WORKING_SET_BYTES = 256 * 2**20
"""Larger than most last-level caches, so that memory answers; a processor with more cache gets a bound too high."""
SIDE = 1024
REPEATS = 5


class Ceiling(Value):
    """Bytes per second from memory and float32 operations per second in a matrix product; best of five."""

    bandwidth_bytes_per_s: float
    matmul_flops: float
    method: str


def measure(hardware: Hardware) -> Ceiling | None:
    """Measures the bounds of a device with the cell's number of threads; None where no probe reaches the device."""
    if hardware.device == "cpu":
        return _numpy_ceiling(hardware.threads)
    return torch_ceiling(hardware.device) if importlib.util.find_spec("torch") else None


def _best_s(work: Callable[[], object]) -> float:
    work()
    times: list[int] = []
    for _ in range(REPEATS):
        started = time.perf_counter_ns()
        work()
        times.append(time.perf_counter_ns() - started)
    return min(times) * 1e-9


def _numpy_ceiling(threads: int) -> Ceiling:
    counts = sorted({1, threads})
    return Ceiling(
        bandwidth_bytes_per_s=max(_bandwidth_bytes_per_s(count) for count in counts),
        matmul_flops=max(_matmul_flops(count) for count in counts),
        method=f"numpy with up to {threads} threads: read or copy; float32 product of {SIDE} x {SIDE}",
    )


def _bandwidth_bytes_per_s(threads: int) -> float:
    import numpy as np

    source = np.ones(WORKING_SET_BYTES // 8, dtype=np.float32)
    target = np.zeros_like(source)
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            _in_parts(pool, threads, np.copyto, target, source)

        def read() -> None:
            # Both arrays, so that what one pass leaves in the cache is gone when the next comes to it.
            _in_parts(pool, threads, np.max, source)
            _in_parts(pool, threads, np.max, target)

        return 2 * source.nbytes / min(_best_s(copy), _best_s(read))


def _matmul_flops(threads: int) -> float:
    import numpy as np

    matrix = np.ones((SIDE, SIDE), dtype=np.float32)
    product = np.empty_like(matrix)
    with _blas_threads(threads):
        return 2 * SIDE**3 / _best_s(lambda: np.matmul(matrix, matrix, out=product))


def _in_parts(
    pool: ThreadPoolExecutor, threads: int, work: Callable[..., object], *arrays: npt.NDArray[np.float32]
) -> list[object]:
    """Applies `work` to equal parts of the arrays at once; numpy lets other threads run meanwhile."""
    step = -(-arrays[0].size // threads)
    parts = [tuple(array[start : start + step] for array in arrays) for start in range(0, arrays[0].size, step)]
    return list(pool.map(lambda part: work(*part), parts))


def _blas_threads(threads: int) -> AbstractContextManager[Any]:
    """Holds numpy's matrix product to `threads`; without threadpoolctl the environment's numbers hold, as launched."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return nullcontext()
    limits: AbstractContextManager[Any] = importlib.import_module("threadpoolctl").threadpool_limits(
        limits=threads, user_api="blas"
    )
    return limits


def torch_ceiling(device: str) -> Ceiling:
    """Measures the bounds with torch, for devices that numpy does not reach."""
    import torch

    source = torch.ones(WORKING_SET_BYTES // 8, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    matrix = torch.ones((4 * SIDE, 4 * SIDE) if device != "cpu" else (SIDE, SIDE), dtype=torch.float32, device=device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()
        elif device == "mps":
            torch.mps.synchronize()

    def copy() -> None:
        target.copy_(source)
        wait()

    def multiply() -> None:
        torch.mm(matrix, matrix)
        wait()

    size = source.numel() * source.element_size()
    return Ceiling(
        bandwidth_bytes_per_s=2 * size / _best_s(copy),
        matmul_flops=2 * matrix.shape[0] ** 3 / _best_s(multiply),
        method=f"torch on {device}: copy; float32 product of {matrix.shape[0]} x {matrix.shape[0]}",
    )


def decode_roofline_tps(bandwidth_bytes_per_s: float, *, weights_bytes: float, batch: int) -> float:
    """Gives the most tokens per second that memory allows: a step reads the weights once and gives one token a request.

    Reads of the KV cache are left out, so the bound is a little high and the utilization a little low.
    """
    return batch * bandwidth_bytes_per_s / weights_bytes
