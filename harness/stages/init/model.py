"""A student that exists already: a smaller model of the same family takes the place of the one that came in.

Families are often published in several sizes with one vocabulary. The smaller one is the usual student of the larger
one, and what distillation adds to it is compared with what it could do by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, final

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import REFERENCE, Need


@final
@dataclass(frozen=True)
class InitModel:
    """Replaces the model by another one with the same vocabulary.

    Does:   fetches `source` (as in a matrix: `hub:org/name`, `path:/a/folder`, with `revision` and `args`), applies
            `stages` to it, and takes its files as they are.
    Needs:  that model, as a Hugging Face folder with plain weights and the incoming model's vocabulary.
    Why:    "the student is an existing smaller model": distil a family's large member into its small one.
    Known:  vocabularies are compared token by token as the tokenizers give them. Models of one family can pad their
            logits to different widths all the same; distillers of logits refuse such a pair when they load it.
    Source: none; files are copied.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("transformers",)
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "hf"
    emulated: ClassVar[bool] = False

    source: str
    revision: str | None = None
    args: Mapping[str, object] = field(default_factory=dict)
    stages: Sequence[Mapping[str, object]] = ()

    def __post_init__(self) -> None:
        scheme, colon, reference = self.source.partition(":")
        if self.source != REFERENCE and not (scheme and colon and reference):
            raise ValueError(
                f"source is {self.source!r}; allowed: a source such as hub:org/name or path:/a/folder, "
                f"or `{REFERENCE}` with `stages`"
            )
        if self.source == REFERENCE and not self.stages:
            raise ValueError(f"source is {REFERENCE!r} without stages, which is the model that came in; give `stages`")
        self._need()

    @property
    def needs(self) -> tuple[Need, ...]:
        return (self._need(),)

    def _need(self) -> Need:
        asked: dict[str, Any] = {"source": self.source, "revision": self.revision, "args": dict(self.args)}
        return Need.model_validate({"name": "model", **asked, "stages": tuple(self.stages)})

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.sources.model_files import link_or_copy
        from harness.stages.hf_folder import load_tokenizer, require_unpacked

        model = context.artifacts["model"]
        if model.format != "hf" or model.facts.emulated:
            raise Unsupported(
                f"the model that takes the place is quantized (format {model.format})",
                remedy="quantize after this stage, not inside it",
            )
        require_unpacked(model)
        before, after = (load_tokenizer(artifact).get_vocab() for artifact in (source, model))
        if before != after:
            differing = sum(before.get(token) != after.get(token) for token in before.keys() | after.keys())
            raise SpecError(
                f"the two models have different vocabularies ({differing} tokens differ)",
                key="source",
                found=self.source,
                remedy="choose a model of the same family, or learn from generated text (`distill.sequence`)",
            )
        for file in sorted(model.path.iterdir()):
            if file.is_file():
                context.progress(None, f"taking {file.name}")
                link_or_copy(file, out / file.name)
        context.report.labels += [label for label in model.facts.labels if label not in context.report.labels]
        context.report.notes["replaced_by"] = self.source
