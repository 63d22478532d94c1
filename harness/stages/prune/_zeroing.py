"""Writes a model with some of its weights zeroed, and proves that they are.

A zeroed weight is still stored, so nothing about a file says how sparse it is or in what pattern. Here every tensor
that a stage hands over is counted: one that is not as sparse as was asked, a group of four with three weights left, or
a value that is no number stops the build. Files are rewritten one after another; what is not pruned stays as it was.

Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import ModelError
from harness.interfaces import Artifact, StageContext
from harness.stages.prune._sparsity import Sparsity

if TYPE_CHECKING:
    from pydantic import JsonValue
    from torch import Tensor

TOLERANCE = 0.01
Zero = Callable[[str, "Tensor"], "Tensor"]
"""Gives a weight (R, C) pruned, from its name and the weight as it is stored."""


def write_pruned(source: Artifact, out: Path, zero: Zero, *, tally: Tally, context: StageContext) -> None:
    """Writes the folder `source` into `out` with every weight that `tally` expects replaced by what `zero` makes of it.

    Raises ModelError when a weight is not what was asked for.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    from harness.stages.hf_folder import copy_companions

    for file in sorted(source.path.glob("*.safetensors")):
        tensors: dict[str, Tensor] = {}
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                tensor = stored.get_tensor(name)
                if name in tally.names:
                    context.progress(len(tally.sparsities) / len(tally.names), f"{file.name}: {name}")
                    after = zero(name, tensor).to(device="cpu", dtype=tensor.dtype).contiguous()
                    tally.add_pruned(name, tensor, after)
                    tensor = after
                tally.add(tensor)
                tensors[name] = tensor
            save_file(tensors, out / file.name, metadata=stored.metadata())
    index = source.path / "model.safetensors.index.json"
    if index.exists():
        (out / index.name).write_bytes(index.read_bytes())
    copy_companions(source.path, out)
    tally.report(context)


@dataclass
class Tally:
    """Counts zeros while the files are written, and holds them against what was asked.

    `names` are the weights to be pruned. With `each` every one of them must be as sparse as asked, else all together.
    """

    asked: Sparsity
    names: Collection[str]
    each: bool = True
    sparsities: dict[str, float] = field(default_factory=dict)
    parameters: int = 0
    zeros: int = 0
    pruned_parameters: int = 0
    pruned_zeros: int = 0
    squared_change: float = 0.0
    squared_weight: float = 0.0

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor that goes into the files, pruned or not."""
        self.parameters += tensor.numel()
        self.zeros += int((tensor == 0).sum())

    def add_pruned(self, name: str, before_RC: Tensor, after_RC: Tensor) -> None:
        """Counts a pruned weight. Raises ModelError when it is not finite or not as sparse as asked."""
        for when, weight_RC in (("before", before_RC), ("after", after_RC)):
            if not bool(weight_RC.isfinite().all()):
                raise ModelError(f"{name}: weights are not finite {when} pruning")
        if self.each:
            require_sparse(name, after_RC, self.asked)
        zeros = int((after_RC == 0).sum())
        self.sparsities[name] = zeros / after_RC.numel()
        self.pruned_parameters += after_RC.numel()
        self.pruned_zeros += zeros
        self.squared_change += float((before_RC.double() - after_RC.double()).square().sum())
        self.squared_weight += float(before_RC.double().square().sum())

    def report(self, context: StageContext) -> None:
        """Tells the record how sparse the model is and what that does not give. Raises ModelError when it is not."""
        sparsity = self.pruned_zeros / self.pruned_parameters
        if not self.each and abs(sparsity - self.asked.sparsity) > TOLERANCE:
            raise ModelError(_found_and_asked("all weights", sparsity, self.asked))
        notes: dict[str, JsonValue] = {
            "tensors_pruned": len(self.sparsities),
            "weights_pruned": self.pruned_parameters,
            "sparsity_of_pruned_weights": sparsity,
            "sparsity_of_all_weights": self.zeros / self.parameters,
            "lowest_sparsity_of_a_tensor": min(self.sparsities.values()),
            "highest_sparsity_of_a_tensor": max(self.sparsities.values()),
            "relative_squared_change": self.squared_change / self.squared_weight,
        }
        context.report.notes |= notes
        context.report.labels.append(
            f"{100 * sparsity:.3g} % of the weights in {len(self.sparsities)} linear layers are zero "
            f"({self.asked.pattern}): no smaller file and no speed without sparse kernels"
        )


def require_sparse(name: str, weight_RC: Tensor, asked: Sparsity) -> None:
    """Raises ModelError when a pruned weight is not as sparse as asked, within 1 % or one weight of a row.

    In a pattern n:m every group must have its n zeros; more are allowed as long as the whole stays within bounds.
    """
    found = float((weight_RC == 0).double().mean())
    if found == 0 or abs(found - asked.sparsity) > max(TOLERANCE, 1 / weight_RC.shape[-1]):
        raise ModelError(_found_and_asked(name, found, asked))
    if asked.group:
        zeros, size = asked.group
        if bool(((weight_RC.reshape(-1, size) == 0).sum(dim=1) < zeros).any()):
            raise ModelError(f"{name}: not every {size} weights have {zeros} zeros")


def _found_and_asked(name: str, found: float, asked: Sparsity) -> str:
    return f"{name}: {100 * found:.2f} % of the weights are zero, {100 * asked.sparsity:g} % were asked for"
