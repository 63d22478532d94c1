"""Quantizers that run through llm-compressor: from a recipe to a packed folder.

A stage says which modifiers do the work and in which scheme; the rest is the same for all: choose layers, read or draw
calibration text, run the driver, and hand the model over to be written and proved. The folder has the layout of
compressed-tensors. A warning of the library that means another result than the one asked for fails the stage; the
others go into the notes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.errors import ModelError
from harness.interfaces import Artifact, StageContext
from harness.stages.one_shot import Warned
from harness.stages.quantize.recipe import Assignment, QuantizationRecipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks

ANOTHER_RESULT = ("Hessian inversion failed", "NaN or inf outputs found")
"""What the library says when it did something else than the method: plain rounding, or no scaling."""
METHODS = "llmcompressor.modifiers"
"""Where warnings are about the method; elsewhere they are about threads and devices."""
PASSES = 2  # over every block: one to see what arrives, one to feed the next layer

REQUIREMENTS: tuple[str, ...] = ("llmcompressor", "compressed_tensors", "torch", "transformers", "safetensors")
EXTRA = "llm-compressor"


class OneShot(Protocol):
    """What such a stage has beside its recipe."""

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's modifiers for groups of layers (`config_groups`) and layers to leave alone."""


def quantize_one_shot(
    stage: OneShot,
    source: Artifact,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    context: StageContext,
) -> None:
    """Quantizes the model in `source`, loaded in `dtype` (None: as stored), into the empty folder `out`, and proves it.

    Raises ModelError when the library fell back to something else, and what `write_packed` raises.
    """
    from harness.stages.hf_folder import reproducible
    from harness.stages.quantize.proof.packing import write_packed

    with reproducible(context):
        model, _ = calibrate_one_shot(stage, source, dtype=dtype, context=context)
        write_packed(model, out, lambda: _save(model, out), source=source, context=context)


def calibrate_one_shot(
    stage: OneShot, source: Artifact, *, dtype: torch.dtype | None = None, context: StageContext
) -> tuple[PreTrainedModel, Assignment]:
    """Gives the model in `source` as llm-compressor leaves it in memory, with scales beside its weights, not packed.

    To be called inside `reproducible`. Raises ModelError when the library fell back to something else.
    """
    from harness.stages.hf_folder import load_model, require_unpacked, stored_dtype
    from harness.stages.one_shot import require_device
    from harness.stages.quantize.calibration import blocks_to_watch
    from harness.stages.quantize.proof.architecture import read_architecture
    from harness.stages.quantize.recipe import assign

    assert isinstance(stage, QuantizationRecipe)
    require_unpacked(source)
    require_device(context.hardware.device)
    assignment = assign(stage, read_architecture(source.path))
    stored = stored_dtype(source.path)
    model = load_model(source, dtype=dtype or stored, hardware=context.hardware)
    if dtype not in (None, stored):
        context.report.labels.append(f"rounded from {_short(stored)} to {_short(dtype)} before quantizing")
    blocks_NT = blocks_to_watch(stage, source, model, context=context)
    warned = _run(model, stage.modifiers(*groups_of(assignment)), (source, blocks_NT), assignment, context=context)
    _note(warned, context=context)
    return model, assignment


def _save(model: Any, out: Path) -> None:
    with warnings.catch_warnings():
        # The library's device map names the CPU, which transformers takes for weights that were moved off a GPU.
        warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
        model.save_pretrained(out, save_compressed=True)


def groups_of(assignment: Assignment) -> tuple[dict[str, Any], list[str]]:
    """Gives llm-compressor's `config_groups` and `ignore`: the first group is all linear layers, the others by name."""
    from compressed_tensors.quantization import QuantizationScheme

    groups = {}
    for number, (scheme, names) in enumerate(assignment.schemes):
        groups[f"group_{number}"] = QuantizationScheme(targets=["Linear"] if number == 0 else list(names), **scheme)
    return groups, list(assignment.kept)


def _run(
    model: PreTrainedModel,
    modifiers: list[Any],
    read: tuple[Artifact, Blocks | None],
    assignment: Assignment,
    *,
    context: StageContext,
) -> list[Warned]:
    from harness.stages.hf_folder import load_tokenizer
    from harness.stages.one_shot import run_one_shot, watching

    source, blocks_NT = read
    layers = assignment.layers
    calls = PASSES * len(layers) * (1 if blocks_NT is None else len(blocks_NT))
    with watching(model, layers, calls=calls, context=context), _memory_pinned_where_it_can_be():
        return run_one_shot(model, modifiers, tokenizer=load_tokenizer(source), blocks_NT=blocks_NT)


@contextmanager
def _memory_pinned_where_it_can_be() -> Iterator[None]:
    """Keeps AWQ from pinning memory for an accelerator that is not there, which torch answers with an error."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    cache: Any = IntermediatesCache
    pin = cache.pin_memory
    if not torch.accelerator.is_available():
        cache.pin_memory = lambda *_, **__: None
    try:
        yield
    finally:
        cache.pin_memory = pin


def _note(warned: Sequence[Warned], *, context: StageContext) -> None:
    failed = [one.message for one in warned if any(words in one.message for words in ANOTHER_RESULT)]
    if failed:
        raise ModelError(f"llm-compressor did not do what it was asked to: {failed[0]}")
    said = {one.message for one in warned if one.module.startswith(METHODS)}
    if said:
        context.report.notes["warnings"] = [*sorted(said)]


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
