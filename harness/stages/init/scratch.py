"""A student from nothing: random weights in the shape that is asked for, with the incoming model's tokenizer.

It is the control for every other way to get a student. A pruned student starts with what its teacher's weights know;
one that starts from noise has only the teacher's answers, so the difference after the same distillation is what pruning
carried over.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Need
from harness.stages.prune.decoder import changed_config
from harness.stages.prune.depth import PER_LAYER_SETTINGS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# The arguments by the name that a decoder's configuration gives them.
SETTINGS = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "intermediate": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}


@final
@dataclass(frozen=True)
class InitScratch:
    """Replaces the model by a random one of another shape that speaks the same vocabulary.

    Does:   takes the incoming configuration with other `layers`, `hidden`, `intermediate`, `heads`, `kv_heads` and
            `head_dim` (what is not given stays as it is) and lets transformers draw the weights under the cell's seed,
            in float32, then stored in the incoming type. Tokenizer, chat template and vocabulary are the incoming ones.
    Needs:  a Hugging Face folder whose configuration has these settings under their usual names.
    Why:    the control for pruned students: what does starting from the teacher's weights give?
    Known:  the scale of the weights is the configuration's `initializer_range`, whatever the width; models are often
            trained with a larger one when they are narrower. Where the configuration has a `head_dim` it stays even
            when `hidden` shrinks, unless another is given. The vocabulary stays whole, so the embedding is most of a
            small student.
    Source: the initialization of transformers' model classes (`PreTrainedModel.post_init`).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = False

    layers: int | None = None
    hidden: int | None = None
    intermediate: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None

    def __post_init__(self) -> None:
        for name, size in self._asked.items():
            if size < 1:
                raise ValueError(f"{name} is {size!r}; allowed: a number from 1, or null for the incoming model's")

    @property
    def needs(self) -> tuple[Need, ...]:
        return ()

    @property
    def _asked(self) -> dict[str, int]:
        given = {
            "layers": self.layers,
            "hidden": self.hidden,
            "intermediate": self.intermediate,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }
        return {name: size for name, size in given.items() if size is not None}

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        from harness.stages.hf_folder import reproducible, require_unpacked, save_model

        require_unpacked(source)
        config = AutoConfig.from_pretrained(source.path, local_files_only=True, trust_remote_code=False)
        shaped = self._shaped(config)
        context.progress(None, "drawing random weights")
        with reproducible(context):
            model: Any = AutoModelForCausalLM.from_config(shaped, dtype=torch.float32, trust_remote_code=False)
            save_model(model, out, like=source)
        context.report.notes |= {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "shape": {name: getattr(shaped, key, None) for name, key in SETTINGS.items()},
        }

    def _shaped(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Gives the configuration with the sizes asked for.

        Raises Unsupported when it has no such setting and SpecError when transformers refuses the sizes.
        """
        before = config.to_dict()
        if config.get_text_config(decoder=True) is not config:
            raise Unsupported(
                f"a {config.model_type} model has parts beside its decoder", remedy="use a model of text only"
            )
        if absent := sorted(name for name in self._asked if SETTINGS[name] not in before):
            raise Unsupported(
                f"the configuration of a {config.model_type} model has no {SETTINGS[absent[0]]}",
                remedy=f"leave out `{absent[0]}`",
            )
        changed: dict[str, object] = {SETTINGS[name]: size for name, size in self._asked.items()}
        if self.layers is not None:
            changed |= _per_layer(before, self.layers)
        shaped = changed_config(config, changed)
        heads, kv_heads = (getattr(shaped, SETTINGS[name], None) for name in ("heads", "kv_heads"))
        if isinstance(heads, int) and isinstance(kv_heads, int) and heads % kv_heads:
            raise SpecError(
                f"{heads} query heads cannot share {kv_heads} key-value heads evenly",
                key="kv_heads",
                found=kv_heads,
                allowed=f"numbers that divide {heads}",
            )
        return shaped


def _per_layer(before: dict[str, Any], layers: int) -> dict[str, Any]:
    """Gives the lists with one entry a layer for another number of layers: cut, or longer when all entries are equal.

    Raises Unsupported when a longer list would have to be made up.
    """
    result = {}
    for setting in PER_LAYER_SETTINGS:
        values = before.get(setting)
        if not isinstance(values, list) or len(values) != before["num_hidden_layers"]:
            continue
        if layers > len(values) and any(value != values[0] for value in values):
            raise Unsupported(
                f"the layers differ by `{setting}`, and nothing says what layers beyond {len(values)} would be",
                remedy=f"ask for at most {len(values)} layers",
            )
        result[setting] = (values * layers)[:layers]
    return result
