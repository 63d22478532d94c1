"""How a quantizer that packs hands over its model: probe, write, prove, reload.

Whatever library packed the weights, the folder it writes is held against the same three questions before the stage
ends. What do the tensors really hold (`coverage`)? Are the embedding and the head those that came in? And does a fresh
process compute from the files what the model in memory computed (`reloading`)? A stage that packs needs no more than:

    write_packed(model, out, lambda: library.save(model, out), source=source, context=context)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ModelError
from harness.interfaces import Artifact, StageContext

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.stages.quantize.proof.architecture import Architecture
    from harness.stages.quantize.proof.coverage import Coverage


def write_packed(
    model: PreTrainedModel, out: Path, save: Callable[[], object], *, source: Artifact, context: StageContext
) -> None:
    """Saves a quantized model into `out` by `save`, with the companions of `source`, and proves what was written.

    Raises ModelError when nothing was packed, when it is not what the configuration says, when embedding or head
    changed, or when the files do not give the model that was in memory.
    """
    from harness.stages.hf_folder import copy_companions
    from harness.stages.quantize.proof.architecture import read_architecture
    from harness.stages.quantize.proof.coverage import prove, report_coverage
    from harness.stages.quantize.proof.reloading import probe, require_reload

    context.progress(None, "write and prove")
    seen = probe(model)
    save()
    copy_companions(source.path, out)
    architecture = read_architecture(source.path)
    coverage = prove(out, architecture)
    require_ends_kept(source.path, out, architecture, coverage=coverage)
    report_coverage(out, coverage, report=context.report)
    context.report.notes["reload_difference"] = require_reload(out, seen, context=context)


def require_ends_kept(source: Path, out: Path, architecture: Architecture, *, coverage: Coverage) -> None:
    """Raises ModelError when the embedding or the head is neither packed nor what it was, in the type it has now."""
    import torch

    packed = {fact.module for fact in coverage.quantized}
    for module in (architecture.embedding, architecture.head):
        name = f"{module}.weight"
        before, after = _stored(source, name), _stored(out, name)
        if module in packed or before is None:
            continue
        if after is None and not (architecture.tied and module == architecture.head):
            raise ModelError(f"{name} is not in the files that were written")
        if after is not None and not torch.equal(before.to(after.dtype), after):
            raise ModelError(f"{name} was to stay as it is, and other numbers were written")


def _stored(folder: Path, name: str) -> Tensor | None:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                return opened.get_tensor(name)
    return None
