"""Quantizers that run through Intel's AutoRound: from a recipe to a packed folder.

AutoRound takes one decoder layer after another and learns, by signed gradient descent on the layer's output, whether
each weight goes up or down and by how much each group's range is clipped. A stage says in which precision; the rest is
the same for all: choose layers, give the library our calibration text under a name instead of the data set it would
download, run it, and have what it wrote proved.

The library is told to leave alone what outlives a call: it seeds three random generators, switches torch to
deterministic algorithms, changes how tensors print, keeps scores of models in the home directory under the last part of
their path, and copies tensors from the source. All of that is put back or sent to a folder of the build.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import logging
import os
import random
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.recipe import Assignment, QuantizationRecipe, Scheme

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.sources.corpus import Blocks

REQUIREMENTS: tuple[str, ...] = ("auto_round", "torch", "transformers", "safetensors")
EXTRA: Final = "quantizers"
EXPORTS: Final[Mapping[str, str]] = {"autoround": "auto_round", "gptq": "auto_gptq", "awq": "auto_awq"}
"""Layouts by the name that the library has for them."""
READERS: Final[Mapping[str, tuple[str, ...]]] = {"gptq": ("gptqmodel", "optimum"), "awq": ("gptqmodel",)}
"""Modules beside the library's own with which transformers opens a layout."""
CALIBRATION: Final = "harness-calibration"
"""The name under which the library asks for our text."""
MULTIPLE: Final = 32
"""Rows and columns that the library packs; it leaves other layers alone without an error."""
WHOLE_ROW: Final = -1
AWQ_BITS: Final = 4
PLAIN: Final = 16
LEFT_ALONE: Final = {"bits": PLAIN, "act_bits": 16, "data_type": "float", "act_data_type": "float"}


@dataclass(frozen=True, kw_only=True)
class AutoRoundRecipe(QuantizationRecipe):
    """Arguments of every stage that rounds by AutoRound.

    `iters` steps are taken for each decoder layer, at `lr` (null: 1 / iters) falling to 0, on `batch` blocks each.
    """

    group: int | None = 128
    symmetric: bool = True
    iters: int = 200
    lr: float | None = None
    batch: int = 8

    def problems(self) -> list[str]:
        """Gives what is wrong with the shared arguments, one sentence each."""
        found = super().problems()
        if self.group is not None and self.group < 1:
            found.append(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        if self.iters < 0:
            found.append(f"iters is {self.iters!r}; allowed: a number from 0, which is plain rounding")
        if self.lr is not None and not 0 < self.lr <= 1:
            found.append(f"lr is {self.lr!r}; allowed: between 0 and 1, or null for 1 / iters")
        if self.batch < 1:
            found.append(f"batch is {self.batch!r}; allowed: a number of blocks from 1")
        return found

    def allowed(self, bits: int) -> tuple[int, ...]:
        """Gives the bits that a layer may come out with that was asked for in `bits`."""
        return (bits,)

    @abstractmethod
    def precision(self, blocks_NT: Blocks | None) -> Any:
        """Gives the library's scheme, or its AutoScheme, which reads the blocks (N, T)."""


@dataclass(frozen=True)
class _Subject:
    """What is rounded: the model, its tokenizer, the text (N, T), layers that differ, and the type it came in."""

    model: Any
    tokenizer: Any
    blocks_NT: Blocks | None
    layers: dict[str, dict[str, Any]]
    stored: torch.dtype


def quantize_auto_round(
    stage: AutoRoundRecipe, source: Artifact, out: Path, *, layout: str = "autoround", context: StageContext
) -> dict[str, int]:
    """Quantizes the model in `source` into the empty folder `out`, proves it, and gives the bits of every layer.

    Raises Unsupported for layers that the layout cannot hold, ModelError when the library quantized others than asked
    for, and what `write_packed` raises.
    """
    import torch

    from harness.stages.hf_folder import load_model, load_tokenizer, reproducible, require_unpacked, stored_dtype
    from harness.stages.quantize.calibration import blocks_to_watch
    from harness.stages.quantize.proof.architecture import read_architecture
    from harness.stages.quantize.proof.packing import write_packed
    from harness.stages.quantize.recipe import assign

    require_unpacked(source)
    architecture = read_architecture(source.path)
    assignment = assign(stage, architecture)
    require_packable(assignment, architecture, layout=layout)
    stored = stored_dtype(source.path)
    with reproducible(context), _contained(context.scratch):
        model = load_model(source, dtype=torch.float32, hardware=context.hardware)
        blocks_NT = blocks_to_watch(stage, source, model, context=context)
        subject = _Subject(model, load_tokenizer(source), blocks_NT, _layers(assignment, architecture), stored)
        with _feeding(blocks_NT), _listening(model, context=context):
            rounder = _rounder(stage, subject, context=context)
            rounded, chosen = rounder.quantize()
        bits = {name: int(config["bits"]) for name, config in chosen.items()}
        _require_as_asked(bits, assignment, stage)
        exact = {name: rounded.get_submodule(name).weight.data for name, number in bits.items() if number < PLAIN}
        as_awq = layout == "autoround" and all(_as_awq(chosen[name]) for name in exact)
        written = _narrow(rounded, exact, torch.float16 if as_awq else half_of(stored))
        if written != stored:
            context.report.labels.append(f"rounded from {_short(stored)} to {_short(written)} where not quantized")
        write_packed(rounded, out, lambda: _save(rounder, exact, out, layout), source=source, context=context)
    return bits


def require_packable(assignment: Assignment, architecture: Architecture, *, layout: str) -> None:
    """Raises Unsupported for what the library would skip, or transformers not find again, without an error."""
    missing = [name for name in READERS.get(layout, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise Unsupported(
            f"transformers reads the layout {layout} with {', '.join(missing)}, which is not installed",
            remedy="install it, or choose `layout: autoround`",
        )
    for name in assignment.layers:
        rows, columns = architecture.linears[name]
        if rows % MULTIPLE or columns % MULTIPLE:
            raise Unsupported(
                f"{name} is {rows} x {columns}, and AutoRound packs multiples of {MULTIPLE}",
                remedy="keep this layer with `ignore`",
            )
    if layout != "autoround" and architecture.head in assignment.layers:
        raise Unsupported(f"the layout {layout} cannot hold a packed head", remedy="choose `layout: autoround`")
    ends_kept = {_within(name) for name in assignment.kept if name != architecture.head}
    if layout == "gptq" and ends_kept & {_within(name) for name in assignment.layers}:
        raise Unsupported(
            "transformers reads the layout gptq with the same layers packed in every decoder layer",
            remedy="keep a layer everywhere or nowhere, or choose `layout: autoround`",
        )


def _within(layer: str) -> str:
    """Gives a layer's name inside its decoder layer: what follows the last number."""
    parts = layer.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else layer


def whole_numbers(bits: int, *, group: int | None, symmetric: bool) -> dict[str, Any]:
    """Gives integers of so many bits in the library's words."""
    group_size = WHOLE_ROW if group is None else group
    return {"bits": bits, "group_size": group_size, "sym": symmetric, "data_type": "int", "act_bits": 16}


def _layers(assignment: Assignment, architecture: Architecture) -> dict[str, dict[str, Any]]:
    """Gives the library's `layer_config`: every layer by its full name that is not quantized as most are."""
    changed = {name: _words(scheme) for scheme, names in assignment.schemes[1:] for name in names}
    head = architecture.head
    if head is not None and head in assignment.layers:  # it is outside the decoder layers, so it has to be named
        scheme = next(scheme for scheme, names in assignment.schemes if head in names)
        changed[head] = _words(scheme)
    return changed | {name: dict(LEFT_ALONE) for name in assignment.kept if name != head}


def _words(scheme: Scheme) -> dict[str, Any]:
    weights = scheme["weights"]
    return whole_numbers(weights["num_bits"], group=weights.get("group_size"), symmetric=weights["symmetric"])


def _rounder(stage: AutoRoundRecipe, subject: _Subject, *, context: StageContext) -> Any:
    from auto_round import AutoRound, RTNConfig, SignRoundConfig

    how = SignRoundConfig(iters=stage.iters, lr=stage.lr) if stage.iters else RTNConfig(disable_opt_rtn=True)
    blocks_NT = subject.blocks_NT
    return AutoRound(
        subject.model,
        tokenizer=subject.tokenizer,
        scheme=stage.precision(blocks_NT),
        layer_config=subject.layers,
        alg_configs=how,
        # Some kernels round scales to the type of the model: better to round weights by what scales will be.
        scale_dtype=half_of(subject.stored),
        amp=False,  # else a CPU tunes in bfloat16, in which 8 bits of codes do not fit
        dataset=None if blocks_NT is None else CALIBRATION,
        nsamples=1 if blocks_NT is None else len(blocks_NT),
        seqlen=stage.sequence,
        batch_size=stage.batch,
        device_map=context.hardware.device,
        seed=context.seed,
        enable_torch_compile=False,
        low_cpu_mem_usage=False,
        trust_remote_code=False,
    )


def _save(rounder: Any, exact: Mapping[str, Tensor], out: Path, layout: str) -> None:
    dtype = _short(rounder.model.dtype)
    for name, weight_RC in exact.items():
        # The library finds codes by dividing weights by scales: in 16 bits some of 8 bits come out wrong.
        layer = rounder.model.get_submodule(name)
        layer.weight.data, layer.scale = weight_RC, layer.scale.float()
    if layout == "autoround" and all(_as_awq(rounder.layer_config[name]) for name in exact):
        _pack_as_awq(rounder, exact)
    rounder.save_quantized(str(out), format=EXPORTS[layout], inplace=True)
    # The library writes float16 into the configuration of two layouts, though the tensors are what was proved.
    file = out / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    file.write_text(json.dumps(config | {"dtype": dtype}, indent=2), encoding="utf-8")


def half_of(dtype: torch.dtype) -> torch.dtype:
    """Gives the type of two bytes for a model that came in `dtype`: kernels take no others."""
    import torch

    return dtype if dtype.itemsize == torch.float16.itemsize else torch.bfloat16


def _narrow(model: Any, quantized: Iterable[str], dtype: torch.dtype) -> torch.dtype:
    """Rounds the weights of a model to a type, quantized ones as the library's kernel does, and gives the type."""
    import torch

    for name in quantized:
        weight = model.get_submodule(name).weight
        weight.data = weight.data.to(torch.float16)  # code times scale in the type of stored scales
    for weight in model.parameters():  # and no buffers: positions are computed in float32
        weight.data = weight.data.to(dtype)
    return dtype


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _as_awq(config: Mapping[str, Any]) -> bool:
    return config["bits"] == AWQ_BITS and not config["sym"]


def _pack_as_awq(rounder: Any, layers: Iterable[str]) -> None:
    """Packs the layers of an asymmetric 4-bit model, which the library wants as awq in its own layout and fails to do.

    Its packer for awq does it; the one for its own layout then finds nothing left to do.
    """
    from auto_round.export.export_to_awq.export import pack_layer

    for name in layers:
        pack_layer(name, rounder.model, None, rounder.device)


def _require_as_asked(bits: Mapping[str, int], assignment: Assignment, stage: AutoRoundRecipe) -> None:
    asked = {name: scheme["weights"]["num_bits"] for scheme, names in assignment.schemes for name in names}
    wrong = [name for name, number in asked.items() if bits.get(name) not in stage.allowed(number)]
    wrong += [name for name, number in bits.items() if number < PLAIN and name not in asked]
    if wrong:
        raise ModelError(f"AutoRound did not do as it was asked in {len(wrong)} layers, first {min(wrong)}")


@contextmanager
def _feeding(blocks_NT: Blocks | None) -> Iterator[None]:
    """Gives the library our blocks wherever it would look up a data set by name."""
    import torch
    from auto_round import calib_dataset
    from auto_round.auto_scheme import delta_loss

    asked = inspect.signature(calib_dataset.get_dataloader)

    def ours(*args: Any, **named: Any) -> list[dict[str, torch.Tensor]]:
        assert blocks_NT is not None
        parts = torch.from_numpy(blocks_NT).long().split(asked.bind(*args, **named).arguments["bs"])
        return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in parts]

    places: tuple[Any, ...] = (calib_dataset, delta_loss)
    before = [place.get_dataloader for place in places]
    for place in places:
        place.get_dataloader = ours
    try:
        yield
    finally:
        for place, original in zip(places, before, strict=True):
            place.get_dataloader = original


class _Listener(logging.Handler):
    """Turns the library's log into progress, and keeps what it warned of."""

    def __init__(self, layers: int, context: StageContext) -> None:
        super().__init__(logging.INFO)
        self.layers, self.context, self.done = layers, context, 0
        self.warned: set[str] = set()
        self.losses: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("quantized") and "loss iter" in message:
            self.done += 1
            self.losses.append(message.partition("loss ")[2])
        if record.levelno >= logging.WARNING:
            self.warned.add(message)
        self.context.progress(min(1.0, self.done / self.layers), message.splitlines()[0][:100] if message else "")


@contextmanager
def _listening(model: Any, *, context: StageContext) -> Iterator[None]:
    """Reports what the library logs as progress, and its warnings and losses as notes."""
    from auto_round.logger import logger

    listener = _Listener(model.config.get_text_config(decoder=True).num_hidden_layers, context)
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
    if listener.warned:
        context.report.notes["warnings"] = [*sorted(listener.warned)]
    if listener.losses:
        context.report.notes["losses"] = [*listener.losses]


@contextmanager
def _contained(scratch: Path) -> Iterator[None]:
    """Gives back what the library changes for the whole process."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    deterministic = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # Scores are kept by the last part of a model's path: another model of that name would be given them.
    ours = {"AR_AUTO_SCHEME_CACHE": str(scratch / "scores"), "AR_DISABLE_COPY_MTP_WEIGHTS": "1"}
    before = {name: os.environ.get(name) for name in (*ours, "CUBLAS_WORKSPACE_CONFIG")}
    os.environ.update(ours)
    try:
        with warnings.catch_warnings():
            # Without mixed precision the library asks for it in float32, which is none; and its device map names the
            # CPU, which transformers takes for weights that were moved off a GPU.
            warnings.filterwarnings("ignore", message="In CPU autocast, but the target dtype is not supported")
            warnings.filterwarnings("ignore", message="Attempting to save a model with offloaded modules")
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        random.setstate(python)
        np.random.set_state(numpy)
        torch.use_deterministic_algorithms(deterministic, warn_only=only_warns)
        torch.set_printoptions(profile="default")
