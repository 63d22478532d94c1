"""Logs in the form of Inspect 0.3.285, made by hand: the keys are those that it writes, less those nobody reads."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def header(**changed: Any) -> dict[str, Any]:
    """A log without samples: one task, two scorers, two epochs."""
    scores = [
        {"name": name, "scorer": name, "params": {}, "metrics": {"accuracy": {"name": "accuracy", "value": 0.5}}}
        for name in ("match", "includes")
    ]
    spec = {
        "eval_id": "e",
        "created": "2026-01-02T03:04:05+00:00",
        "task": "capitals",
        "task_version": 2,
        "task_args": {"region": "all"},
        "model": "hf/org/name",
        "model_args": {"device": "cuda:0"},
        "model_generate_config": {"temperature": 0.0, "max_connections": 4},
        "config": {"epochs": 2, "limit": 3},
        "dataset": {"samples": 2, "sample_ids": ["fr", 2]},
        "packages": {"inspect_ai": "0.3.285"},
    }
    made = {
        "version": 2,
        "status": "success",
        "eval": spec | changed.pop("eval", {}),
        "plan": {"name": "plan", "steps": [{"solver": "generate", "params": {}, "params_passed": {}}]},
        "results": {"scores": scores, "headline": {"scorer": "match", "score": "match", "metric": "accuracy"}},
    }
    return made | changed


def sample(name: str | int, epoch: int, *values: object, stop: str = "stop", **changed: Any) -> dict[str, Any]:
    """A sample with one value for each of the two scorers."""
    scores = {
        scorer: {"value": value, "answer": "x", "history": []}
        for scorer, value in zip(("match", "includes"), values, strict=False)
    }
    made = {
        "id": name,
        "epoch": epoch,
        "input": f"Capital of {name}?",
        "target": "x",
        "messages": [
            {"id": f"{name}-{epoch}", "role": "user", "content": f"Capital of {name}?", "source": "input"},
            {"id": "a", "role": "assistant", "content": "x"},
        ],
        "output": {"model": "m", "choices": [{"message": {}, "stop_reason": stop}], "completion": "x"},
        "scores": scores,
    }
    return made | changed


def archive(
    file: Path,
    head: Mapping[str, Any] | None,
    samples: Sequence[Mapping[str, Any]],
    *,
    method: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """Writes a `.eval`: a zip archive of one JSON file a sample and the header."""
    with zipfile.ZipFile(file, "w", method) as opened:
        for one in samples:
            opened.writestr(f"samples/{one['id']}_epoch_{one['epoch']}.json", json.dumps(one))
        if head is not None:
            opened.writestr("header.json", json.dumps(head))
    return file


def zstandard_archive(file: Path, members: Mapping[str, bytes], *, damage: bool = False) -> Path:
    """Writes a zip archive packed with Zstandard (method 93) byte by byte, which Python 3.11 cannot write."""
    import pyarrow as pa

    body, directory = b"", b""
    for name, content in members.items():
        packed = pa.compress(content, codec="zstd", asbytes=True)
        checksum = zlib.crc32(content) ^ (1 if damage else 0)
        shared = struct.pack("<HHHHHIIIHH", 63, 0, 93, 0, 0, checksum, len(packed), len(content), len(name), 0)
        directory += b"PK\x01\x02" + struct.pack("<H", 63) + shared + struct.pack("<HHHII", 0, 0, 0, 0, len(body))
        directory += name.encode()
        body += b"PK\x03\x04" + shared + name.encode() + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(directory), len(body), 0)
    file.write_bytes(body + directory + b"PK\x05\x06" + end)
    return file
