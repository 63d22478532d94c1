"""Folders of format `grid`: Hugging Face models whose linear weights lie on declared integer grids.

A quantizer that writes its weights back dequantized (emulated) leaves behind which weights it rounded and onto which
grid. Without that, a stage that trains or prunes afterwards would move the weights off the grid without a word, and the
result would be called 4-bit though it is not. With it, such a stage can keep them there: frozen, or trained through the
rounding (straight-through).

On disk a `grid` folder is an `hf` folder plus `grid/weights.safetensors`. It holds for every quantized weight `NAME`
(R, C) its `NAME.scales` and `NAME.zeros` (R, G) in float32 and `NAME.unrounded` (R, C), the weight before rounding,
where training through the rounding starts from; the metadata say the bits, group and symmetry of each. Nothing but
training reads the unrounded weights: what is measured is the rounded ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from harness.errors import CorruptArtifact
from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.grid import Codes, Grid, dequantize, encode
from harness.stages.quantize.straight_through import pass_through

FORMAT = "grid"
FILE = Path("grid") / "weights.safetensors"
PARTS = ("scales", "zeros", "unrounded")


@dataclass(frozen=True)
class Gridded:
    """The grid a weight lies on: scales and zero points (R, G) in float32, and the weight before rounding (R, C)."""

    grid: Grid
    scales_RG: Tensor
    zeros_RG: Tensor
    unrounded_RC: Tensor

    def snap(self, weight_RC: Tensor) -> Tensor:
        """Gives the nearest weights on the grid, in the type of `weight_RC`."""
        return dequantize(self.encode(weight_RC), self.grid).to(weight_RC.dtype)

    def encode(self, weight_RC: Tensor) -> Codes:
        """Gives the codes that stand for the weights."""
        on = weight_RC.device
        return encode(weight_RC, self.scales_RG.to(on), self.zeros_RG.to(on), self.grid)

    def inside(self, weight_RC: Tensor) -> Tensor:
        """True where a weight is within the grid's range, half a step beyond the last codes included."""
        group = self.grid.group or weight_RC.shape[1]
        place_C = torch.arange(weight_RC.shape[1], device=weight_RC.device) // group
        scales_RC = self.scales_RG.to(weight_RC.device)[:, place_C]
        zeros_RC = self.zeros_RG.to(weight_RC.device)[:, place_C]
        steps_RC = weight_RC / scales_RC + zeros_RC
        return (steps_RC >= -0.5) & (steps_RC <= self.grid.levels + 0.5)


def read_grids(artifact: Artifact) -> dict[str, Gridded]:
    """Gives the grid of every quantized weight by its name; none for a folder of format `hf`.

    Raises CorruptArtifact when a `grid` folder does not hold what it should.
    """
    from safetensors import safe_open

    if artifact.format != FORMAT:
        return {}
    file = artifact.path / FILE
    if not file.is_file():
        raise CorruptArtifact(f"{artifact.path}: a folder of format grid must hold {FILE}")
    with safe_open(file, framework="pt") as stored:
        declared = json.loads((stored.metadata() or {}).get("grids", "{}"))
        return {
            name: Gridded(Grid(**grid), *(stored.get_tensor(f"{name}.{part}") for part in PARTS))
            for name, grid in declared.items()
        }


def write_grids(out: Path, grids: Mapping[str, Gridded]) -> None:
    """Writes the grids beside the weights in the folder `out`."""
    from safetensors.torch import save_file

    (out / FILE).parent.mkdir(exist_ok=True)
    tensors = {}
    for name, gridded in grids.items():
        tensors[f"{name}.scales"] = gridded.scales_RG.cpu().contiguous()
        tensors[f"{name}.zeros"] = gridded.zeros_RG.cpu().contiguous()
        tensors[f"{name}.unrounded"] = gridded.unrounded_RC.cpu().contiguous()
    declared = json.dumps({name: asdict(gridded.grid) for name, gridded in grids.items()}, sort_keys=True)
    save_file(tensors, out / FILE, metadata={"grids": declared})


def report_grids(out: Path, grids: Mapping[str, Gridded], *, report: BuildReport) -> None:
    """Writes the grids, checks that the saved weights lie on them, and reports what the packed weights would weigh.

    Raises CorruptArtifact when a weight is missing or lies off its grid by more than the file's own rounding.
    """
    from safetensors import safe_open

    from harness.stages.quantize.proof.architecture import read_architecture
    from harness.stages.quantize.proof.coverage import summary
    from harness.stages.quantize.proof.coverage_grid import prove_grid

    if not grids:
        return
    write_grids(out, grids)
    nominal, seen = 0, set()
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                weight = stored.get_tensor(name)
                nominal += grids[name].grid.packed_bytes(*weight.shape) if name in grids else weight.nbytes
                if name in grids:
                    seen.add(name)
                    _require_on_grid(name, weight, grids[name])
    if missing := set(grids) - seen:
        raise CorruptArtifact(f"{out}: {len(missing)} weights on a grid were not saved, first {min(missing)}")
    report.nominal_bytes = nominal
    proof = prove_grid(out, {name: gridded.grid for name, gridded in grids.items()}, read_architecture(out))
    report.notes["coverage"] = summary(proof)


def _require_on_grid(name: str, weight_RC: Tensor, gridded: Gridded) -> None:
    # Storing a value rounds it by at most half a unit in the last place.
    allowed_RC = weight_RC.float().abs() * torch.finfo(weight_RC.dtype).eps + 1e-7
    off_RC = (gridded.snap(weight_RC.float()) - weight_RC.float()).abs()
    if bool((off_RC > allowed_RC).any()):
        raise CorruptArtifact(f"{name}: weights lie off their grid by up to {float(off_RC.max()):.3g}")


class StraightThrough(torch.nn.Module):
    """A parametrization: forward rounds onto the grid, backward passes the gradient inside the grid's range, 0 outside.

    Scales and zero points stay as they are. Source: Bengio et al., arXiv 1308.3432; QAD, arXiv 2601.20088 (scales fixed
    from calibration).
    """

    def __init__(self, gridded: Gridded) -> None:
        super().__init__()
        self.gridded = gridded

    def forward(self, weight_RC: Tensor) -> Tensor:
        """Gives the rounded weights (R, C)."""
        with torch.no_grad():
            inside_RC = self.gridded.inside(weight_RC)
            rounded_RC = self.gridded.snap(weight_RC)
        return pass_through(weight_RC, rounded_RC, inside_RC)


def train_through(model: torch.nn.Module, grids: Mapping[str, Gridded]) -> None:
    """Lets the quantized weights be trained through their rounding, from what they were before it."""
    for name, gridded in grids.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        weight_RC = model.get_parameter(name)
        with torch.no_grad():
            weight_RC.copy_(gridded.unrounded_RC)
        parametrize.register_parametrization(module, "weight", StraightThrough(gridded), unsafe=True)


def settle(model: torch.nn.Module, grids: Mapping[str, Gridded]) -> dict[str, Gridded]:
    """Ends training through the rounding: the weights become what they are rounded to; gives the grids they leave with.

    A weight that was not trained through its rounding keeps the grid it has.
    """
    settled = dict(grids)
    for name, gridded in grids.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        if parametrize.is_parametrized(module, "weight"):
            trained_RC = cast("Any", module).parametrizations.weight.original.detach().clone()
            settled[name] = replace(gridded, unrounded_RC=trained_RC.to(gridded.unrounded_RC.dtype))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return settled


def freeze(model: torch.nn.Module, grids: Mapping[str, Gridded]) -> None:
    """Leaves the quantized weights as they are while the rest is trained."""
    for name in grids:
        cast("Any", model.get_parameter(name)).requires_grad_(False)
