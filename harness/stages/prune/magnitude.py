"""Magnitude pruning: the smallest weights become zero.

The oldest pruning rule and the control for every other: a small weight changes the output little, if its inputs are no
larger than the others. In language models they are: a few input channels are large, and the rule misses them, which is
what Wanda and SparseGPT repair. It needs no data and takes seconds.

Shapes: R rows (outputs), C columns (inputs).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final, get_args

from harness.interfaces import Artifact, StageContext
from harness.spec import Need
from harness.stages.prune._sparsity import UNSTRUCTURED, Sparsity, prunable_weights
from harness.stages.prune._zeroing import Tally, write_pruned

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["row", "matrix", "global"]


@final
@dataclass(frozen=True, kw_only=True)
class PruneMagnitude(Sparsity):
    """Zeroes the linear weights of the decoder with the lowest absolute value.

    Does:   compares |w| within a row, within a matrix or over all pruned matrices (`scope`), or within every m columns
            of a row (`pattern: n:m`, n of them become zero), and zeroes exactly the asked fraction; of equals those go
            first that come first. The embedding, the norms and the layers in `skip` stay as they are.
    Needs:  a Hugging Face folder with safetensors files; no data, and memory for one file at a time.
    Why:    the baseline of prune.wanda and prune.sparsegpt, and the sparse start of prune, distil, quantize.
    Known:  the file is dense and as large as before, and no runtime here is faster for the zeros. Published baselines
            use scope `matrix`; Wanda's comparison group is the row. With scope `global` single matrices differ from the
            asked sparsity, and some may lose nearly all; the notes give the lowest and the highest. `n:m` counts zeros;
            other texts count the weights that stay, which for 2:4 is the same. Layers that are no `Linear` modules
            (fused experts, GPT-2's Conv1D) are not pruned; the notes say how sparse the whole is.
    Source: Han et al., arXiv 1506.02626; as the baseline in SparseGPT, arXiv 2301.00774, and Wanda, arXiv 2306.11695.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = False

    scope: Scope = "matrix"

    def __post_init__(self) -> None:
        self.require_allowed()
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope is {self.scope!r}; allowed: {', '.join(get_args(Scope))}")
        if self.pattern != UNSTRUCTURED and self.scope == "global":
            raise ValueError(f"scope is 'global' and pattern is {self.pattern}, which compares within groups of a row")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import using_threads

        names = prunable_weights(source, self)
        with using_threads(context.hardware):
            choose = self._choice(source, names)

            def zero(_: str, weight_RC: Tensor) -> Tensor:
                on_device_RC = weight_RC.to(context.hardware.device)
                return on_device_RC.masked_fill(choose(on_device_RC.abs()), 0)

            tally = Tally(self, set(names), each=self.scope != "global")
            write_pruned(source, out, zero, tally=tally, context=context)

    def _choice(self, source: Artifact, names: Sequence[str]) -> Callable[[Tensor], Tensor]:
        """Gives a function from the magnitudes (R, C) of a weight to the mask of those that go."""
        if self.group:
            zeros, size = self.group
            return lambda size_RC: lowest(size_RC.reshape(-1, size), zeros).reshape(size_RC.shape)
        if self.scope == "row":
            return lambda size_RC: lowest(size_RC, round(self.sparsity * size_RC.shape[1]))
        if self.scope == "matrix":
            return lambda size_RC: lowest(size_RC.flatten(), round(self.sparsity * size_RC.numel())).reshape(
                size_RC.shape
            )
        return _below(lambda: _magnitudes(source.path, set(names)), self.sparsity)


def lowest(magnitudes: Tensor, count: int) -> Tensor:
    """Gives the mask of the `count` lowest along the last dimension; of equals those that come first."""
    order = magnitudes.argsort(dim=-1, stable=True)[..., :count]
    return magnitudes.new_zeros(magnitudes.shape).bool().scatter_(-1, order, True)


def threshold(magnitudes: Callable[[], Iterable[Tensor]], sparsity: float) -> tuple[float, int]:
    """Gives the largest magnitude that goes, and how many of exactly that magnitude go. Reads the weights twice.

    Bits of positive float32 numbers are ordered as the numbers are, so counting the upper half of the bits, and then
    the lower half within the one bin where the count is reached, finds the exact value without sorting everything.
    """
    import torch

    upper = sum(torch.bincount(_bits(part) >> 16, minlength=2**15) for part in magnitudes())
    assert isinstance(upper, torch.Tensor), "there is at least one weight"
    bin_upper, left = _reach(upper, round(sparsity * int(upper.sum())))
    in_bin = (bits[bits >> 16 == bin_upper] & 0xFFFF for bits in map(_bits, magnitudes()))
    lower = sum(torch.bincount(part, minlength=2**16) for part in in_bin)
    assert isinstance(lower, torch.Tensor)
    bin_lower, left = _reach(lower, left)
    value = torch.tensor([bin_upper << 16 | bin_lower], dtype=torch.int32).view(torch.float32)
    return float(value), left


def _bits(magnitudes: Tensor) -> Tensor:
    import torch

    return magnitudes.float().flatten().view(torch.int32)


def _reach(histogram: Tensor, count: int) -> tuple[int, int]:
    """Gives the bin in which the running total reaches `count`, and how much of that bin it takes."""
    import torch

    total = histogram.cumsum(0)
    reached = int(torch.searchsorted(total, count))
    return reached, count - int(total[reached] - histogram[reached])


def _below(magnitudes: Callable[[], Iterable[Tensor]], sparsity: float) -> Callable[[Tensor], Tensor]:
    """Gives a function that masks what is under one threshold for all weights, and of equals the first it meets."""
    value, left = threshold(magnitudes, sparsity)

    def mask(size_RC: Tensor) -> Tensor:
        nonlocal left
        equal_RC = size_RC.float() == value
        first_RC = equal_RC & (equal_RC.flatten().cumsum(0).reshape(size_RC.shape) <= left)
        left -= int(first_RC.sum())
        return (size_RC.float() < value) | first_RC

    return mask


def _magnitudes(folder: Path, names: set[str]) -> Iterable[Tensor]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118
                if name in names:
                    yield stored.get_tensor(name).abs()
