"""How sparse, in what pattern, and which weights: the arguments of the stages that zero single weights.

Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import Unsupported
from harness.interfaces import Artifact

UNSTRUCTURED = "unstructured"


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """Arguments of every stage that zeroes single weights.

    `sparsity` is the fraction of zeros in each pruned weight. `pattern` is `unstructured`, or `n:m`: n zeros in every m
    consecutive columns of a row (`2:4`), where `sparsity` must be n/m. `skip` names the linear layers that stay as they
    are, by full name or last parts.
    """

    sparsity: float = 0.5
    pattern: str = UNSTRUCTURED
    skip: Sequence[str] = field(default=("lm_head",))

    @property
    def group(self) -> tuple[int, int] | None:
        """Gives the zeros and the size of a group of columns, or None when the pattern is unstructured."""
        found = re.fullmatch(r"([0-9]+):([0-9]+)", self.pattern)
        return (int(found[1]), int(found[2])) if found else None

    def require_allowed(self) -> None:
        """Raises ValueError when an argument is out of range or two contradict each other."""
        if not 0 < self.sparsity < 1:
            raise ValueError(f"sparsity is {self.sparsity!r}; allowed: a fraction between 0 and 1")
        if isinstance(self.skip, str):
            raise ValueError(f"skip is {self.skip!r}; allowed: a list of module names, such as [lm_head]")
        if self.pattern == UNSTRUCTURED:
            return
        zeros, size = self.group or (0, 0)
        if not 0 < zeros < size:
            raise ValueError(f"pattern is {self.pattern!r}; allowed: unstructured, or n:m with 0 < n < m such as 2:4")
        if abs(self.sparsity - zeros / size) > 1e-6:
            raise ValueError(
                f"pattern {self.pattern} zeroes {zeros} of {size} weights and sparsity is {self.sparsity!r}; "
                f"allowed: sparsity {zeros / size:g}"
            )


def prunable_weights(source: Artifact, asked: Sparsity) -> list[str]:
    """Gives the names of the linear weights to prune, in the order of the model.

    Raises SpecError when an entry of `skip` names no layer, and Unsupported when no layer is left, a weight is not in
    the files under its own name, or its columns do not divide into groups.
    """
    from harness.stages.hf_folder import require_unpacked
    from harness.stages.linear_layers import linear_layers

    require_unpacked(source)
    names = [f"{layer}.weight" for layer in linear_layers(source.path, skip=asked.skip)]
    _require_stored(source.path, names, asked)
    return names


def _require_stored(folder: Path, names: Sequence[str], asked: Sparsity) -> None:
    shapes = dict(_stored_shapes(folder))
    if missing := [name for name in names if name not in shapes]:
        raise Unsupported(
            f"{len(missing)} linear weights are not in the files under the model's own names, first {missing[0]}",
            remedy="skip tied layers (`skip: [lm_head]`), or save the model again with `save_pretrained`",
        )
    size = asked.group[1] if asked.group else 1
    if uneven := [name for name in names if shapes[name][-1] % size]:
        raise Unsupported(
            f"{uneven[0]} has {shapes[uneven[0]][-1]} columns, which do not divide into groups of {size}",
            remedy="skip that layer, or choose another pattern",
        )


def _stored_shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            yield from ((name, stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
