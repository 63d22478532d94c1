"""Peak memory of a process from the kernel's own high-water marks, split into what it allocated and what it mapped.

Weights that are mapped from a file count as resident but can be dropped and shared; weights that were copied cannot,
so one "RSS" compares nothing. Linux keeps a high-water mark of the sum only. The split follows from it without
sampling: between a reset of the mark and its reading the mapped part F grows from F0 to F1, as long as nothing is
evicted, so the allocated part A = sum - F peaked

    at most   mark - F0     and     at least   max(mark - F1, A at the end).

After a first pass has touched every weight F0 and F1 are nearly equal and the bounds meet. Shared memory counts as
allocated. The counters are exact to some tens of pages a core.
"""

from __future__ import annotations

import platform
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_MARK = "5"


@dataclass(frozen=True)
class Resident:
    """Resident bytes of this process now, and the high-water mark of their sum; parts are None off Linux."""

    peak_bytes: int
    source: str
    file_bytes: int | None = None
    own_bytes: int | None = None


def read() -> Resident:
    """Reads the counters: `/proc/self/status` where there is one, else `getrusage`, which knows the sum alone."""
    fields = _status()
    if "VmHWM" in fields and "RssFile" in fields:
        own = fields["RssAnon"] + fields["RssShmem"]
        return Resident(fields["VmHWM"], "VmHWM", fields["RssFile"], own)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Resident(peak if platform.system() == "Darwin" else peak * 1024, "getrusage ru_maxrss")


def _status() -> dict[str, int]:
    """The lines of `/proc/self/status` that are sizes, in bytes."""
    if sys.platform != "linux":
        return {}
    try:
        words = [line.split() for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines()]
    except OSError:
        return {}
    return {word[0].rstrip(":"): int(word[1]) * 1024 for word in words if len(word) == 3 and word[2] == "kB"}


def reset_peak() -> bool:
    """Sets the high-water mark to what is resident now; False where the kernel does not allow it."""
    try:
        CLEAR_REFS.write_text(RESET_MARK, encoding="ascii")
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Split:
    """A peak and the bounds of its allocated part; `own` is None where the parts are unknown."""

    peak_bytes: int
    file_bytes: int | None
    own: tuple[int, int] | None


def split(before: Resident, after: Resident, *, was_reset: bool) -> Split:
    """Gives the peak between two readings and the bounds of its allocated part.

    The bounds hold only if the mark was reset at the first reading and no mapped page was evicted in between.
    """
    if before.file_bytes is None or after.file_bytes is None or after.own_bytes is None:
        return Split(after.peak_bytes, None, None)
    mapped = max(before.file_bytes, after.file_bytes)
    if not was_reset or after.file_bytes < before.file_bytes:
        return Split(after.peak_bytes, mapped, None)
    low = max(after.peak_bytes - after.file_bytes, after.own_bytes)
    return Split(after.peak_bytes, mapped, (low, max(low, after.peak_bytes - before.file_bytes)))
