"""Mixed precision: every layer gets the bits that the model needs there, under a budget for all of them together.

Rounding some layers changes what a model says far more than rounding others. So each layer is rounded alone to each
number of bits, the change is measured, and of all assignments that the budget of bits allows the one with the least sum
of changes is taken. The layers are then quantized with their bits, by GPTQ or plainly, into one packed folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final, get_args

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._one_shot import EXTRA, REQUIREMENTS, quantize_one_shot
from harness.stages.quantize.gptq import QuantizeGptq
from harness.stages.quantize.knapsack import Option, Selection, at_random, least_cost, same_everywhere, solve
from harness.stages.quantize.prices import KEPT, Prices
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme, assign
from harness.stages.quantize.schemes import BITS, integers

if TYPE_CHECKING:
    from pydantic import JsonValue

    from harness.stages.quantize.grid import Grid
    from harness.stages.quantize.sensitivity import Reference, Table

FILE = "sensitivity.json"
Search = Literal["kl", "error", "random", "uniform"]
Method = Literal["gptq", "rtn"]
LOOKING = ("kl", "error")
"""Searches that look at what a choice does."""
ROUNDING = 1 + 1e-12
"""So that a budget that was worked out as a quotient holds what it was worked out from."""
Units = Sequence[tuple[str, ...]]
"""Sets of layers that share a choice."""


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeMixed(QuantizationRecipe):
    """Chooses bits for every layer under `average_bits` and quantizes with them.

    Does:   rounds one layer after another to each of `choices` (the asymmetric or symmetric grid of plain rounding in
            groups of `group` columns; 16: stays as it is), lets the model read `search_tokens` of the text, and takes
            KL(reference || model), the mean over tokens. Then picks one choice for every layer such that the sum is
            least and the stored bits, scales, zero points and all, are at most `average_bits` for a weight of the
            layers that may be quantized (all but those in `ignore` and kept by `overrides`). With `fused` layers that
            read the same input (queries, keys, values; gate and up) share a choice. Then quantizes by `method` and
            packs (layout pack-quantized of compressed-tensors). `overrides` may narrow a layer's `choices`. The whole
            table is `sensitivity.json` in the folder; the choices, the bits and the measured KL are in the notes.
            `search` may also be a control: `error` minimizes the squared error of the weights instead and reads no
            text for it, `uniform` is the one choice that fits for all layers (the most bits), `random` draws choices
            and fills the budget up.
    Needs:  llm-compressor; text; one pass over `search_tokens` for every layer and choice (210 layers and four choices:
            840 passes), which goes on where it was when it is killed; memory for the logits of `search_tokens` in the
            model's type; groups that divide the columns of every layer.
    Why:    2 to 6 bits on average, at less loss than one number of bits for all; and the question which layers matter.
    Known:  the sum over layers rounded one at a time leaves out what they do to each other; `predicted_kl` and the
            `measured_kl` of the finished model on the same text show by how much. That text is the one `kl` chose by,
            so compare searches on another one. With `gptq` the finished layers are better than the plainly rounded ones
            that were measured. Measuring is done in the stored type, so in bfloat16 the smallest differences are
            rounding. Scales are stored in the model's type: in a float32 model a scale takes 32 bits, and a weight that
            is kept does. The search is an exact dynamic programme over the budget; where prices had to be rounded up to
            fit it (`exact` false in the notes), `bound`, the Lagrangian bound that no assignment goes below, says how
            far it can be from the best. From a corpus, the search reads the beginning of what GPTQ is calibrated on.
            transformers unpacks the weights when it loads them, so there the outcome is `emulated`.
    Source: AutoQuantize of nvidia-modelopt (`auto_quantize`, method kl_div) and AutoScheme of auto-round are the same
            idea with other scores; multiple-choice knapsack: Kellerer, Pferschy, Pisinger 2004, chapter 11.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = REQUIREMENTS
    extra: ClassVar[str | None] = EXTRA
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("choices",)

    average_bits: float
    choices: Sequence[int] = (*BITS, KEPT)
    group: int | None = 128
    symmetric: bool = True
    method: Method = "gptq"
    search: Search = "kl"
    fused: bool = True
    search_tokens: int = 1024

    def __post_init__(self) -> None:
        allowed = (*BITS, KEPT)
        if isinstance(self.choices, str) or not self.choices or not set(self.choices) <= set(allowed):
            raise ValueError(f"choices is {self.choices!r}; allowed: a list of {', '.join(map(str, allowed))}")
        if not 2.5 <= self.average_bits <= 8:
            raise ValueError(f"average_bits is {self.average_bits!r}; allowed: 2.5 to 8, scales and zero points in it")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        for name, found, known in (("method", self.method, Method), ("search", self.search, Search)):
            if found not in get_args(known):
                raise ValueError(f"{name} is {found!r}; allowed: {', '.join(get_args(known))}")
        if self.search_tokens < self.sequence:
            raise ValueError(f"search_tokens is {self.search_tokens!r}; allowed: from {self.sequence}, one sequence")
        refuse(self.problems())

    @property
    def scheme(self) -> Scheme:
        least = min((bits for bits in self.choices if bits != KEPT), default=max(BITS))
        chosen = tuple(sorted(set(self.choices)))
        return {"choices": chosen, **integers(least, group=self.group, symmetric=self.symmetric)}

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import require_unpacked
        from harness.stages.one_shot import require_device
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.sensitivity import Table

        require_unpacked(source)
        require_device(context.hardware.device)
        architecture = read_architecture(source.path)
        assignment = assign(self, architecture)
        table = Table(context.scratch / FILE)
        offered = {layer: scheme["choices"] for scheme, layers in assignment.schemes for layer in layers}
        choices = {layer: offered[layer] for layer in architecture.linears if layer in offered}
        reference, units = self._measured(source, choices, table, context=context)
        selection = self._chosen(units, choices, table, Prices.of(self, architecture, source.path), seed=context.seed)
        bits = {layer: choice for unit, choice in zip(units, selection.choices, strict=True) for layer in unit}
        quantize_one_shot(self._quantizer(bits, assignment.kept), source, out, context=context)
        said: dict[str, JsonValue] = {
            "search": self.search,
            "average_bits_asked": self.average_bits,
            "average_bits_reached": _require_within(self.average_bits, out, bits),
            "bits": {**bits},
            **_proof(selection, self.search),
            **_predicted(table, bits),
            "measured_kl": _divergence(reference, out, context=context),
        }
        rows: list[JsonValue] = [row.model_dump(mode="json") for row in table.rows]
        (out / FILE).write_text(json.dumps(said | {"sensitivities": rows}, indent=1), encoding="utf-8")
        context.report.notes["mixed"] = said

    def _measured(
        self, source: Artifact, choices: Mapping[str, Sequence[int]], table: Table, *, context: StageContext
    ) -> tuple[Reference, Units]:
        """Gives what the model said before, and which layers share a choice; the table holds what the search asks."""
        from harness.stages.hf_folder import load_model, reproducible, stored_dtype
        from harness.stages.quantize.calibration import blocks_to_watch
        from harness.stages.quantize.sensitivity import Reference, measure, reading_together

        notes = context.report.notes
        with reproducible(context):
            model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
            units = reading_together(model, list(choices)) if self.fused else [(layer,) for layer in choices]
            blocks_NT = blocks_to_watch(replace(self, tokens=self.search_tokens), source, model, context=context)
            assert blocks_NT is not None
            notes["search_text"] = notes.pop("calibration")
            reference = Reference(model, blocks_NT)
            if self.search in LOOKING:
                grids = {layer: self._grids(offered) for layer, offered in choices.items()}
                seen = reference if self.search == "kl" else None
                measure(model, grids, reference=seen, table=table, context=context)
        return reference, units

    def _grids(self, choices: Sequence[int]) -> list[Grid]:
        from harness.stages.quantize.grid import Grid

        return [Grid(bits, self.group, self.symmetric) for bits in choices if bits != KEPT]

    def _chosen(
        self, units: Units, choices: Mapping[str, Sequence[int]], table: Table, prices: Prices, *, seed: int
    ) -> Selection:
        """Gives a choice for every unit. Raises Unsupported when even the fewest bits are over the budget."""
        layers = [layer for unit in units for layer in unit]
        budget = int(self.average_bits * ROUNDING * prices.weights(layers))
        options = [
            [
                Option(bits, sum(prices.bits(layer, bits) for layer in unit), self._loss(unit, bits, table))
                for bits in _shared(unit, choices)
            ]
            for unit in units
        ]
        if least_cost(options) > budget:
            least = least_cost(options) / prices.weights(layers)
            raise Unsupported(
                f"average_bits is {self.average_bits}, and the fewest bits of `choices` are {least:.3f} a weight with "
                f"scales and zero points",
                remedy="ask for more bits, offer fewer in `choices`, or let more columns share a scale (`group`)",
            )
        if self.search == "uniform":
            return same_everywhere(options, budget)
        return at_random(options, budget, seed=seed) if self.search == "random" else solve(options, budget)

    def _loss(self, unit: tuple[str, ...], bits: int, table: Table) -> float:
        """Gives the sum over a unit's layers; 0 for layers that are kept, and where the search looks at no loss."""
        if bits == KEPT or self.search not in LOOKING:
            return 0.0
        rows = [table.at(layer, bits) for layer in unit]
        return sum(row.squared_error if self.search == "error" else row.divergence for row in rows)

    def _quantizer(self, bits: Mapping[str, int], kept: Sequence[str]) -> QuantizeGptq | _Rounding:
        """Gives the quantizer that gives every layer its bits."""
        method = QuantizeGptq if self.method == "gptq" else _Rounding
        base = min((one for one in bits.values() if one != KEPT), default=max(BITS))
        return method(
            corpus=self.corpus,
            tokens=self.tokens,
            sequence=self.sequence,
            data_free=self.data_free,
            ignore=[*kept, *(layer for layer, one in bits.items() if one == KEPT)],
            overrides={layer: {"bits": one} for layer, one in bits.items() if one not in (KEPT, base)},
            bits=base,
            group=self.group,
            symmetric=self.symmetric,
        )


@dataclass(frozen=True, kw_only=True)
class _Rounding(QuantizationRecipe):
    """Plain rounding through llm-compressor: the grid that the search measured, packed."""

    adjustable: ClassVar[tuple[str, ...]] = ("bits",)

    bits: int
    group: int | None
    symmetric: bool

    @property
    def calibrates(self) -> bool:
        return False

    @property
    def scheme(self) -> Scheme:
        return integers(self.bits, group=self.group, symmetric=self.symmetric)

    def modifiers(self, groups: dict[str, Any], ignore: list[str]) -> list[Any]:
        """Gives llm-compressor's plain rounding."""
        from llmcompressor.modifiers.quantization import QuantizationModifier

        return [QuantizationModifier(config_groups=groups, ignore=ignore)]


def _shared(unit: tuple[str, ...], choices: Mapping[str, Sequence[int]]) -> list[int]:
    """Gives the choices that every layer of a unit has. Raises SpecError when there is none."""
    common = sorted(set.intersection(*(set(choices[layer]) for layer in unit)))
    if not common:
        raise SpecError(
            f"{', '.join(unit)} share a choice, and `overrides` leave them none in common",
            key="overrides",
            remedy="give them a common choice, or set `fused: false`",
        )
    return common


def _proof(selection: Selection, search: Search) -> dict[str, JsonValue]:
    """Gives how good the selection is known to be, in the terms of its search."""
    if selection.bound is None:
        return {}
    loss = "summed_kl" if search == "kl" else "summed_squared_error"
    return {loss: selection.loss, "exact": selection.exact, "bound": selection.bound}


def _predicted(table: Table, bits: Mapping[str, int]) -> dict[str, JsonValue]:
    """Gives the sum of the chosen layers' sensitivities, where all were measured."""
    rows = [table.get(layer, one) for layer, one in bits.items() if one != KEPT]
    found = [row.kl for row in rows if row is not None and row.kl is not None]
    return {"predicted_kl": sum(found)} if len(found) == len(rows) else {}


def _require_within(average_bits: float, out: Path, bits: Mapping[str, int]) -> float:
    """Gives the bits a weight that the written tensors of the searched layers take, by the coverage proof.

    Raises ModelError when they are over the budget.
    """
    from harness.stages.quantize.proof import coverage

    proof = coverage.Coverage.model_validate_json((out / coverage.FILE).read_bytes())
    packed = [(fact.bytes, fact.weights) for fact in proof.quantized if fact.module in bits]
    plain = [(one.bytes, one.parameters) for one in proof.plain if one.name.removesuffix(".weight") in bits]
    stored, weights = (sum(column) for column in zip(*packed, *plain, strict=True))
    if 8 * stored > average_bits * ROUNDING * weights:
        raise ModelError(f"{8 * stored / weights:.4f} bits a weight were written, and {average_bits} were asked for")
    return 8 * stored / weights


def _divergence(reference: Reference, out: Path, *, context: StageContext) -> float:
    from harness.runtimes._hf_load import load_model

    context.progress(None, "measure the result on the text of the search")
    model = load_model(out, dtype=reference.dtype, attention=reference.attention, hardware=context.hardware)
    return reference.divergence(model)
