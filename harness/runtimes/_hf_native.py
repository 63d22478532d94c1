"""Packed folders that transformers cannot read, and which quantizer's library reads which.

A quantizer is added by one line in `READERS`. Its reader imports its library when it is called, not before, and ends in
`_hf_native_model.fill`, so that a folder is refused for the same reasons as with transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel

from harness.errors import CorruptArtifact, Unsupported
from harness.runtimes._hf_hqq import read_hqq
from harness.runtimes._hf_native_model import CONFIG, Folder
from harness.runtimes._hf_quanto import read_quanto
from harness.runtimes._hf_torchao import METHOD, read_int4_cpu

Reader = Callable[[Folder], PreTrainedModel]
"""Gives a model, on the host, that passed `fill`. Raises CorruptArtifact or Unsupported."""

READERS: Mapping[str, Reader] = {"hqq": read_hqq, "quanto": read_quanto, METHOD: read_int4_cpu}
"""Readers by `quant_method`."""


def read_native(path: Path, *, dtype: str, attention: str) -> PreTrainedModel | None:
    """Gives the model of a folder whose `quant_method` has a reader here, on the host; None for every other folder.

    Raises CorruptArtifact when files and configuration do not fit, Unsupported when the quantizer's library is missing.
    """
    try:
        said = json.loads((path / "config.json").read_text(encoding="utf-8")).get(CONFIG) or {}
    except (OSError, ValueError):
        return None  # transformers says better what is wrong with such a folder
    reader = READERS.get(str(said.get("quant_method")))
    if reader is None:
        return None
    try:
        return reader(Folder(path, said, dtype, attention))
    except (OSError, SafetensorError, KeyError) as error:
        raise CorruptArtifact(f"{path.name} is not a complete model directory: {error!r}") from error
    except ImportError as error:
        raise Unsupported(f"a package this checkpoint needs is missing: {error}", remedy="install it") from error
