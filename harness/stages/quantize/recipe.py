"""What every quantizer of linear layers is told: which layers, in what precision, and what text to watch.

A recipe is the arguments that such quantizers share; each adds its own (bits, group, damping). A quantizer's precision
is a value of its own arguments, so an exception for some layers is written as other values of those arguments: the same
constructor checks them.

    ignore:    [lm_head]                                    stay as they are
    overrides: {down_proj: {bits: 8}, "model.layers.0.*": keep}   the first pattern that fits a layer counts
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, Self

from harness.errors import SpecError, Unsupported, closest
from harness.sources.corpus import CorpusArgument, corpus_need
from harness.spec import Need
from harness.stages.quantize.proof.architecture import Architecture

KEEP: Final = "keep"
Scheme = Mapping[str, Any]
"""How a layer is quantized, in the words of a `QuantizationScheme` of compressed-tensors, its targets apart."""


@dataclass(frozen=True, kw_only=True)
class QuantizationRecipe(ABC):
    """Arguments of every quantizer of linear layers.

    Where it watches activations, it reads `tokens` of `corpus` in blocks of `sequence`, or, with `data_free`, text that
    the model itself draws. `ignore` and the patterns of `overrides` are a module's full name, its last parts, or a glob
    over the full name. An override is `keep` or other values for the arguments in `adjustable`.
    """

    adjustable: ClassVar[tuple[str, ...]] = ()

    corpus: CorpusArgument = "docstrings:default"
    tokens: int = 16384
    sequence: int = 512
    data_free: bool = False
    ignore: Sequence[str] = field(default=("lm_head",))
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def calibrates(self) -> bool:
        """True when the quantizer has to see activations."""
        return True

    @property
    def needs(self) -> tuple[Need, ...]:
        """The calibration text, unless there is none or the model draws it."""
        return (corpus_need(self.corpus),) if self.calibrates and not self.data_free else ()

    @property
    @abstractmethod
    def scheme(self) -> Scheme:
        """How a layer without an override is quantized."""

    def problems(self) -> list[str]:
        """Gives what is wrong with the shared arguments, one sentence each."""
        found = []
        if self.sequence < 2 or self.tokens < self.sequence:
            found.append(f"tokens is {self.tokens}, sequence is {self.sequence}; allowed: tokens >= sequence >= 2")
        if isinstance(self.ignore, str):
            found.append(f"ignore is {self.ignore!r}; allowed: a list of module names, such as [lm_head]")
        if not isinstance(self.overrides, Mapping):
            return [*found, f"overrides is {self.overrides!r}; allowed: an object from pattern to change"]
        corpus_need(self.corpus)
        for pattern, change in self.overrides.items():
            found.extend(self._wrong(pattern, change))
        return found

    def _wrong(self, pattern: str, change: object) -> list[str]:
        if change == KEEP:
            return []
        if not isinstance(change, Mapping) or not change or set(change) - set(self.adjustable):
            allowed = [KEEP, *([f"an object with {', '.join(self.adjustable)}"] if self.adjustable else [])]
            return [f"overrides[{pattern!r}] is {change!r}; allowed: {' or '.join(allowed)}"]
        self.changed(change)  # raises what the constructor says of such values
        return []

    def changed(self, change: Mapping[str, Any]) -> Self:
        """Gives this quantizer with other values of its adjustable arguments. Raises ValueError for wrong ones."""
        return replace(self, overrides={}, **change)


@dataclass(frozen=True)
class Assignment:
    """Which layer is quantized how: layers by scheme, the first being the one without overrides, and those kept."""

    schemes: tuple[tuple[Scheme, tuple[str, ...]], ...]
    kept: tuple[str, ...]

    @property
    def layers(self) -> list[str]:
        """Gives the names of all layers that are quantized."""
        return [name for _, names in self.schemes for name in names]


def assign(recipe: QuantizationRecipe, architecture: Architecture) -> Assignment:
    """Gives every linear layer its scheme.

    Raises SpecError when a pattern fits no layer, and Unsupported when no layer is left, when a group does not divide a
    layer's columns, or when the head is to be quantized and is the embedding too.
    """
    layers = list(architecture.linears)
    for key, patterns in (("ignore", recipe.ignore), ("overrides", recipe.overrides)):
        _require_fitting(key, patterns, layers)
    schemes: list[tuple[Scheme, list[str]]] = [(recipe.scheme, [])]
    kept = []
    for layer in layers:
        change = KEEP if _fits_any(recipe.ignore, layer) else _change(recipe.overrides, layer)
        if change == KEEP:
            kept.append(layer)
            continue
        scheme = recipe.changed(change).scheme if isinstance(change, Mapping) else recipe.scheme
        _require_possible(layer, scheme, architecture)
        names = next((names for known, names in schemes if known == scheme), None)
        if names is None:
            schemes.append((scheme, names := []))
        names.append(layer)
    given = tuple((scheme, tuple(names)) for scheme, names in schemes if names)
    if not given:
        raise Unsupported("no linear layer is left to quantize", remedy="shorten `ignore` or `overrides`")
    return Assignment(given, tuple(kept))


def fits(pattern: str, layer: str) -> bool:
    """True when a pattern is the layer's name, its last parts, or a glob over its name."""
    return layer == pattern or layer.endswith(f".{pattern}") or fnmatchcase(layer, pattern)


def _fits_any(patterns: Sequence[str], layer: str) -> bool:
    return any(fits(pattern, layer) for pattern in patterns)


def _change(overrides: Mapping[str, Any], layer: str) -> Any:
    return next((change for pattern, change in overrides.items() if fits(pattern, layer)), None)


def _require_fitting(key: str, patterns: Sequence[str] | Mapping[str, Any], layers: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(fits(pattern, layer) for layer in layers):
            last = {layer.rsplit(".", 1)[-1] for layer in layers}
            raise SpecError(
                f"{key} names no linear layer", key=key, found=pattern, allowed=last, remedy=closest(pattern, last)
            )


def _require_possible(layer: str, scheme: Scheme, architecture: Architecture) -> None:
    columns = architecture.linears[layer][1]
    sides = (scheme["weights"], scheme.get("input_activations", {}))
    group = next((side["group_size"] for side in sides if columns % (side.get("group_size") or 1)), None)
    if group:
        raise Unsupported(
            f"{layer} has {columns} columns, which groups of {group} do not divide",
            remedy="choose a group that divides the columns of every layer, or keep this one with `overrides`",
        )
    if architecture.tied and layer == architecture.head:
        raise Unsupported(
            f"{layer} is the embedding too, and packing it would make two tensors of one",
            remedy=f"leave it as it is: `ignore: [{layer}]`",
        )
