"""Distillation of what goes on inside: hidden states, attention, embeddings and the relations between tokens.

Logits say what a teacher concludes; its hidden states and attention say how it got there. A student that is made to
repeat them, layer by layer (TinyBERT) or in one layer's relations between tokens (MiniLM), gets a signal at every depth
instead of one that has to travel down from the head. Where teacher and student differ in width, a linear projection
stands between them while training and is thrown away; relations need none, since they compare tokens with each other.

Layers count from 1; state 0 is the embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from harness.errors import SpecError, Unsupported
from harness.interfaces import SAME, Artifact, StageContext
from harness.sources.corpus import corpus_need
from harness.spec import Need
from harness.stages.distill.recipe import Recipe, refuse, teacher_need

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from harness.stages.distill.features import Features
    from harness.stages.distill.representation import Comparison, Parts
    from harness.stages.distill.student import Reader

FORMS = ("scores", "probabilities")
# `true` is the first form that was published.
RELATIONS: Mapping[bool | str, str | None] = {False: None, True: "minilm", "minilm": "minilm", "minilm2": "minilm2"}


@final
@dataclass(frozen=True, kw_only=True)
class DistillHidden(Recipe):
    """Trains the model to repeat its teacher's hidden states, attention or relations between tokens.

    Does:   minimizes the sum, by weight, of: hidden, the mean square error of hidden states; embedding, that of the
            embeddings; attention, that of attention scores before the softmax less the mean of their row, or of
            `attention_form: probabilities`; relation, with `relations`; kd, the forward KL of logits; ce, the
            cross-entropy of the text. Layer l of M learns from g(l) = round(l * N / M) of N, or from entry l of
            `layer_map` (null: from none). `relative` divides errors of states by the teacher's mean square. Where
            widths differ a linear map without bias, one for states and one for embeddings, is trained along and thrown
            away. `relations: minilm` (or true): KL of the last layer's attention and of its value relations softmax(V
            V^T / sqrt(d)). `relations: minilm2`: KL of relations among queries, among keys and among values, cut into
            `relation_heads` (else the teacher's number of key heads). `relation_layer` is the teacher's layer (else the
            last); the student's is its last. Recipe, grids, adapters and continuation as in distill.logits.
    Needs:  a teacher with the same tokenizer, and of the same vocabulary size unless kd_weight and heldout_tokens are
            0; a corpus. For attention and for minilm as many heads as the teacher (minilm2 and hidden states need no
            such thing); for relations a model whose queries, keys and values are separate projections.
    Why:    a student that lost layers or width gets a target at every depth, not only at the head; measured beside
            distill.logits it tells whether logits alone are enough.
    Known:  states are those of a pre-norm decoder: they grow with depth and a few dimensions are huge, so errors are
            relative by default and still led by the huge ones. After depth pruning the natural `layer_map` is the
            layers that were kept, and the even one can be far off. The last state is taken after the final norm, and
            only compared with the teacher's last. Averaged over layers, where TinyBERT adds them; one stage, where it
            has two. Queries and keys are taken before rotary embedding and norms on heads. Relations relate a token to
            later ones too, as published for encoders; they are a target, not an input. Attention is computed the plain
            way, slower and with T^2 memory a head and layer; scores under e^-87 of the highest are lost.
    Source: TinyBERT, arXiv 1909.10351, section 3.1; MiniLM, arXiv 2002.10957, sections 3.1 and 3.2; MiniLMv2, arXiv
            2012.15828, section 3.1.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf", "grid"})
    produces: ClassVar[str] = SAME
    emulated: ClassVar[bool] = False

    hidden_weight: float = 1.0
    embedding_weight: float = 0.0
    attention_weight: float = 0.0
    relation_weight: float = 1.0
    kd_weight: float = 1.0
    ce_weight: float = 0.0
    layer_map: Sequence[int | None] | None = None
    relative: bool = True
    attention_form: str = "scores"
    relations: bool | str = False
    relation_heads: int | None = None
    relation_layer: int | None = None
    teacher: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        mapped = [layer for layer in self.layer_map or () if layer is not None]
        inside = (self.hidden_weight, self.embedding_weight, self.attention_weight, self.relation_weight)
        known = self.relations in RELATIONS
        checks = (
            (min(inside) < 0, "hidden_weight, embedding_weight, attention_weight, relation_weight: not negative"),
            (min(self.kd_weight, self.ce_weight) < 0, "kd_weight, ce_weight: not negative"),
            (
                known and not any(self._weights.values()),
                "hidden_weight, embedding_weight, attention_weight, relations: all 0 or off; that is distill.logits",
            ),
            (self.layer_map is not None and (not mapped or min(mapped) < 1), "layer_map: layers from 1, not all null"),
            (self.attention_form not in FORMS, f"attention_form {self.attention_form!r}: {' or '.join(FORMS)}"),
            (not known, f"relations {self.relations!r}: false, true (minilm), minilm or minilm2"),
            (self.relation_heads is not None and self.relation_heads < 1, "relation_heads: from 1, or null"),
            (self.relation_heads is not None and self._form != "minilm2", "relation_heads: with relations minilm2"),
            (self.relation_layer is not None and self.relation_layer < 1, "relation_layer: from 1, or null (the last)"),
        )
        refuse([*self.problems(), *(message for is_wrong, message in checks if is_wrong)])
        teacher_need(self.teacher)

    @property
    def needs(self) -> tuple[Need, ...]:
        return (teacher_need(self.teacher), corpus_need(self.corpus))

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.distill.representation import distill_by

        distill_by(self._compare, self, source, out=out, context=context)

    @property
    def _form(self) -> str | None:
        """The form of relations that is asked for."""
        return RELATIONS.get(self.relations)

    @property
    def _weights(self) -> dict[str, float]:
        """The weight of every part that looks inside; that of relations is 0 without `relations`."""
        return {
            "hidden": self.hidden_weight,
            "embedding": self.embedding_weight,
            "attention": self.attention_weight,
            "relation": self.relation_weight if self._form else 0.0,
        }

    def _compare(self, teacher: Reader, student: Reader) -> Comparison:
        from harness.stages.distill.features import Asked, count_heads, count_layers
        from harness.stages.distill.representation import Comparison

        layers = (count_layers(teacher), count_layers(student))
        with_relations = bool(self._weights["relation"])
        with_attention = bool(self.attention_weight) or (with_relations and self._form == "minilm")
        if with_attention and count_heads(teacher) != count_heads(student):
            raise Unsupported(
                f"attention of {count_heads(teacher)} heads cannot be compared with that of {count_heads(student)}",
                remedy="set attention_weight to 0; `relations: minilm2` needs no equal number of heads",
            )
        if (self.relation_layer or 1) > layers[0]:
            raise SpecError(f"the teacher has {layers[0]} layers", key="relation_layer", found=self.relation_layer)
        maps = self._maps(teacher, student)
        return Comparison(
            weights=self._weights,
            kd_weight=self.kd_weight,
            ce_weight=self.ce_weight,
            parts=self._parts(self._pairs(*layers), maps),
            extra=maps,
            of_teacher=Asked(with_attention, (self.relation_layer or layers[0]) if with_relations else None),
            of_student=Asked(with_attention, layers[1] if with_relations else None),
        )

    def _maps(self, teacher: Reader, student: Reader) -> torch.nn.ModuleDict:
        """Gives what turns the student's states and embeddings into the teacher's width."""
        import torch

        from harness.stages.distill.features import width

        wide, narrow = width(teacher), width(student)
        asked = {"states": self.hidden_weight, "embeddings": self.embedding_weight}
        return torch.nn.ModuleDict(
            {
                name: torch.nn.Linear(narrow, wide, bias=False) if wide != narrow else torch.nn.Identity()
                for name, weight in asked.items()
                if weight
            }
        )

    def _pairs(self, teacher_layers: int, student_layers: int) -> list[tuple[int, int]]:
        """Gives the pairs of teacher's and student's layer to compare. Raises SpecError for a map that does not fit."""
        given = self.layer_map or uniform_map(teacher_layers, student_layers)
        if len(given) != student_layers or max(layer or 1 for layer in given) > teacher_layers:
            raise SpecError(
                f"the student has {student_layers} layers and the teacher {teacher_layers}",
                key="layer_map",
                found=list(given),
                allowed="one entry for each layer of the student, null or a layer of the teacher",
            )
        pairs = [(layer, number) for number, layer in enumerate(given, start=1) if layer is not None]
        if self.hidden_weight and any((t == teacher_layers) != (s == student_layers) for t, s in pairs):
            raise SpecError(
                "a last state is taken after the final norm and can only be compared with another last state",
                key="layer_map",
                found=list(given),
                remedy="map the student's last layer, and no other, to the teacher's last, or leave both out",
            )
        return pairs

    def _parts(self, pairs: list[tuple[int, int]], maps: torch.nn.ModuleDict) -> Parts:
        import torch

        from harness.stages.distill.losses import attention_error, state_error

        def state(teacher: Features, student: Features, kind: str, *pair: int) -> Tensor:
            wanted, given = teacher.states[pair[0]], student.states[pair[1]]
            return state_error(wanted, maps[kind](given), relative=self.relative)

        def attention(teacher: Features, student: Features, *pair: int) -> Tensor:
            wanted, given = teacher.attention[pair[0] - 1], student.attention[pair[1] - 1]
            return attention_error(wanted, given, scores=self.attention_form == "scores")

        def parts(teacher: Features, student: Features) -> dict[str, Tensor]:
            found = {}
            if self.hidden_weight:
                errors = [state(teacher, student, "states", *pair) for pair in pairs]
                found["hidden"] = torch.stack(errors).mean()
            if self.embedding_weight:
                found["embedding"] = state(teacher, student, "embeddings", 0, 0)
            if self.attention_weight:
                found["attention"] = torch.stack([attention(teacher, student, *pair) for pair in pairs]).mean()
            if self._weights["relation"]:
                found["relation"] = self._relation(teacher, student)
            return found

        return parts

    def _relation(self, teacher: Features, student: Features) -> Tensor:
        import torch

        from harness.stages.distill.features import PROJECTIONS
        from harness.stages.distill.losses import attention_kl, relation_kl

        if self._form == "minilm":
            heads = (teacher.value_heads, student.value_heads)
            if heads[0] != heads[1]:
                raise Unsupported(
                    f"value relations of {heads[0]} heads cannot be compared with those of {heads[1]}",
                    remedy="use `relations: minilm2`, which cuts both into `relation_heads`",
                )
            layer = self.relation_layer or len(teacher.attention)
            spread = attention_kl(teacher.attention[layer - 1], student.attention[-1])
            return spread + relation_kl(teacher.projected["v_proj"], student.projected["v_proj"], heads=heads)
        count = self.relation_heads or teacher.value_heads
        widths = [shown.projected[name].shape[-1] for shown in (teacher, student) for name in PROJECTIONS]
        if any(width % count for width in widths):
            raise SpecError(
                f"queries, keys and values {sorted(set(widths))} wide cannot be cut into equal heads",
                key="relation_heads",
                found=count,
                allowed="a number that divides them all",
            )
        errors = [relation_kl(teacher.projected[n], student.projected[n], heads=(count, count)) for n in PROJECTIONS]
        return torch.stack(errors).sum()


def uniform_map(teacher_layers: int, student_layers: int) -> list[int]:
    """Gives for each of the student's layers l of M the teacher's layer round(l * N / M), halves up, from 1.

    >>> uniform_map(12, 4), uniform_map(5, 2)
    ([3, 6, 9, 12], [3, 5])
    """
    n, m = teacher_layers, student_layers
    return [max(1, (2 * layer * n + m) // (2 * m)) for layer in range(1, m + 1)]
