"""Which weights a quantizer rounded and onto which grid, found in the tensors of the plain model's folder.

Packed folders are proved by `harness.stages.quantize.proof.coverage`, folders of format `grid` by the grids they
declare. A folder of format `hf` declares nothing, so there the weights are counted: b bits give at most 2^b different
values to those that share a scale.

Shapes: R rows, C columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.conformance.models import PLAIN, SHAPE
from harness.conformance.reading import Rounding
from harness.errors import ModelError, Unsupported

if TYPE_CHECKING:
    from torch import Tensor

    from harness.conformance.bench import Bench
    from harness.stages.quantize.proof.architecture import Architecture

USUAL_BITS, USUAL_GROUP, FINE = 4, 128, 5
WIDTHS: Final = (512, 256, 128, 64, 32, 16)
"""Columns that may share a scale where nobody says how many do, widest first."""


@dataclass(frozen=True)
class Grids:
    """The grid of every rounded weight.

    `wrong` says why the tensors are not what was declared, `unknown` why nobody can tell; `rounds_inputs` that
    activations are rounded as well.
    """

    roundings: tuple[Rounding, ...]
    seen: str = ""
    wrong: str = ""
    unknown: str = ""
    rounds_inputs: bool = False

    @property
    def bits(self) -> int:
        """The fewest bits of a rounded weight."""
        return min(rounding.bits for rounding in self.roundings)

    @property
    def coarser(self) -> tuple[Rounding, ...]:
        """The same grids with at most as many bits as the steps of an 8-bit float are worth."""
        return tuple(one.model_copy(update={"bits": min(one.bits, FINE)}) for one in self.roundings)


def find_grids(bench: Bench) -> Grids:
    """Gives what was rounded; where that cannot be found out, grids as they are usual stand in for comparison."""
    from harness.stages.quantize.proof.architecture import read_architecture

    folder, source = bench.require(PLAIN).path, bench.world.sources[PLAIN].path
    architecture = read_architecture(source)
    usual = tuple(
        Rounding(module=module, bits=_declared_bits(bench) or USUAL_BITS, group=USUAL_GROUP)
        for module in architecture.linears
        if module != architecture.head
    )
    finders = {"packed": _packed, "grid": _gridded, "hf": _counted}
    if bench.format not in finders:
        return Grids(usual, unknown=f"weights of the format {bench.format} are not examined here")
    try:
        found = finders[bench.format](bench, folder, architecture)
    except ModelError as error:
        return Grids(usual, wrong=str(error))
    except Unsupported as error:
        return Grids(usual, unknown=error.reason)
    wrong = sorted({rounding.bits for rounding in found.roundings} - {_declared_bits(bench) or found.bits})
    if wrong and not _has_exceptions(bench) and _declared_bits(bench):
        said = f"its argument bits is {_declared_bits(bench)}, and {wrong[0]} bits a weight are stored"
        return Grids(found.roundings, wrong=said)
    return found


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Gives all tensors of the safetensors files in a folder by name."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def is_kept(before: Mapping[str, Tensor], after: Mapping[str, Tensor], name: str) -> bool:
    """True when a tensor is stored as it was, in the type it has now."""
    import torch

    return name in after and torch.equal(before[name].to(after[name].dtype), after[name])


def _packed(bench: Bench, folder: Path, architecture: Architecture) -> Grids:
    from harness.stages.quantize.proof.coverage import prove

    proof = prove(folder, architecture)
    kinds = Counter(f"{fact.layout} {fact.bits} bits, {fact.sharing}" for fact in proof.quantized)
    told = "; ".join(f"{count} layers {kind}" for kind, count in sorted(kinds.items()))
    return Grids(
        tuple(Rounding(module=fact.module, bits=fact.bits, group=fact.group) for fact in proof.quantized),
        f"{told}; {proof.share_of_linear:.0%} of linear weights, {proof.bits_per_quantized_weight:.2f} bits each",
        rounds_inputs=any(fact.activations for fact in proof.quantized),
    )


def _gridded(bench: Bench, folder: Path, architecture: Architecture) -> Grids:
    import torch

    from harness.stages.grids import read_grids

    tensors, roundings = tensors_of(folder), []
    for name, gridded in read_grids(bench.require(PLAIN).artifact).items():
        if name not in tensors:
            raise ModelError(f"{name} is on a grid and not in the files")
        weight_RC = tensors[name].float()
        # Storing a value rounds it by at most half a unit in the last place.
        allowed_RC = weight_RC.abs() * torch.finfo(tensors[name].dtype).eps + 1e-7
        if bool(((gridded.snap(weight_RC) - weight_RC).abs() > allowed_RC).any()):
            raise ModelError(f"{name} lies off the grid that is declared for it")
        module = name.removesuffix(".weight")
        roundings.append(Rounding(module=module, bits=gridded.grid.bits, group=gridded.grid.group))
    _require_any([rounding.module for rounding in roundings], "no weight is on a grid")
    _require_any(_changed(bench, tensors, architecture), "no linear weight differs from the source's: nothing was done")
    kinds = Counter(f"{one.bits} bits, {f'group {one.group}' if one.group else 'whole row'}" for one in roundings)
    told = "; ".join(f"{count} layers on grids of {kind}" for kind, count in sorted(kinds.items()))
    return Grids(tuple(roundings), told)


def _counted(bench: Bench, folder: Path, architecture: Architecture) -> Grids:
    tensors = tensors_of(folder)
    changed = _changed(bench, tensors, architecture)
    _require_any(changed, "no linear weight differs from the source's: nothing was done")
    bits, group = _declared_bits(bench), bench.argument("group", "group_size")
    roundings = []
    for module in changed:
        weight_RC = tensors[f"{module}.weight"]
        widths = [group[1]] if group and isinstance(group[1], int) else [w for w in WIDTHS if w <= weight_RC.shape[1]]
        counts = {width: _most_values(weight_RC, width) for width in widths}
        known = bits or max(2, min(8, (counts[widths[-1]] - 1).bit_length()))
        # Only where more weights share a scale than there are values can there be too many values.
        telling = [width for width in widths if width > 2**known]
        fitting = [width for width in telling if counts[width] <= 2**known]
        if bits and telling and not fitting:
            raise ModelError(
                f"{module} has {counts[telling[-1]]} different weights among {telling[-1]} neighbours of a row, and "
                f"{bits} bits give {2**bits}"
            )
        roundings.append(Rounding(module=module, bits=known, group=(fitting or [USUAL_GROUP])[0]))
    kept = len(architecture.linears) - len(changed)
    declared = f"{bits} bits, as declared" if bits else "no argument `bits` says how many there should be"
    most = max(_most_values(tensors[f"{one.module}.weight"], one.group or SHAPE.hidden) for one in roundings)
    told = f"{len(changed)} linear weights changed, {kept} kept; at most {most} values share a scale ({declared})"
    return Grids(tuple(roundings), told)


def _changed(bench: Bench, after: Mapping[str, Tensor], architecture: Architecture) -> list[str]:
    before = tensors_of(bench.world.sources[PLAIN].path)
    names = {module: f"{module}.weight" for module in architecture.linears}
    if lost := [name for name in names.values() if name not in after]:
        raise ModelError(f"{len(lost)} linear weights are not in the files, first {lost[0]}")
    return [module for module, name in names.items() if not is_kept(before, after, name)]


def _most_values(weight_RC: Tensor, width: int) -> int:
    """Gives the largest number of different values among `width` neighbours of a row."""
    import torch

    most = 0
    for part_RK in torch.split(weight_RC, width, dim=1):
        sorted_RK = part_RK.sort(dim=1).values
        most = max(most, int((sorted_RK.diff(dim=1) != 0).sum(dim=1).max()) + 1)
    return most


def _declared_bits(bench: Bench) -> int | None:
    found = bench.argument("bits")
    return found[1] if found and isinstance(found[1], int) else None


def _has_exceptions(bench: Bench) -> bool:
    found = bench.argument("overrides")
    return bool(found and found[1])


def _require_any(found: list[str], otherwise: str) -> None:
    if not found:
        raise ModelError(otherwise)
