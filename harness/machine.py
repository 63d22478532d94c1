"""A fingerprint of the machine, cheap enough to be taken before and after every measurement.

Two speeds compare only where the machine was the same, so a record carries what the machine is and what state it was
in. `hard` facts must be equal for a comparison of speed or memory; `soft` facts change from minute to minute and
explain outliers: load, clocks, throttling, time stolen by a hypervisor, limits of the container. Everything is read
from files and from the Python standard library; nothing heavy is imported, and a fact that cannot be read is absent.

    {"hard": {...}, "soft": {...}, "libraries": {"torch": "2.8.0", ...}, "harness": {"version", "commit", "dirty"}}
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path

from pydantic import JsonValue

from harness import __version__

Facts = dict[str, JsonValue]

LIBRARIES = ("accelerate", "gguf", "llama-cpp-python", "lm-eval", "numpy", "torch", "transformers", "vllm")
CPU_FLAGS = ("amx_bf16", "amx_int8", "asimddp", "avx2", "avx512_bf16", "avx512_vnni", "avx512f", "fma", "i8mm", "sve")
"""Instruction sets that change which kernel an engine chooses."""
COMMAND_TIMEOUT_S = 2.0
PROC, SYS = Path("/proc"), Path("/sys")


def fingerprint() -> Facts:
    """Gives the machine's facts; takes milliseconds, and longer only where a GPU's own tool is asked."""
    gpus = _gpus()
    return {
        "hard": _known({**_cpu(), **_system(), **_fixed(gpus)}),
        "soft": _known({**_load(), **_clocks(), **_limits(), **_moving(gpus)}),
        "libraries": _libraries(),
        "harness": _known({"version": __version__, **_checkout()}),
    }


def differences(a: Mapping[str, JsonValue], b: Mapping[str, JsonValue]) -> list[str]:
    """Names the hard facts that differ between two fingerprints; an empty list means that speeds compare."""
    ours, theirs = _hard(a), _hard(b)
    keys = sorted(ours.keys() | theirs.keys())
    return [f"{key}: {ours.get(key)!r} and {theirs.get(key)!r}" for key in keys if ours.get(key) != theirs.get(key)]


def _hard(facts: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    hard = facts.get("hard")
    return hard if isinstance(hard, dict) else {}


def _known(facts: Mapping[str, JsonValue]) -> Facts:
    return {key: value for key, value in facts.items() if value is not None}


def _text(path: Path) -> str | None:
    """Gives a small file's text without the final newline, or None where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _command(*words: str) -> str | None:
    """Gives what a program printed, or None where it is absent, slow or fails."""
    program = shutil.which(words[0])
    if program is None:
        return None
    try:
        done = subprocess.run([program, *words[1:]], capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _fields(lines: Iterable[str]) -> dict[str, str]:
    """Reads `key : value` lines up to the first empty one."""
    found: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if not line.strip():
            break
        if colon:
            found[key.strip()] = value.strip()
    return found


def _cpu() -> Facts:
    if platform.system() == "Darwin":
        return {"cpu_model": _command("sysctl", "-n", "machdep.cpu.brand_string"), "cpu_threads": os.cpu_count()}
    try:
        # Only the first processor: the kernel writes this file as it is read, and asks every core for its clock.
        with (PROC / "cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            first = _fields(lines)
    except OSError:
        first = {}
    flags = set(first.get("flags", first.get("Features", "")).split())
    return {
        "cpu_model": first.get("model name") or platform.processor() or None,
        "cpu_family": " ".join(first[key] for key in ("cpu family", "model", "stepping") if key in first) or None,
        "cpu_threads": os.cpu_count(),
        "cpu_cores_per_socket": first.get("cpu cores"),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
    }


def _system() -> Facts:
    return {
        "architecture": platform.machine(),
        "memory_gib": _memory_gib(),
        "os": platform.system(),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "python_implementation": platform.python_implementation(),
    }


def _memory_gib() -> float | None:
    """Rounded, since what the kernel keeps for itself differs by megabytes between two boots."""
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _load() -> Facts:
    meminfo = _fields((_text(PROC / "meminfo") or "").splitlines())
    available = meminfo.get("MemAvailable", "").removesuffix(" kB")
    return {
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "memory_available_bytes": int(available) * 1024 if available.isdigit() else None,
        "steal_ticks": _steal_ticks(_text(PROC / "stat")),
        "pressure_cpu": _text(PROC / "pressure" / "cpu"),
        "pressure_memory": _text(PROC / "pressure" / "memory"),
        "usable_cpus": _usable_cpus(),
    }


def _usable_cpus() -> int | None:
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return None if affinity is None else len(affinity(0))


def _steal_ticks(stat: str | None) -> int | None:
    """The eighth number of the `cpu` line: clock ticks in which the hypervisor ran somebody else."""
    words = (stat or "").splitlines()[:1]
    numbers = words[0].split()[1:] if words else []
    return int(numbers[7]) if len(numbers) > 7 else None


def _clocks() -> Facts:
    cpu, scaling = SYS / "devices/system/cpu", SYS / "devices/system/cpu/cpu0/cpufreq"
    zones = sorted((SYS / "class/thermal").glob("thermal_zone*"))
    temperatures = [_number(zone / "temp", scale=1e-3) for zone in zones[:8]]
    return {
        "governor": _text(scaling / "scaling_governor"),
        "frequency_mhz": _number(scaling / "scaling_cur_freq", scale=1e-3),
        "frequency_max_mhz": _number(scaling / "scaling_max_freq", scale=1e-3),
        "turbo_disabled": _text(cpu / "intel_pstate/no_turbo"),
        "boost": _text(cpu / "cpufreq/boost"),
        "smt": _text(cpu / "smt/active"),
        "throttle_count": _number(cpu / "cpu0/thermal_throttle/core_throttle_count"),
        "temperatures_c": [value for value in temperatures if value is not None] or None,
        "transparent_hugepages": _text(SYS / "kernel/mm/transparent_hugepage/enabled"),
        "aslr": _text(PROC / "sys/kernel/randomize_va_space"),
    }


def _number(path: Path, *, scale: float = 1.0) -> float | None:
    text = _text(path)
    try:
        return None if text is None else round(float(text) * scale, 3)
    except ValueError:
        return None


def _limits() -> Facts:
    """What the container allows: cgroup version 2, else version 1."""
    group = SYS / "fs/cgroup"
    quota = _text(group / "cpu/cpu.cfs_quota_us")
    return {
        "cgroup_cpu": _text(group / "cpu.max") or quota,
        "cgroup_memory": _text(group / "memory.max") or _text(group / "memory/memory.limit_in_bytes"),
        "cgroup_cpu_stat": _text(group / "cpu.stat") or _text(group / "cpu/cpu.stat"),
    }


GPU_FIXED = ("name", "driver_version", "memory.total")
GPU_MOVING = ("temperature.gpu", "clocks.sm", "clocks.max.sm", "power.limit", "utilization.gpu", "memory.used")


def _gpus() -> list[dict[str, str]]:
    names = GPU_FIXED + GPU_MOVING
    printed = _command("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in (printed or "").splitlines()]
    return [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]


def _fixed(gpus: list[dict[str, str]]) -> Facts:
    return {"accelerators": [", ".join(gpu[name] for name in GPU_FIXED) for gpu in gpus]}


def _moving(gpus: list[dict[str, str]]) -> Facts:
    return {"accelerators": [{name: gpu[name] for name in GPU_MOVING} for gpu in gpus] or None}


def _libraries() -> Facts:
    """Versions from installed metadata; nothing is imported."""
    found: Facts = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _checkout() -> Facts:
    """The commit this code comes from and whether it was changed since; nothing when it was installed from a wheel."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return {}
    commit = _command("git", "-C", str(root), "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _command("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}
