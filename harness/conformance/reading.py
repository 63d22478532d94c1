"""What a model computes, read by a process that has seen nothing but the folder it lies in.

A quantizer's library stays in memory after it has run, with its methods patched and its caches full, so what it left
behind is read elsewhere. A reading holds the logits for some text, the state after every decoder layer, and what every
linear layer answers to unit vectors: its weights as they are computed with, whatever layout they are stored in. For
comparison the same is read of the source, as it is and rounded to the nearest point of plain grids.

Shapes: B texts, T tokens, V vocabulary, D width, R rows, C columns.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError
from harness.spec import Hardware, Value

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CHILD: Final = "harness.conformance.reading_child"


class Rounding(Value):
    """The grid onto which one linear weight is rounded for comparison."""

    module: str
    bits: int
    group: int | None


class Order(Value):
    """A folder to read. `roundings` are applied first; `runtime` also opens it as a session and scores a text."""

    folder: str
    format: str = "hf"
    roundings: tuple[Rounding, ...] = ()
    runtime: str | None = None


class Orders(Value):
    """All that one process is to read: `probe` holds the tokens, answers go into the folder `answers`."""

    orders: tuple[Order, ...]
    probe: str
    answers: str
    hardware: Hardware


@dataclass(frozen=True)
class Reading:
    """What was computed; `error` says why there is nothing, `session_error` why a runtime could not score.

    `layers` are the states after each decoder layer, the last one after the final norm.
    """

    error: str = ""
    session_error: str = ""
    logprobs: tuple[float, ...] = ()
    is_tied: bool = False
    logits_BTV: Tensor | None = None
    layers_BTD: tuple[Tensor, ...] = ()
    weights: Mapping[str, Tensor] = field(default_factory=dict)

    def require(self) -> Reading:
        """Gives itself. Raises ModelError when the folder could not be read or its logits are no numbers."""
        if self.error:
            raise ModelError(f"a fresh process cannot read what was written: {self.error}")
        assert self.logits_BTV is not None
        if not bool(self.logits_BTV.isfinite().all()):
            raise ModelError("the logits, read in a fresh process, are no numbers")
        return self


def read_all(orders: Orders) -> list[Reading]:
    """Reads one folder after another in this process."""
    from safetensors.torch import load_file

    tokens_BT = load_file(orders.probe)["tokens"]
    return [_read(order, tokens_BT, orders.hardware) for order in orders.orders]


def read_afresh(orders: Orders) -> list[Reading]:
    """Reads them in a process of its own. Raises ModelError when that process dies."""
    from safetensors.torch import load_file

    done = subprocess.run(
        [sys.executable, "-m", CHILD], input=orders.model_dump_json(), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ModelError(f"the process that reads what was written died: {last[0]}")
    readings = []
    for number in range(len(orders.orders)):
        facts = json.loads((Path(orders.answers) / f"{number}.json").read_text(encoding="utf-8"))
        readings.append(_unpacked(facts, load_file(Path(orders.answers) / f"{number}.safetensors")))
    return readings


def write(readings: Sequence[Reading], answers: Path) -> None:
    """Writes readings for the process that asked."""
    from safetensors.torch import save_file

    for number, reading in enumerate(readings):
        tensors = {f"weights.{name}": weight for name, weight in reading.weights.items()}
        tensors |= {f"layers.{index}": layer for index, layer in enumerate(reading.layers_BTD)}
        if reading.logits_BTV is not None:
            tensors["logits"] = reading.logits_BTV
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, answers / f"{number}.safetensors")
        plain = ("error", "session_error", "logprobs", "is_tied")
        facts = {name: getattr(reading, name) for name in plain}
        (answers / f"{number}.json").write_text(json.dumps(facts), encoding="utf-8")


def _unpacked(facts: dict[str, Any], tensors: Mapping[str, Tensor]) -> Reading:
    layers = sorted((name for name in tensors if name.startswith("layers.")), key=lambda name: int(name[7:]))
    return Reading(
        **facts | {"logprobs": tuple(facts["logprobs"])},
        logits_BTV=tensors.get("logits"),
        layers_BTD=tuple(tensors[name] for name in layers),
        weights={name[8:]: tensor for name, tensor in tensors.items() if name.startswith("weights.")},
    )


def _read(order: Order, tokens_BT: Tensor, hardware: Hardware) -> Reading:
    from harness.runtimes._hf_load import load_model
    from harness.stages.quantize.proof.architecture import read_architecture
    from harness.worker import attempt

    read: list[Reading] = []

    def do() -> None:
        model = load_model(Path(order.folder), dtype="auto", attention="sdpa", hardware=hardware)
        for rounding in order.roundings:
            _round(model, rounding)
        read.append(_computed(model, read_architecture(Path(order.folder)).linears, tokens_BT))

    answer = attempt(do)
    if answer.error:
        return Reading(error=answer.error.reason)
    if order.runtime is None:
        return read[0]
    logprobs: list[float] = []
    scored = attempt(lambda: logprobs.extend(_scored(order, hardware)))
    told = {"session_error": scored.error.reason if scored.error else "", "logprobs": tuple(logprobs)}
    return Reading(**{**vars(read[0]), **told})


def _computed(model: Any, linears: Mapping[str, tuple[int, int]], tokens_BT: Tensor) -> Reading:
    import torch

    with torch.inference_mode():
        found = model(tokens_BT.to(model.device), use_cache=False, output_hidden_states=True)
    ends = [dict(end.named_parameters()).get("weight") for end in (model.lm_head, model.get_input_embeddings())]
    return Reading(
        logits_BTV=found.logits.float().cpu(),
        layers_BTD=tuple(layer.float().cpu() for layer in found.hidden_states[1:]),
        weights={name: _weights_of(model.get_submodule(name), shape[1], model) for name, shape in linears.items()},
        is_tied=ends[0] is not None and ends[0] is ends[1],
    )


def _weights_of(module: Callable[[Tensor], Tensor], columns: int, model: PreTrainedModel) -> Tensor:
    """Gives the weights (R, C) that a linear layer without bias computes with: its answers to unit vectors."""
    import torch

    with torch.inference_mode():
        # A token each: a layer that rounds its inputs token by token leaves a single one as it is.
        units_CC = torch.eye(columns, dtype=model.dtype, device=model.device)
        return module(units_CC).T.float().cpu()


def _round(model: PreTrainedModel, rounding: Rounding) -> None:
    import torch

    from harness.stages.quantize.grid import Grid, dequantize, quantize_groups

    weight_RC = model.get_parameter(f"{rounding.module}.weight")
    grid = Grid(rounding.bits, rounding.group, symmetric=False)
    with torch.no_grad():
        weight_RC.copy_(dequantize(quantize_groups(weight_RC, grid), grid))


def _scored(order: Order, hardware: Hardware) -> list[float]:
    """Opens the folder as a runtime does for a cell, and scores a text with its own tokenizer."""
    from harness import plugins
    from harness.conformance.llama import TEXT
    from harness.interfaces import Artifact, ScoreRequest
    from harness.record import ArtifactFacts
    from harness.spec import Use

    assert order.runtime is not None
    facts = ArtifactFacts(lineage=(), format=order.format, digest="", size_bytes=0)
    artifact = Artifact(Path(order.folder), facts)
    with plugins.runtime(Use(use=order.runtime)).open(artifact, hardware=hardware) as session:
        tokens = session.encode(TEXT[:200])
        (scored,) = session.score([ScoreRequest([session.prefix_token], tokens)])
        return list(scored.logprobs)
