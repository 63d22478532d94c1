"""Depth pruning: whole decoder layers are removed, those first that change the residual stream least.

A decoder layer adds something to the stream that runs through it. A layer whose output points where its input pointed
adds little, and the model survives without it, more so after a short distillation. Unlike zeroed weights, a removed
layer makes the model smaller and faster in every runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import SAME, Artifact, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need
from harness.spec import Need
from harness.stages.prune.calibration import calibration_blocks, read_through, require_text

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks
    from harness.stages.grids import Gridded

# Lists in a configuration that hold one entry a layer.
PER_LAYER_SETTINGS = ("layer_types", "mlp_layer_types", "no_rope_layers")


@final
@dataclass(frozen=True)
class PruneDepth:
    """Removes the decoder layers with the lowest block influence.

    Does:   runs `tokens` tokens of the corpus through the model in blocks of `sequence`, measures for each layer
            BI = 1 - mean cos(input, output) over all positions, and drops the `layers` lowest (or all but `keep`); of
            equals the later one goes. Renumbers the rest, updates the configuration, writes the stored type. Weights on
            a grid stay on it.
    Needs:  a corpus (the training split), a Hugging Face folder whose decoder layers are one list.
    Why:    the pruning step of prune, distil, quantize; it makes the smaller student that distillation then repairs.
    Known:  scores are taken once, on the whole model; removing one layer changes the influence of its neighbours, and
            ShortGPT's one-shot order is not the best subset. Without distillation perplexity rises steeply beyond a
            tenth of the layers.
    Source: ShortGPT, arXiv 2403.03853, equation 1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = SAME
    emulated: ClassVar[bool] = False

    layers: int | None = None
    keep: int | None = None
    corpus: CorpusArgument = "docstrings:default"
    tokens: int = 16384
    sequence: int = 512

    def __post_init__(self) -> None:
        if (self.layers is None) == (self.keep is None):
            raise ValueError("give either `layers` (how many to remove) or `keep` (how many to leave), not both")
        if (self.layers if self.layers is not None else self.keep or 0) < 1:
            raise ValueError(f"layers is {self.layers!r}, keep is {self.keep!r}; allowed: a number from 1")
        require_text(self.corpus, tokens=self.tokens, sequence=self.sequence)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.grids import read_grids, report_grids
        from harness.stages.hf_folder import load_model, save_model, stored_dtype, using_threads

        with using_threads(context.hardware):
            grids = read_grids(source)
            model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
            name, count = decoder_layers(model)
            remove = self._number_to_remove(count)
            blocks_NT = calibration_blocks(source, tokens=self.tokens, sequence=self.sequence, context=context)
            influence = block_influence(model, blocks_NT, context=context)
            removed = lowest(influence, remove)
            remove_layers(model, name, removed)
            save_model(model, out, like=source)
            report_grids(out, renamed(grids, name, removed), report=context.report)
        context.report.tokens += blocks_NT.size
        context.report.notes |= {
            "layers_before": count,
            "layers_removed": list(removed),
            "block_influence": list(influence),
        }

    def _number_to_remove(self, count: int) -> int:
        remove = self.layers if self.layers is not None else count - (self.keep or 0)
        if not 1 <= remove < count:
            raise SpecError(
                f"the model has {count} layers, so {remove} cannot be removed",
                key="layers" if self.layers is not None else "keep",
                found=self.layers if self.layers is not None else self.keep,
                allowed=f"1 to {count - 1}",
            )
        return remove


def decoder_layers(model: PreTrainedModel) -> tuple[str, int]:
    """Gives the name and the length of the list of decoder layers: the one list as long as the configuration says.

    Raises Unsupported when no list, or more than one, is that long.
    """
    import torch

    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    found = [name for name, module in lists if len(module) == count]
    if len(found) != 1:
        raise Unsupported(
            f"the configuration says {count} layers; module lists that long: {', '.join(found) or 'none'}",
            remedy="prune this family with a stage of its own",
        )
    return found[0], count


def block_influence(model: PreTrainedModel, blocks_NT: Blocks, *, context: StageContext) -> list[float]:
    """Gives 1 - mean cosine of input and output for each decoder layer over all positions, computed in float32.

    Hooks on the layers read both, because the last of transformers' `hidden_states` is taken after the final norm.
    """
    import torch

    layers = list(model.get_submodule(decoder_layers(model)[0]).children())
    sums = [0.0] * len(layers)

    def measure(index: int) -> Any:
        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[index] += float(cosine.double().sum())

        return hook

    handles = [layer.register_forward_hook(measure(i), with_kwargs=True) for i, layer in enumerate(layers)]
    try:
        read_through(model, blocks_NT, progress=context.progress, doing="block influence")
    finally:
        for handle in handles:
            handle.remove()
    influence = [1 - total / blocks_NT.size for total in sums]
    if any(score != score for score in influence):
        raise ModelError("hidden states are not finite: block influence is NaN")
    return influence


def lowest(influence: Sequence[float], count: int) -> tuple[int, ...]:
    """Gives the indices of the lowest scores in ascending order; of equals the later layers."""
    order = sorted(range(len(influence)), key=lambda index: (influence[index], -index))
    return tuple(sorted(order[:count]))


def remove_layers(model: PreTrainedModel, name: str, removed: Sequence[int]) -> None:
    """Takes layers out of the list called `name`, renumbers the others and makes the configuration agree."""
    import torch

    layers = model.get_submodule(name)
    assert isinstance(layers, torch.nn.ModuleList)
    kept = [index for index in range(len(layers)) if index not in removed]
    config = model.config.get_text_config(decoder=True)
    for setting in PER_LAYER_SETTINGS:
        values = getattr(config, setting, None)
        if isinstance(values, list) and len(values) == len(layers):
            setattr(config, setting, [values[index] for index in kept])
    config.num_hidden_layers = len(kept)
    model.set_submodule(name, torch.nn.ModuleList([layers[index] for index in kept]))
    for position, layer in enumerate(model.get_submodule(name).children()):
        for module in layer.modules():
            if "layer_idx" in vars(module):
                vars(module)["layer_idx"] = position  # the key-value cache is addressed by it


def renamed(grids: Mapping[str, Gridded], name: str, removed: Sequence[int]) -> dict[str, Gridded]:
    """Gives the grids of the weights that are left after `remove_layers`, under their new names."""
    result = {}
    for weight, gridded in grids.items():
        inside = weight.removeprefix(f"{name}.")
        number, _, rest = inside.partition(".")
        if inside == weight:
            result[weight] = gridded
        elif int(number) not in removed:
            position = int(number) - sum(gone < int(number) for gone in removed)
            result[f"{name}.{position}.{rest}"] = gridded
    return result
