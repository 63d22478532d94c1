"""Students and teachers in memory: loaded for training, trained the way their weights allow, saved as they came.

A student's weights are float32 while it is trained and are saved in the type in which they were stored. Weights on a
quantization grid are trained through their rounding or frozen, as the recipe says, and leave on the grid. Adapters
(LoRA) are merged into the weights before saving, so that what is measured afterwards is a plain model.

Shapes: B blocks, T tokens, N = B * T positions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.losses import NO_LABEL
from harness.stages.distill.recipe import Recipe
from harness.stages.grids import Gridded, freeze, read_grids, report_grids, settle, train_through
from harness.stages.hf_folder import load_model, load_tokenizer, save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Keeps logits of a large vocabulary from being held twice in float32.
POSITIONS_AT_A_TIME = 128
LORA_ALPHA_OVER_RANK = 2


@dataclass(frozen=True)
class Reader:
    """A model that reads tokens: a teacher, or the student. `autocast` computes in bfloat16."""

    model: PreTrainedModel
    autocast: bool

    def logits(self, tokens_BT: Tensor, *, mask_BT: Tensor | None = None) -> Tensor:
        """Gives logits (B * T, V) after every token."""
        return self.run(tokens_BT, mask_BT=mask_BT).logits.flatten(0, 1)

    def run(self, tokens_BT: Tensor, *, mask_BT: Tensor | None = None, **asked: bool) -> Any:
        """Gives all that transformers gives for `asked` (`output_hidden_states=True`)."""
        with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.model(tokens_BT, attention_mask=mask_BT, use_cache=False, **asked)


@dataclass(frozen=True)
class Student(Reader):
    """A model to be trained: its reader, where it came from, and the grids its weights lie on."""

    source: Artifact
    grids: dict[str, Gridded]
    lora: bool

    def save(self, out: Path, *, context: StageContext) -> None:
        """Writes the trained model into `out` in the format and type in which it came."""
        model = cast("Any", self.model)
        grids = settle(model, self.grids)
        if self.lora:
            model = model.merge_and_unload()
        save_model(model, out, like=self.source)
        report_grids(out, grids, report=context.report)


def load_student(recipe: Recipe, source: Artifact, *, context: StageContext) -> Student:
    """Gives the model to train, float32, with the parameters that are trained requiring a gradient.

    Raises Unsupported for adapters on a model whose weights lie on a grid: merging them would leave it.
    """
    grids = read_grids(source)
    model = load_model(source, dtype=torch.float32, hardware=context.hardware)
    if grids and recipe.lora:
        raise Unsupported(
            "adapters cannot be merged into weights that lie on a quantization grid",
            remedy="leave out `lora`, or put this stage before the one that quantizes",
        )
    if grids and recipe.quantized == "frozen":
        freeze(model, grids)
    elif grids:
        train_through(model, grids)
    elif recipe.lora:
        model = _with_adapters(model, recipe.lora)
    context.report.notes["parameters_trained"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Student(model, recipe.autocast, source, grids, recipe.lora is not None)


def load_teacher(recipe: Recipe, artifact: Artifact, *, context: StageContext) -> Reader:
    """Gives a frozen model, in bfloat16 with `autocast`, else float32."""
    dtype = torch.bfloat16 if recipe.autocast else torch.float32
    model = load_model(artifact, dtype=dtype, hardware=context.hardware)
    return Reader(model.requires_grad_(False), recipe.autocast)


def shared_tokenizer(source: Artifact, *teachers: Artifact) -> PreTrainedTokenizerBase:
    """Gives the student's tokenizer. Raises SpecError when a teacher's is another."""
    tokenizer = load_tokenizer(source)
    for teacher in teachers:
        if tokenizer.get_vocab() != load_tokenizer(teacher).get_vocab():
            raise SpecError(
                "teacher and student have different vocabularies, so their logits cannot be compared",
                file=source.path,
                remedy="distil within one family, or learn from generated text (`distill.sequence`)",
            )
    return tokenizer


def require_same_width(student: Reader, teacher: Reader) -> None:
    """Raises SpecError when the two score vocabularies of different sizes."""
    sizes = [reader.model.config.get_text_config(decoder=True).vocab_size for reader in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise SpecError(
            "teacher and student score vocabularies of different sizes", found=sizes[0], allowed=str(sizes[1])
        )


def next_tokens(tokens_BT: Tensor) -> Tensor:
    """Gives for every position the token that follows it (B * T,), NO_LABEL at the end of a block."""
    labels_BT = torch.full_like(tokens_BT, NO_LABEL)
    labels_BT[:, :-1] = tokens_BT[:, 1:]
    return labels_BT.flatten()


def _with_adapters(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Gives the model with adapters of a rank on every linear layer but the head, and only they are trained."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=rank, lora_alpha=LORA_ALPHA_OVER_RANK * rank, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    return cast("PreTrainedModel", get_peft_model(model, settings))
