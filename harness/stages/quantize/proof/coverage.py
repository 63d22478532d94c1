"""The coverage proof: what a quantizer really stored, read from the tensors it wrote.

A library can skip layers, fall back to 8 bits, or quantize nothing, and its log and its configuration will still say
"W4A16". So after every packing stage the written files are read back, header by header: which linear weights are
packed and in how many bits, what their scales and zero points cost, what was left as it was, and how many bits a weight
takes in the whole file. The architecture, built without weights, says which linear layers there are and how large, so
a layer that is missing or has another shape shows. Where the configuration disagrees with the tensors, the stage fails.

The proof is written beside the weights as `coverage.json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from harness.errors import ModelError
from harness.spec import Value
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.declared import Claim, read_declaration
from harness.stages.quantize.proof.headers import Parts, read_headers
from harness.stages.quantize.proof.layouts import PackedLinear, read_packed

if TYPE_CHECKING:
    from pydantic import JsonValue

    from harness.interfaces import BuildReport

FILE = "coverage.json"
PACKED_PARTS = frozenset(
    {"weight_packed", "qweight", "weight_scale", "weight.absmax", "SCB", "W_q", "weight._scale", "_weight_qdata"}
)
"""Tensors that only packed modules have, one for every layout."""
Head = Literal["tied", "own", "quantized", "none"]


class PlainTensor(Value):
    """One tensor that is stored as it is, and what it is part of."""

    name: str
    role: Literal["linear", "embedding", "head", "other"]
    storage: str
    parameters: int
    bytes: int


class Coverage(Value):
    """The proof for one folder. Bits per weight are 8 times bytes, scales and all, over logical parameters."""

    schema_version: int = 1
    method: str
    quantized: tuple[PackedLinear, ...]
    plain: tuple[PlainTensor, ...]
    head: Head
    parameters: int
    parameters_quantized: int
    bytes: int
    bits_per_weight: float
    bits_per_weight_without_embeddings: float
    bits_per_quantized_weight: float

    @property
    def share_quantized(self) -> float:
        """The share of all parameters, embeddings included, that lie packed."""
        return self.parameters_quantized / self.parameters

    @property
    def share_of_linear(self) -> float:
        """The share of the weights of linear layers but the head that lie packed."""
        kept = sum(tensor.parameters for tensor in self.plain if tensor.role == "linear")
        return self.parameters_quantized / (self.parameters_quantized + kept)


def prove(folder: Path, architecture: Architecture) -> Coverage:
    """Gives what lies in the folder.

    Raises ModelError when nothing is quantized, when a layer is missing or has another shape than the architecture
    says, and when bits, group or layout are not what the configuration declares. Raises Unsupported for a layout that
    is not understood.
    """
    declaration, modules = read_declaration(folder), read_headers(folder)
    quantized: list[PackedLinear] = []
    plain: list[PlainTensor] = []
    for module, parts in modules.items():
        claim = declaration.claim(module) if module in architecture.linears or _looks_packed(parts) else None
        if claim is None:
            _require_plain(module, parts)
            plain.extend(plain_tensors(module, parts, architecture))
            continue
        fact = read_packed(module, claim.layout, parts).model_copy(update={"activations": claim.activations})
        _require_as_claimed(fact, claim)
        _require_as_built(fact, architecture.linears.get(module))
        quantized.append(fact)
        plain.extend(plain_tensors(module, {name: parts[name] for name in ("bias",) if name in parts}, architecture))
    _require_every_linear(modules, architecture)
    if not quantized:
        raise ModelError(f"no weight is packed, though the configuration declares {declaration.method}")
    return total(declaration.method, quantized, plain, architecture)


def report_coverage(out: Path, coverage: Coverage, *, report: BuildReport) -> None:
    """Writes the proof into the folder and its summary into the report; the size of the tensors becomes nominal."""
    (out / FILE).write_text(coverage.model_dump_json(indent=1), encoding="utf-8")
    report.nominal_bytes = coverage.bytes
    report.notes["coverage"] = summary(coverage)


def summary(coverage: Coverage) -> dict[str, JsonValue]:
    """Gives the proof in a few numbers: layers by layout and bits, shares, bits per weight."""
    kinds = Counter(f"{fact.layout} {fact.bits} bits, {fact.sharing}" for fact in coverage.quantized)
    storage: Counter[str] = Counter()
    for tensor in coverage.plain:
        storage[tensor.storage] += tensor.bytes
    activations: list[JsonValue] = [*sorted({fact.activations or "not quantized" for fact in coverage.quantized})]
    return {
        "layers": dict(sorted(kinds.items())),
        "layers_left_plain": sum(tensor.role == "linear" and tensor.parameters > 0 for tensor in coverage.plain),
        "plain_bytes": dict(sorted(storage.items())),
        "head": coverage.head,
        "activations": activations,
        "share_quantized": coverage.share_quantized,
        "share_of_linear": coverage.share_of_linear,
        "bits_per_weight": coverage.bits_per_weight,
        "bits_per_weight_without_embeddings": coverage.bits_per_weight_without_embeddings,
        "bits_per_quantized_weight": coverage.bits_per_quantized_weight,
        "bytes": coverage.bytes,
    }


def _looks_packed(parts: Parts) -> bool:
    return bool(PACKED_PARTS & set(parts))


def _require_plain(module: str, parts: Parts) -> None:
    if _looks_packed(parts):
        raise ModelError(f"{module}: the configuration says that it was left as it is, and its tensors are packed")


def _require_as_claimed(fact: PackedLinear, claim: Claim) -> None:
    if fact.bits != claim.bits:
        raise ModelError(
            f"{fact.module}: {fact.bits} bits a weight are stored, and the configuration declares {claim.bits}"
        )
    # One scale a row is what a declared group as wide as the row means.
    found, said = fact.group or fact.columns, min(claim.group or fact.columns, fact.columns)
    if found != said:
        raise ModelError(f"{fact.module}: {found} columns share a scale, and the configuration declares {said}")


def _require_as_built(fact: PackedLinear, shape: tuple[int, int] | None) -> None:
    if shape is not None and shape != (fact.rows, fact.columns):
        raise ModelError(
            f"{fact.module}: its tensors stand for {fact.rows} x {fact.columns} weights, and the layer has "
            f"{shape[0]} x {shape[1]}"
        )


def _require_every_linear(modules: Mapping[str, Parts], architecture: Architecture) -> None:
    lost = [
        module
        for module in architecture.linears
        if not modules.get(module) and not (architecture.tied and module == architecture.head)
    ]
    if lost:
        raise ModelError(f"{len(lost)} linear layers have no tensors in the files, first {lost[0]}")


def plain_tensors(module: str, parts: Parts, architecture: Architecture) -> Iterable[PlainTensor]:
    """Yields the tensors of a module that are stored as they are, each with what it is part of."""
    for part, stored in parts.items():
        yield PlainTensor(
            name=f"{module}.{part}",
            role=_role(module, part, architecture),
            storage=stored.dtype,
            parameters=stored.elements,
            bytes=stored.bytes,
        )


def _role(module: str, part: str, architecture: Architecture) -> Literal["linear", "embedding", "head", "other"]:
    if module == architecture.embedding:
        return "embedding"
    if module == architecture.head:
        return "head"
    return "linear" if module in architecture.linears and part == "weight" else "other"


def total(method: str, quantized: list[PackedLinear], plain: list[PlainTensor], architecture: Architecture) -> Coverage:
    """Adds up a proof from the facts of every tensor."""
    packed_bytes, packed = sum(fact.bytes for fact in quantized), sum(fact.weights for fact in quantized)
    plain_bytes, kept = sum(one.bytes for one in plain), sum(one.parameters for one in plain)
    ends = (architecture.embedding, architecture.head)
    end_bytes = sum(one.bytes for one in plain if one.role in ("embedding", "head"))
    end_bytes += sum(fact.bytes for fact in quantized if fact.module in ends)
    end_weights = sum(one.parameters for one in plain if one.role in ("embedding", "head"))
    end_weights += sum(fact.weights for fact in quantized if fact.module in ends)
    inner = packed + kept - end_weights
    return Coverage(
        method=method,
        quantized=tuple(quantized),
        plain=tuple(plain),
        head=_head(quantized, plain, architecture),
        parameters=packed + kept,
        parameters_quantized=packed,
        bytes=packed_bytes + plain_bytes,
        bits_per_weight=8 * (packed_bytes + plain_bytes) / (packed + kept),
        bits_per_weight_without_embeddings=8 * (packed_bytes + plain_bytes - end_bytes) / inner,
        bits_per_quantized_weight=8 * packed_bytes / packed,
    )


def _head(quantized: list[PackedLinear], plain: list[PlainTensor], architecture: Architecture) -> Head:
    if any(fact.module == architecture.head for fact in quantized):
        return "quantized"
    if any(tensor.role == "head" for tensor in plain):
        return "own"
    return "tied" if architecture.tied else "none"
