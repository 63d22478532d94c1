"""When tokens arrived, and what follows from it.

The harness holds the clock: a stamp is taken the moment a token reaches us, from one monotonic clock, and all
arithmetic comes after the run. A runtime may answer a batch together or one request after the other; the stamps tell
which, because requests that ran together have all begun before any has ended.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from harness.errors import Unsupported
from harness.interfaces import GenerateRequest, Session

NS = 1e-9


@dataclass(frozen=True)
class Arrivals:
    """Stamps of one call: `(request, ns)` in the order of arrival, and the CPU time that this process spent."""

    started_ns: int
    stamps: tuple[tuple[int, int], ...]
    cpu_s: float


def collect(session: Session, requests: Sequence[GenerateRequest]) -> Arrivals:
    """Runs requests of a stated length. Raises Unsupported when the runtime gives another number of tokens."""
    stamps: list[tuple[int, int]] = []
    with _without_collections():
        cpu_ns = time.process_time_ns()
        started_ns = time.perf_counter_ns()
        for token in session.generate(requests):
            stamps.append((token.request, time.perf_counter_ns()))
    arrivals = Arrivals(started_ns, tuple(stamps), (time.process_time_ns() - cpu_ns) * NS)
    _check_lengths(arrivals, requests)
    return arrivals


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keeps Python's garbage collector from falling into one repetition and not into another."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_lengths(arrivals: Arrivals, requests: Sequence[GenerateRequest]) -> None:
    for index, request in enumerate(requests):
        count = sum(owner == index for owner, _ in arrivals.stamps)
        if count != request.max_tokens:
            raise Unsupported(
                f"the runtime gave {count} tokens where exactly {request.max_tokens} were asked for with `ignore_eos`",
                remedy="a speed of another length is another speed; use a runtime that honours `ignore_eos`",
            )


@dataclass(frozen=True)
class Timing:
    """Times of one batch. Throughputs are None where requests ran one after another, and `tpot_s` for one token each.

    `ttft_s` and `tpot_s` are means over the requests of the batch.
    """

    wall_s: float
    ttft_s: float
    tpot_s: float | None
    prefill_tps: float | None
    decode_tps: float | None
    together: bool


def timing(arrivals: Arrivals, *, prompt_tokens: int) -> Timing:
    """Gives the times that stamps tell.

    TTFT is a request's first stamp less the start; TPOT (last stamp - first stamp) / (tokens - 1). The prompts of
    a batch are read when its last request has its first token: prefill throughput is batch * prompt_tokens over
    that time, decode throughput the tokens stamped after that moment over the time until the last of them.
    """
    requests = sorted({owner for owner, _ in arrivals.stamps})
    own = [[ns for owner, ns in arrivals.stamps if owner == request] for request in requests]
    began_ns, ended_ns = max(stamps[0] for stamps in own), max(stamps[-1] for stamps in own)
    together = len(own) == 1 or began_ns <= min(stamps[-1] for stamps in own)
    later = sum(ns > began_ns for _, ns in arrivals.stamps)
    long = [stamps for stamps in own if len(stamps) > 1]
    return Timing(
        wall_s=(ended_ns - arrivals.started_ns) * NS,
        ttft_s=statistics.fmean(stamps[0] - arrivals.started_ns for stamps in own) * NS,
        tpot_s=statistics.fmean((stamps[-1] - stamps[0]) / (len(stamps) - 1) for stamps in long) * NS if long else None,
        prefill_tps=len(own) * prompt_tokens / ((began_ns - arrivals.started_ns) * NS) if together else None,
        decode_tps=later / ((ended_ns - began_ns) * NS) if together and later else None,
        together=together,
    )


def is_stable(walls_s: Sequence[float], *, within: float = 0.03) -> bool:
    """True when the last three times agree within 3 %: warm-up is over."""
    last = walls_s[-3:]
    return len(last) == 3 and max(last) <= min(last) * (1 + within)
