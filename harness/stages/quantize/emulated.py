"""The shortest way to a quantizer of one's own: say how a weight is rounded, and inherit the rest.

What a new idea needs first is a number for what it costs in quality, long before anybody packs it. So a subclass gives
the rounded weight in floats, and this base chooses the layers, refuses what cannot be rounded, writes the folder back
in the type it came in, and reports what was done. Results are `emulated`: their quality is real, their speed is not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Need

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EmulatedQuantizer(ABC):
    """Rounds the linear weights, but those of `ignore`, one by one by `rounded`, and writes them back unpacked.

    `ignore` holds modules' full names, their last parts, or globs over the full names. Subclasses are final frozen
    dataclasses with a docstring under the headings Does, Needs, Why, Known and Source.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = None
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = True

    ignore: Sequence[str] = field(default=("lm_head",))

    @property
    def needs(self) -> tuple[Need, ...]:
        """Nothing but the model."""
        return ()

    @abstractmethod
    def rounded(self, weight_RC: Tensor) -> Tensor:
        """Gives a float32 weight (R outputs, C inputs) as the quantizer would have it computed with."""

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        """Rounds and writes. Raises ModelError when no weight changed or one became no number."""
        import torch

        from harness.stages.hf_folder import load_model, reproducible, save_model
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.recipe import fits

        architecture = read_architecture(source.path)
        layers = [name for name in architecture.linears if not any(fits(one, name) for one in self.ignore)]
        if architecture.tied and architecture.head in layers:
            raise Unsupported(
                f"{architecture.head} is the embedding too",
                remedy=f"leave it as it is: `ignore: [{architecture.head}]`",
            )
        changed = 0
        with reproducible(context), torch.no_grad():
            model = load_model(source, dtype=torch.float32, hardware=context.hardware)
            for number, name in enumerate(layers):
                context.progress(number / len(layers), name)
                weight_RC = model.get_parameter(f"{name}.weight")
                after_RC = self.rounded(weight_RC.clone())
                if after_RC.shape != weight_RC.shape or not after_RC.isfinite().all():
                    raise ModelError(f"{name} was rounded to another shape or to what is no number")
                changed += int(not torch.equal(after_RC, weight_RC))
                weight_RC.copy_(after_RC)
            if not changed:
                raise ModelError(f"none of {len(layers)} linear weights changed, so nothing was quantized")
            save_model(model, out, like=source)
        context.report.notes |= {"layers": len(layers), "layers_changed": changed}
