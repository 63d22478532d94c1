"""Damage on purpose: what a gate must see, in a size that is known because it was put there.

A gate that has only ever met good models has not been tested. The four kinds are faults that were made before: weights
that drifted, a head that a conversion lost, groups of quantized weights read back in another length than they were
written in, and groups that were given their neighbour's scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, final, get_args

from harness.errors import Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Need

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Kind = Literal["noise", "zero_head", "wrong_group", "scale_shift"]
LABEL = "deliberately damaged: for testing a gate"
OUTPUT = "o_proj"
"""What Llama and its relatives call the layer that puts the heads together; its columns are the heads."""
SHIFTED_GROUP = 32


@final
@dataclass(frozen=True)
class PlantDamage:
    """Damages the linear weights in one of four ways. For testing a gate, and for nothing else.

    Does:   `noise` adds normal noise of `size` times the root mean square of each matrix; `zero_head` silences `size`
            attention heads, drawn from all layers; `wrong_group` rounds to 4 bits in groups of `size` columns and reads
            the codes back as if a group were twice as long; `scale_shift` rounds to 8 bits in groups of 32 and gives a
            share `size` of the groups the scale and zero point of the group before. Writes the stored type and the
            label that every report repeats.
    Needs:  a Hugging Face folder with safetensors files; no data. `zero_head` needs output layers called `o_proj`.
    Why:    a gate is tested by what it finds; see `harness gate selftest`.
    Known:  what a size costs in score depends on the model; it is measured, not promised. The output layer `lm_head`
            and the embedding stay as they are. Nothing here is emulated: the file is what it says, damaged.
    Source: none; faults of converters and kernels, made small enough to choose their size.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = False

    kind: Kind
    size: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(get_args(Kind))}")
        counted = self.kind in ("zero_head", "wrong_group")
        if not 0 < self.size < float("inf") or (counted and self.size != int(self.size)):
            allowed = "a whole number from 1" if counted else "a number above 0"
            raise ValueError(f"size of {self.kind} is {self.size!r}; allowed: {allowed}")
        if self.kind == "scale_shift" and self.size > 1:
            raise ValueError(f"size of scale_shift is {self.size!r}; allowed: a share of the groups, up to 1")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import copy_companions, require_unpacked, using_threads
        from harness.stages.linear_layers import linear_layers

        require_unpacked(source)
        layers = [name for name in linear_layers(source.path) if name.rsplit(".", 1)[-1] != "lm_head"]
        silenced = self._silenced(source.path, layers) if self.kind == "zero_head" else {}
        chosen = {f"{layer}.weight" for layer in layers if self.kind != "zero_head" or layer in silenced}
        moved, before = 0.0, 0.0
        with using_threads(context.hardware):
            for name, old_RC, new_RC in self._rewritten(source.path, out, (chosen, silenced), context):
                moved += float((new_RC.double() - old_RC.double()).square().sum())
                before += float(old_RC.double().square().sum())
                chosen.remove(name)
        if chosen or not moved:
            found = f"{len(chosen)} linear weights are not in the files" if chosen else "nothing was changed"
            raise Unsupported(f"{found}, so nothing would be tested", remedy="damage another kind, or a larger model")
        copy_companions(source.path, out)
        context.report.labels.append(LABEL)
        context.report.notes |= {"damage": self.kind, "size": self.size, "relative_squared_error": moved / before}

    def _rewritten(
        self, folder: Path, out: Path, chosen: tuple[set[str], Mapping[str, list[int]]], context: StageContext
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Copies every weight file with the chosen weights damaged; yields each of them as it was and as it is."""
        import torch
        from safetensors import safe_open
        from safetensors.torch import save_file

        wanted, silenced = set(chosen[0]), chosen[1]
        generator = torch.Generator().manual_seed(self.seed)
        for file in sorted(folder.glob("*.safetensors")):
            tensors: dict[str, Tensor] = {}
            with safe_open(file, framework="pt") as stored:
                metadata, names = stored.metadata(), sorted(stored.keys())
                for number, name in enumerate(names):
                    context.progress(number / len(names), f"{file.name}: {name}")
                    tensors[name] = old_RC = stored.get_tensor(name)
                    if name in wanted:
                        heads = silenced.get(name.removesuffix(".weight"), [])
                        new_RC = self._damaged(old_RC.float(), heads, _heads(folder), generator)
                        tensors[name] = new_RC.to(old_RC.dtype).contiguous()
                        yield name, old_RC, tensors[name]
            save_file(tensors, out / file.name, metadata=metadata)
        index = folder / "model.safetensors.index.json"
        if index.exists():
            (out / index.name).write_bytes(index.read_bytes())

    def _damaged(self, weight_RC: Tensor, silenced: list[int], heads: int, generator: torch.Generator) -> Tensor:
        import torch

        if self.kind == "noise":
            rms = weight_RC.square().mean().sqrt()
            return weight_RC + self.size * rms * torch.randn(weight_RC.shape, generator=generator)
        if self.kind == "zero_head":
            silent_RC = weight_RC.clone()
            silent_RC.view(weight_RC.shape[0], heads, -1)[:, silenced] = 0
            return silent_RC
        if self.kind == "wrong_group":
            return _read_in_wrong_groups(weight_RC, int(self.size))
        return _shifted(weight_RC, self.size, generator)

    def _silenced(self, folder: Path, layers: list[str]) -> dict[str, list[int]]:
        """Draws heads from all layers and gives them by output layer."""
        import torch

        outputs, heads = [layer for layer in layers if layer.rsplit(".", 1)[-1] == OUTPUT], _heads(folder)
        if int(self.size) > len(outputs) * heads:
            raise Unsupported(
                f"{len(outputs)} layers called {OUTPUT} with {heads} heads each: {int(self.size)} cannot be silenced",
                remedy="ask for fewer, or damage this family in another way",
            )
        order = torch.randperm(len(outputs) * heads, generator=torch.Generator().manual_seed(self.seed)).tolist()
        found: dict[str, list[int]] = {}
        for drawn in sorted(order[: int(self.size)]):
            found.setdefault(outputs[drawn // heads], []).append(drawn % heads)
        return found


def _heads(folder: Path) -> int:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return int(config.get_text_config(decoder=True).num_attention_heads)


def _read_in_wrong_groups(weight_RC: Tensor, group: int) -> Tensor:
    """Gives what a reader sees that takes groups to be twice as long as the writer's: the first half of the scales."""
    from harness.stages.quantize.grid import Codes, Grid, dequantize, quantize_groups

    written = quantize_groups(weight_RC, Grid(4, group, symmetric=False))
    wrong = Grid(4, 2 * group, symmetric=False)
    kept = wrong.groups(weight_RC.shape[1])
    return dequantize(Codes(written.codes, written.scales[:, :kept], written.zeros[:, :kept]), wrong)


def _shifted(weight_RC: Tensor, share: float, generator: torch.Generator) -> Tensor:
    import torch

    from harness.stages.quantize.grid import Codes, Grid, dequantize, quantize_groups

    grid = Grid(8, SHIFTED_GROUP, symmetric=False)
    written = quantize_groups(weight_RC, grid)
    hit_RG = torch.rand(written.scales.shape, generator=generator) < share
    scales_RG = torch.where(hit_RG, written.scales.roll(1, dims=1), written.scales)
    zeros_RG = torch.where(hit_RG, written.zeros.roll(1, dims=1), written.zeros)
    return dequantize(Codes(written.codes, scales_RG, zeros_RG), grid)
