"""Quantizers that run through GPTQModel: from a recipe to a folder in the layout of AutoGPTQ or AutoAWQ.

GPTQModel loads the model itself, goes through the decoder layer by layer, and packs every layer into a module of its
own. It is fed our token ids here, and it is not trusted with its own packing: the weights that it computed are taken
from it before it packs them, and every layer that is read back from the files has to give what those weights give.
Layer by layer, because in 16 bits the roundings of a kernel add up: on a real model, logits differ by several percent
of their spread between two correct ways of multiplying. The model that was checked so is the one that a fresh process
then has to agree with.

What the library says goes to the logger `gptqmodel`. Where it says that it did something else than the method (plain
rounding, a Hessian with a floor), the stage fails. What it sets in the environment is put back afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.recipe import Assignment, QuantizationRecipe

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks

REQUIREMENTS: tuple[str, ...] = ("gptqmodel", "optimum", "torch", "transformers", "safetensors")
EXTRA = "quantizers"
LAYER_TOLERANCE = 1e-2
"""A few roundings to bfloat16 (2^-9 each) of scale, weight and output; an 8-bit code that is off by one is 2.4e-2."""
INPUTS = 16
"""Random inputs that a layer is compared on."""
SHORTEST = 11
"""Tokens in a calibration block; GPTQModel drops shorter ones."""
PACKED_AT_ONCE = 32
"""Columns whose codes are packed together."""
SURROUNDINGS = {
    "GPTQMODEL_CPU_WORKERS": "2",  # on two cores its own choice is one, with which quantizing crashes
    "GPTQMODEL_OFFLINE": "1",
    "GPTQMODEL_DISABLE_PACK_EXT": "1",  # else it compiles an extension for packing, into a cache of its own
}
ANOTHER_RESULT = re.compile(r"diagonal floor|fallback|fail safe|mock quantization|non-finite|Cholesky failed", re.I)
"""What GPTQModel says when it did something else than the method."""
ABOUT_WEIGHTS = re.compile(r"Quantization|AWQProcessor")
"""How a warning about a weight starts; others are about disks, threads and the number of texts."""
LOGGER = "gptqmodel"


class Carried(Protocol):
    """What a stage that GPTQModel carries out has beside its recipe.

    `backend` names the module that packs; a layer's rows must be a multiple of `rows_at_once`.
    """

    backend: ClassVar[str]
    rows_at_once: ClassVar[int]

    def config(self, assignment: Assignment, device: str) -> Any:
        """Gives GPTQModel's configuration for quantizing these layers on a device."""

    def declaration(self, assignment: Assignment) -> Mapping[str, Any]:
        """Gives what `quantization_config` must say beside, so that transformers leaves the kept layers alone."""

    def check(self, layer: str, zeros: Tensor) -> None:
        """Raises Unsupported when the layout cannot hold a layer's zero points."""


@dataclass(frozen=True)
class Quantized:
    """GPTQModel's model after quantizing, and by layer what each weight was rounded to before it was packed."""

    library: Any
    weights: Mapping[str, Tensor]


def quantize_gptqmodel(stage: Carried, source: Artifact, out: Path, *, context: StageContext) -> None:
    """Quantizes the model in `source`, rounded to bfloat16, into the empty folder `out`, and proves it.

    Raises Unsupported for what transformers would not read back, ModelError when GPTQModel did something else than it
    was asked to or the files are not what it computed, and what `write_packed` raises.
    """
    from harness.runtimes._hf_load import load_model
    from harness.stages.hf_folder import reproducible, require_unpacked
    from harness.stages.quantize.proof.architecture import read_architecture
    from harness.stages.quantize.proof.packing import write_packed
    from harness.stages.quantize.recipe import assign

    assert isinstance(stage, QuantizationRecipe)
    require_unpacked(source)
    architecture = read_architecture(source.path)
    assignment = assign(stage, architecture)
    require_room(assignment, architecture, rows_at_once=stage.rows_at_once)
    with reproducible(context):
        blocks_NT, attention = _look(stage, source, context=context)
        # It keeps a log in the current folder.
        with _surroundings(), chdir(context.scratch):
            made = _run(stage, source, blocks_NT, assignment, context=context)
        _save(made.library, out, source, stage.declaration(assignment))
        model = load_model(out, dtype="bfloat16", attention=attention, hardware=context.hardware)
        context.report.notes["largest_layer_difference"] = require_layers(model, made)
        # What `write_packed` would save lies there already: the model that it asks was read from it.
        write_packed(model, out, lambda: None, source=source, context=context)


def require_layers(model: PreTrainedModel, made: Quantized) -> float:
    """Gives the largest difference between a layer that was read back and what GPTQModel had in memory.

    The difference is that of outputs for random inputs, over those outputs, each as root mean square. Raises ModelError
    when it is over LAYER_TOLERANCE, or when anything that is not packed changed.
    """
    import torch

    kept: dict[str, Tensor] = made.library.model.state_dict()
    for name, parameter in model.named_parameters():
        if not torch.equal(parameter.cpu(), kept[name].cpu()):
            raise ModelError(f"{name} is not in the files as it was in memory")
    worst = 0.0
    for layer, weight_RC in made.weights.items():
        bias = kept.get(f"{layer}.bias")
        inputs_NC = torch.randn(INPUTS, weight_RC.shape[1], dtype=torch.bfloat16)
        expected_NR = torch.nn.functional.linear(
            inputs_NC.float(), weight_RC.float(), None if bias is None else bias.float()
        )
        with torch.inference_mode():
            found_NR = model.get_submodule(layer)(inputs_NC.to(model.device)).float().cpu()
        difference = float((found_NR - expected_NR).norm() / expected_NR.norm())
        if not difference <= LAYER_TOLERANCE:
            raise ModelError(
                f"{layer}, read back from the files, is off by {difference:.3g} of its output from the weights that "
                f"GPTQModel computed, and {LAYER_TOLERANCE:.3g} is allowed"
            )
        worst = max(worst, difference)
    return worst


def require_room(assignment: Assignment, architecture: Architecture, *, rows_at_once: int) -> None:
    """Raises Unsupported for layers that the layouts, or transformers' readers of them, have no place for."""
    if architecture.head in assignment.layers:
        raise Unsupported(
            f"transformers does not read back a packed {architecture.head} in this layout",
            remedy=f"leave it as it is: `ignore: [{architecture.head}]`",
        )
    for layer in assignment.layers:
        rows, columns = architecture.linears[layer]
        if rows % rows_at_once or columns % PACKED_AT_ONCE:
            raise Unsupported(
                f"{layer} is {rows} x {columns}, and GPTQModel takes {rows_at_once} rows and {PACKED_AT_ONCE} columns "
                "at a time",
                remedy=f"keep it: `overrides: {{{layer}: keep}}`",
            )


def exactly(layer: str) -> str:
    """Gives the pattern by which GPTQModel's `dynamic` addresses one layer and no other."""
    return f"^{re.escape(layer)}$"


def _look(stage: QuantizationRecipe, source: Artifact, *, context: StageContext) -> tuple[Blocks, str]:
    """Gives the calibration blocks (N, T) and the attention that the model computes with."""
    import torch

    from harness.stages.hf_folder import load_model, stored_dtype
    from harness.stages.quantize.calibration import blocks_to_watch

    model = load_model(source, dtype=torch.bfloat16, hardware=context.hardware)
    if (stored := stored_dtype(source.path)) != torch.bfloat16:
        context.report.labels.append(f"rounded from {str(stored).removeprefix('torch.')} to bfloat16 to quantize")
    blocks_NT = blocks_to_watch(stage, source, model, context=context)
    assert blocks_NT is not None
    config: Any = model.config
    return blocks_NT, str(config._attn_implementation)


def _run(
    stage: Carried, source: Artifact, blocks_NT: Blocks, assignment: Assignment, *, context: StageContext
) -> Quantized:
    import torch
    from gptqmodel import BACKEND, GPTQModel

    config = stage.config(assignment, context.hardware.device)
    weights: dict[str, Tensor] = {}
    with _listening() as said, _before_packing(stage, weights, total=len(assignment.layers), context=context):
        # Not `load`, which takes any folder with a stray quantize_config.json for a quantized one.
        library: Any = GPTQModel.from_pretrained(str(source.path), config, dtype=torch.bfloat16)
        rows = [{"input_ids": block_T.tolist()} for block_T in blocks_NT]
        library.quantize(rows, calibration_sort=None, batch_size=1, backend=BACKEND(stage.backend))
    _note(said, context=context)
    if odd := set(weights) ^ set(assignment.layers):
        raise ModelError(
            f"GPTQModel quantized {len(weights)} layers and was asked for {len(assignment.layers)}; one of those that "
            f"differ is {min(odd)}"
        )
    return Quantized(library, weights)


@contextmanager
def _before_packing(stage: Carried, weights: dict[str, Tensor], *, total: int, context: StageContext) -> Iterator[None]:
    """Collects what each layer's weight was rounded to at the moment when GPTQModel packs it, and reports progress."""
    from gptqmodel.looper import awq_processor, gptq_processor

    pack: Any = gptq_processor.pack_module
    failed: list[Unsupported] = []

    def watch(*, name: str, layers: Mapping[str, Any], q_zeros: Tensor, **others: Any) -> Any:
        # Worker threads pack. An exception there would be the library's to handle, so it waits.
        try:
            stage.check(name, q_zeros)
        except Unsupported as error:
            failed.append(error)
        weights[name] = layers[name].weight.detach().clone()
        context.progress(len(weights) / total, f"pack {name}")
        return pack(name=name, layers=layers, q_zeros=q_zeros, **others)

    places: tuple[Any, ...] = (gptq_processor, awq_processor)
    for place in places:
        place.pack_module = watch
    try:
        yield
    finally:
        for place in places:
            place.pack_module = pack
    if failed:
        raise failed[0]


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Sends what GPTQModel prints to a logger instead, and gives the warnings."""
    from logbar import LogBar

    shared: Any = LogBar.shared()
    said: list[str] = []

    def hear(level: Any, message: Any, *args: Any, **_: Any) -> None:
        number, text = shared._normalize_level(level), shared._format_message(message, args)
        logging.getLogger(LOGGER).log(number, "%s", text)
        if number >= logging.WARNING:
            said.append(text)

    shared._process = hear
    try:
        yield said
    finally:
        del shared._process


def _note(said: Sequence[str], *, context: StageContext) -> None:
    failed = [text for text in said if ANOTHER_RESULT.search(text)]
    if failed:
        raise ModelError(
            f"GPTQModel did not do what it was asked to; more tokens or damping may help. It said: {failed[0]}"
        )
    if about := sorted({text for text in said if ABOUT_WEIGHTS.match(text)}):
        context.report.notes["warnings"] = [*about]


def _save(library: Any, out: Path, source: Artifact, beside: Mapping[str, Any]) -> None:
    """Writes the packed weights with the source's configuration, to which only what was quantized is added."""
    library.tokenizer = None  # the source's own files are copied instead
    library.quant_log = []  # else a table with the times that each layer took, different in every run
    with _listening():
        library.save(str(out))
    (out / "generation_config.json").unlink(missing_ok=True)  # it would say `do_sample` where the source says nothing
    file = out / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    config = json.loads((source.path / file.name).read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # an older name of `dtype`
    config |= {"dtype": written["dtype"], "quantization_config": {**written["quantization_config"], **beside}}
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _surroundings() -> Iterator[None]:
    """Sets GPTQModel's environment inside, and puts back whatever it, or its import, changed."""
    before = dict(os.environ)
    os.environ.update(SURROUNDINGS)
    try:
        yield
    finally:
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)
