"""The reload proof: a fresh process opens what was written and must compute what the model in memory computed.

Five of the checkpoint paths of well-known libraries that were tried write files that load without an error and are
wrong. So a packing stage lets its model read fixed probe tokens before it writes, and a child process, which shares
nothing with the quantizer but the files, opens the folder with the loader of the `transformers` runtime (every tensor
used, none missing, a quantizer involved) and reads the same tokens. The logits must agree.

What differs by rights is rounding: both sides dequantize the same codes with the same scales, in the same type, but a
library may sum in another order, and an activation at the edge between two steps may fall on either side. The measure
is the root mean square of the difference over that of the logits around their mean, so a wrong scale shows as a number
near 1 and rounding as one near the type's own precision; TOLERANCE leaves a few such roundings for every layer.

Shapes: B probe texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError
from harness.interfaces import StageContext
from harness.spec import Hardware, Value

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

TOLERANCE: Final[Mapping[str, float]] = {
    "float32": 1e-3,  # 2^-24 a rounding; an 8-bit activation that falls on the other side moves one of many inputs
    "float16": 1e-2,  # 2^-11 a rounding
    "bfloat16": 3e-2,  # 2^-8 a rounding, so a few of them
}
"""Largest relative difference of logits, by the type that a model computes in."""
BATCH, LENGTH, SEED = 2, 48, 20231
CHILD: Final = "harness.stages.quantize.proof.reloading_child"


class Order(Value):
    """What the child is asked: which folder to open and how, which probe to read, where to write."""

    folder: str
    dtype: str
    attention: str
    probe: str
    answer: str
    hardware: Hardware


@dataclass(frozen=True)
class Probe:
    """Tokens (B, T) and the logits (B, T, V) of the quantized model in memory, with the type it computes in."""

    tokens_BT: Tensor
    logits_BTV: Tensor
    dtype: str
    attention: str


def probe(model: PreTrainedModel) -> Probe:
    """Lets a model in memory read the probe tokens. Raises ModelError when it does not answer with numbers."""
    tokens_BT = probe_tokens(model.config.get_text_config(decoder=True).vocab_size)
    logits_BTV = read(model, tokens_BT)
    _require_an_answer(logits_BTV, "the quantized model in memory")
    config: Any = model.config
    return Probe(tokens_BT, logits_BTV, str(model.dtype).removeprefix("torch."), config._attn_implementation)


def probe_tokens(vocabulary: int) -> Tensor:
    """Gives the same tokens (B, T) for every model with that vocabulary."""
    import torch

    drawing = torch.Generator().manual_seed(SEED)
    return torch.randint(vocabulary, (BATCH, LENGTH), generator=drawing)


def read(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    """Gives logits (B, T, V) in float32 on the host."""
    import torch

    with torch.inference_mode():
        return model(tokens_BT.to(model.device), use_cache=False).logits.float().cpu()


def require_reload(out: Path, seen: Probe, *, context: StageContext) -> float:
    """Gives by how much the folder, opened afresh, differs from the model in memory.

    Raises ModelError when it cannot be opened, answers with no numbers, or differs by more than TOLERANCE.
    """
    reloaded_BTV = _read_afresh(out, seen, context=context)
    _require_an_answer(reloaded_BTV, "the model read back from its files")
    found, allowed = difference(seen.logits_BTV, reloaded_BTV), TOLERANCE[seen.dtype]
    if not found <= allowed:
        raise ModelError(
            f"the files, read back in a fresh process, do not give the model that was in memory: its logits are off by "
            f"{found:.3g} of their spread, and {allowed:.3g} is allowed in {seen.dtype}"
        )
    return found


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Gives the root mean square of the difference over that of the expected logits around their mean at a position."""
    spread = expected.double() - expected.double().mean(dim=-1, keepdim=True)
    return float((expected.double() - found.double()).square().mean().sqrt() / spread.square().mean().sqrt())


def _require_an_answer(logits_BTV: Tensor, whose: str) -> None:
    """Raises ModelError for logits that are no numbers, or the same for every token of the vocabulary."""
    if not bool(logits_BTV.isfinite().all()):
        raise ModelError(f"{whose} answers with logits that are no numbers")
    if bool((logits_BTV.amax(dim=-1) == logits_BTV.amin(dim=-1)).any()):
        raise ModelError(f"{whose} gives every token of the vocabulary the same logit")


def _read_afresh(out: Path, seen: Probe, *, context: StageContext) -> Tensor:
    from safetensors.torch import load_file, save_file

    folder = context.scratch / "reload"
    folder.mkdir(parents=True, exist_ok=True)
    order = Order(
        folder=str(out),
        dtype=seen.dtype,
        attention=seen.attention,
        probe=str(folder / "probe.safetensors"),
        answer=str(folder / "answer.safetensors"),
        hardware=context.hardware,
    )
    Path(order.answer).unlink(missing_ok=True)
    save_file({"tokens": seen.tokens_BT}, order.probe)
    done = subprocess.run(
        [sys.executable, "-m", CHILD],
        input=order.model_dump_json(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise ModelError(f"the files cannot be read back in a fresh process: {said[-1] if said else 'no message'}")
    return load_file(order.answer)["logits"]
