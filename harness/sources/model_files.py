"""Which files make up a model, and how they are put into an artifact.

Weights are read from safetensors or GGUF. Pickles (`pytorch_model.bin`, `*.pt`) can run code when they are loaded, and
so can Python files beside a model, so neither is ever taken.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from harness.errors import SourceError

MODEL_FILES: Final = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SAFE: Final = "load it where you trust it and save it again with `save_pretrained(folder, safe_serialization=True)`"


def format_of(files: Iterable[str], *, origin: str) -> str:
    """Gives `hf` or `gguf` for the names of the files at the top of a model's folder; raises SourceError for others."""
    names = sorted(files)
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        return "hf"
    packed = [name for name in names if name.endswith(".gguf")]
    if len(packed) == 1:
        return "gguf"
    if len(packed) > 1:
        raise SourceError(f"{origin} holds several GGUF files", found=packed, remedy="name the one that is meant")
    if pickles := [name for name in names if any(fnmatchcase(name, pattern) for pattern in PICKLES)]:
        raise SourceError(f"{origin} holds its weights as pickles, which can run code", found=pickles, remedy=_SAFE)
    raise SourceError(
        f"{origin} is not a model",
        found=names[:10],
        allowed=["config.json with *.safetensors", "one *.gguf"],
        remedy="name what `save_pretrained` wrote, or a GGUF file; pickled weights (*.bin) are never taken",
    )


def is_wanted(name: str) -> bool:
    """Tells whether a file at the top of a Hugging Face directory belongs to the model."""
    return any(fnmatchcase(name, pattern) for pattern in MODEL_FILES)


def link_or_copy(file: Path, target: Path) -> None:
    """Puts `file` at `target` as a hard link, which costs no space, or as a copy where the two are on other disks."""
    real = file.resolve()
    try:
        os.link(real, target)
    except OSError:
        shutil.copyfile(real, target)
