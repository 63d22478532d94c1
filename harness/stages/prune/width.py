"""Width pruning: MLP neurons, attention heads and hidden channels that speak least are cut out of every layer.

A narrower model keeps all its layers and does less work in each. The weakest parts are found by their activations on
text, without a gradient, and cut out of the weight matrices, so that the result is an ordinary smaller model that is
smaller and faster in every runtime. Distillation then repairs it. Minitron found that at equal size a narrower model
answers better than a shallower one, which in turn runs faster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import SpecError
from harness.interfaces import SAME, Artifact, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need
from harness.spec import Need, digest
from harness.stages.prune.calibration import calibration_blocks, require_text

if TYPE_CHECKING:
    from pydantic import JsonValue
    from torch import Tensor

    from harness.stages.prune._importance import Strengths
    from harness.stages.prune._surgery import Kept
    from harness.stages.prune.decoder import Sizes


@final
@dataclass(frozen=True)
class PruneWidth:
    """Leaves the MLP neurons, attention heads and hidden channels with the strongest activations.

    Does:   runs `tokens` tokens of the corpus through the model in blocks of `sequence` and scores every channel: mean
            of |x| over the positions of a block, Euclidean norm over the blocks. Neurons are scored before the down
            projection and heads before the output projection, in each layer by itself; hidden channels after the norms
            of all layers together. Leaves `intermediate` neurons and `heads` query heads a layer and `hidden` channels;
            what is not given stays. Key-value heads follow: whole groups go, so `heads` is a multiple of the group;
            with `kv_heads` so many groups are left, each with as many query heads as the others. Writes a smaller
            model in the stored type, with the head width written into the configuration. Weights on a grid stay on it.
    Needs:  a corpus (the training split); a Llama, Mistral, Qwen2 or Qwen3 model, embeddings tied or not.
    Why:    the other way to a smaller student; the pruning step of prune, distil, quantize.
    Known:  scores are taken once, on the whole model, and need repair by distillation. The paper's formula for neurons
            takes the first projection's output; its published code takes what enters the second, and so do we. The code
            sums hidden channels over the layers' norms and leaves the final norm out. A root-mean-square norm over
            fewer channels divides by another mean: the channels left are the strong ones, so they come out weaker than
            before, which nothing here corrects. Llama's configuration wants `hidden` to be a multiple of `heads`, and
            runtimes that compute the head width as hidden / heads cannot load a pruned model. Rows that are no multiple
            of 256 keep llama.cpp from its k-quants.
    Source: Minitron, arXiv 2407.14679, section 2.2; NVIDIA Model-Optimizer, `torch/prune/plugins/mcore_minitron.py`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = SAME
    emulated: ClassVar[bool] = False

    intermediate: int | None = None
    heads: int | None = None
    hidden: int | None = None
    kv_heads: int | None = None
    corpus: CorpusArgument = "docstrings:default"
    tokens: int = 16384
    sequence: int = 512

    def __post_init__(self) -> None:
        given = {"intermediate": self.intermediate, "heads": self.heads, "hidden": self.hidden}
        if all(size is None for size in given.values()):
            raise ValueError("nothing to prune; give at least one of `intermediate`, `heads` and `hidden`")
        for name, size in (given | {"kv_heads": self.kv_heads}).items():
            if size is not None and size < 1:
                raise ValueError(f"{name} is {size!r}; allowed: how many to leave, from 1")
        if self.kv_heads is not None and (self.heads is None or self.heads % self.kv_heads):
            raise ValueError(f"kv_heads is {self.kv_heads}, heads is {self.heads}; allowed: heads a multiple of it")
        require_text(self.corpus, tokens=self.tokens, sequence=self.sequence)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.grids import read_grids, report_grids
        from harness.stages.hf_folder import load_model, save_model, stored_dtype, using_threads
        from harness.stages.prune._importance import measure_strengths
        from harness.stages.prune._surgery import choose, cut_grids, cut_model, require_cuttable
        from harness.stages.prune.decoder import decoder_sizes, resized_config

        with using_threads(context.hardware):
            grids = read_grids(source)
            model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
            sizes = decoder_sizes(model)
            target = self._target(sizes)
            resized_config(model.config, target)
            require_cuttable(grids, sizes, target)
            blocks_NT = calibration_blocks(source, tokens=self.tokens, sequence=self.sequence, context=context)
            strengths = measure_strengths(model, sizes, blocks_NT=blocks_NT, context=context)
            kept = choose(strengths, sizes, target)
            small = cut_model(model, kept, target=target)
            save_model(small, out, like=source)
            report_grids(out, cut_grids(grids, kept), report=context.report)
        context.report.tokens += blocks_NT.size
        context.report.notes |= {
            "parameters_before": _parameters(model),
            "parameters_after": _parameters(small),
            "width": _told(sizes, strengths, kept),
        }

    def _target(self, sizes: Sizes) -> Sizes:
        """Gives the sizes to be left. Raises SpecError, with what is allowed, for those that do not fit the model."""
        for name, left, has in (
            ("intermediate", self.intermediate, sizes.intermediate),
            ("heads", self.heads, sizes.heads),
            ("hidden", self.hidden, sizes.hidden),
        ):
            if left is not None and left >= has:
                raise SpecError(
                    f"the model's {name} is {has}, so {left} is nothing to prune to",
                    key=name,
                    found=left,
                    allowed=f"1 to {has - 1}",
                )
        heads, kv_heads = self._heads(sizes)
        return replace(
            sizes,
            intermediate=self.intermediate or sizes.intermediate,
            hidden=self.hidden or sizes.hidden,
            heads=heads,
            kv_heads=kv_heads,
        )

    def _heads(self, sizes: Sizes) -> tuple[int, int]:
        """Gives how many query and key-value heads are left. Raises SpecError when they make no equal groups."""
        if self.heads is None:
            return sizes.heads, sizes.kv_heads
        if self.kv_heads is None and self.heads % sizes.group:
            raise SpecError(
                f"{sizes.group} query heads share a key-value head, so {self.heads} are no whole groups",
                key="heads",
                found=self.heads,
                allowed=f"multiples of {sizes.group}",
                remedy=f"or give `kv_heads` (up to {sizes.kv_heads}) and thin every group alike",
            )
        kv_heads = self.kv_heads or self.heads // sizes.group
        if kv_heads > sizes.kv_heads or self.heads // kv_heads > sizes.group:
            raise SpecError(
                f"the model has {sizes.kv_heads} groups of {sizes.group} query heads",
                key="kv_heads",
                found=kv_heads,
                allowed=f"up to {sizes.kv_heads} groups, and heads / kv_heads up to {sizes.group}",
            )
        return self.heads, kv_heads


def _parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _told(sizes: Sizes, strengths: Strengths, kept: Kept) -> dict[str, JsonValue]:
    """Gives for every axis what was left of it: how many, which (as a digest), and their share of all strength."""
    told: dict[str, JsonValue] = {}
    for name, before, layers, scores_LX in (
        ("intermediate", sizes.intermediate, kept.neurons, strengths.neurons_LI),
        ("heads", sizes.heads, kept.heads, strengths.heads_LH),
        ("hidden", sizes.hidden, (kept.hidden,), strengths.hidden_C[None]),
    ):
        if len(layers[0]) < before:
            told[name] = {
                "before": before,
                "after": len(layers[0]),
                "kept": digest(layers),
                "strength_kept": [_share(scores_X, left) for scores_X, left in zip(scores_LX, layers, strict=True)],
            }
    return told


def _share(scores_X: Tensor, left: tuple[int, ...]) -> float | None:
    """Gives the share of the strength that is left; None when nothing had any."""
    whole = float(scores_X.sum())
    return float(scores_X[list(left)].sum()) / whole if whole else None
