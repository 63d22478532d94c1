"""Names of tools that their authors archived, and the stages that took their place.

People write the names they know. `autogptq` and `autoawq` name libraries that are no longer maintained and two layouts
of checkpoints that live on: those layouts are written by the libraries that their authors point to. So a matrix may
use the old names; it is told what they stand for, and records name what really ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from harness.spec import Pipeline


@dataclass(frozen=True)
class Successor:
    """The stage that a name stands for now, and what became of the tool of that name."""

    stage: str
    status: str


_AUTOGPTQ = Successor(
    "quantize.gptqmodel",
    "AutoGPTQ is archived upstream and names GPTQModel as its successor, which writes the same layout",
)
_AUTOAWQ = Successor(
    "quantize.gptqmodel_awq",
    "AutoAWQ is archived upstream and names llm-compressor as its successor (quantize.awq); its own layout (gemm) is "
    "written by GPTQModel",
)
STAGES: Mapping[str, Successor] = {
    "autogptq": _AUTOGPTQ,
    "quantize.autogptq": _AUTOGPTQ,
    "autoawq": _AUTOAWQ,
    "quantize.autoawq": _AUTOAWQ,
}


def replaced(pipelines: tuple[Pipeline, ...]) -> tuple[tuple[Pipeline, ...], tuple[str, ...]]:
    """Gives pipelines with archived names replaced, and a sentence for every name that was."""
    used = {use.use for pipeline in pipelines for use in pipeline.stages} & set(STAGES)
    notes = tuple(f"{name} -> {STAGES[name].stage}: {STAGES[name].status}" for name in sorted(used))
    return tuple(_replaced(pipeline) for pipeline in pipelines), notes


def _replaced(pipeline: Pipeline) -> Pipeline:
    stages = tuple(
        use.model_copy(update={"use": STAGES[use.use].stage}) if use.use in STAGES else use for use in pipeline.stages
    )
    return pipeline.model_copy(update={"stages": stages})
