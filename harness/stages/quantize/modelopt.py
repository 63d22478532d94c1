"""Weight-only quantization by NVIDIA's ModelOpt, emulated: its formats, its AWQ, and its own mixed precision.

ModelOpt puts a fake quantizer before every weight. Its exported checkpoints load in transformers without an error and
wrong, so nothing is exported: the rounding is folded into the weights, held against the format, and written back
unpacked. What comes out computes what ModelOpt's model in memory computes: in float32 the two are compared in memory,
and a fresh process proves that the files hold what was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize._modelopt_run import BITS, INTEGERS, NEEDS_CUDA, Budget, Run
from harness.stages.quantize.recipe import KEEP, Assignment, QuantizationRecipe, Scheme, assign

if TYPE_CHECKING:
    from pydantic import JsonValue
    from torch import Tensor

    from harness.stages.quantize.folding import Folded
    from harness.stages.quantize.proof.architecture import Architecture
    from harness.stages.quantize.proof.headers import Parts

CANDIDATES = tuple(name for name in BITS if name not in NEEDS_CUDA)
METHODS = ("gradient", "kl_div")
UNQUANTIZED = 16
"""The bits at which ModelOpt counts a weight that is left alone."""


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeModelopt(QuantizationRecipe):
    """Rounds the linear weights as nvidia-modelopt does and writes them back unpacked.

    Does:   runs `mtq.quantize` with `format`: int4 and int4_awq (a scale for `group` columns, null: for a whole row),
            int8 (for a row), fp8 (E4M3, for a matrix), nvfp4, mxfp4; weights alone, activations stay as they are. With
            `average_bits` it runs `mtq.auto_quantize` over `formats` instead, which may leave layers alone, too:
            `search` is gradient (squared gradient times change of a layer's output, linear programming) or kl_div (KL
            of the output, bisection of a threshold); queries, keys and values share a format, and so do gate and up.
            Then folds the rounding into the weights and writes them in the stored type: format `grid` with scales and
            zero points where all formats are int4 and int8, else plain `hf`.
    Needs:  nvidia-modelopt; text for int4_awq and for `average_bits` (`gradient` runs backward: memory for gradients of
            all weights); memory for the model in float32; groups that divide the columns of every layer.
    Why:    the library behind the NVFP4 and QAD numbers, and an independent second opinion on mixed precision.
    Known:  its integers go from -(2^(b-1) - 1) to 2^(b-1) - 1 in steps of max|w| / (2^(b-1) - 1): max|w| / 7 at 4 bits
            where GPTQ's and this harness's symmetric grid has max|w| / 7.5; the lowest code stays unused. AWQ leaves
            factors on each layer's inputs; here they go into the weights, so those lie on no grid and are rounded once
            more when stored in 16 bits. nvfp4 and mxfp4 have no CPU code and end as `Unsupported`; on CUDA they were
            not tried. `average_bits` is in the library's counting, without scales, over the layers it may quantize (it
            counts ignored ones at 16 bits, which is made up for); the notes have the bits with scales. For int4_awq its
            search calibrates on a quarter of the text. The search by kl_div can end without an assignment
            (`Unsupported`). Its own export is not used: what it writes loads in transformers 5.17 without an error and
            with perplexities in the hundreds.
    Source: nvidia-modelopt 0.47.0, `mtq.quantize`, `mtq.auto_quantize`, `mtq.fold_weight`, its int4, int8 and fp8
            presets; AWQ, arXiv 2306.00978.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("modelopt", "torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "quantizers"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    emulated: ClassVar[bool] = True
    adjustable: ClassVar[tuple[str, ...]] = ("format", "group")

    format: Literal["int4", "int4_awq", "int8", "fp8", "nvfp4", "mxfp4"] = "int4"
    group: int | None = 128
    average_bits: float | None = None
    formats: Sequence[str] = INTEGERS
    search: Literal["gradient", "kl_div"] = "gradient"

    def __post_init__(self) -> None:
        if self.format not in BITS:
            raise ValueError(f"format is {self.format!r}; allowed: {', '.join(BITS)}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        if (
            isinstance(self.formats, str)
            or len(set(self.formats) & set(CANDIDATES)) != len(self.formats)
            or not self.formats
        ):
            raise ValueError(f"formats is {self.formats!r}; allowed: a list of {', '.join(CANDIDATES)}")
        if self.search not in METHODS:
            raise ValueError(f"search is {self.search!r}; allowed: {', '.join(METHODS)}")
        least = min(BITS[name] for name in self.formats)
        if self.average_bits is not None and not least <= self.average_bits < UNQUANTIZED:
            raise ValueError(f"average_bits is {self.average_bits!r}; allowed: {least} to under {UNQUANTIZED}")
        refuse([*self.problems(), *self._mixed_up()])

    @property
    def produces(self) -> str:
        """The format `grid` where every layer ends on an integer grid."""
        return "grid" if set(self._used) <= set(INTEGERS) else "hf"

    @property
    def calibrates(self) -> bool:
        return self.average_bits is not None or "int4_awq" in self._used

    @property
    def scheme(self) -> Scheme:
        group = {"nvfp4": 16, "mxfp4": 32}.get(self.format, self.group if self.format.startswith("int4") else None)
        return {"format": self.format, "group": self.group, "weights": {"group_size": group}}

    @property
    def _used(self) -> list[str]:
        """Gives the formats that a layer may get."""
        if self.average_bits is not None:
            return list(self.formats)
        changes = [change for change in self.overrides.values() if isinstance(change, Mapping)]
        return [self.format, *(change["format"] for change in changes if "format" in change)]

    def _mixed_up(self) -> list[str]:
        changes = [change for change in self.overrides.values() if change != KEEP]
        if self.average_bits is not None and changes:
            return ["overrides beside average_bits; allowed: keep, since the search chooses the formats"]
        used = set(self._used)
        if self.average_bits is None and len(used) > 1 and used & {"int4_awq", *NEEDS_CUDA}:
            return [f"overrides mix {', '.join(sorted(used))}; allowed together: {', '.join((*INTEGERS, 'fp8'))}"]
        return []

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import load_model, reproducible, require_unpacked, stored_dtype
        from harness.stages.quantize.calibration import blocks_to_watch
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.proof.reloading import probe, require_reload

        require_unpacked(source)
        architecture, dtype = read_architecture(source.path), stored_dtype(source.path)
        assignment = assign(self, architecture)
        with reproducible(context):
            model = load_model(source, dtype=dtype, hardware=context.hardware)
            blocks_NT = blocks_to_watch(self, source, model, context=context)
            run = Run(model, _tensors(blocks_NT), group=self.group, context=context)
            notes = self._quantize(run, assignment, architecture)
            folded = self._folded(run, assignment, context=context)
            run.narrow(dtype)
            seen = probe(run.model)
        notes |= self._require_within(folded, assignment, architecture)
        write_emulated(folded, source, out, architecture=architecture, context=context)
        context.report.notes["modelopt"] = notes
        context.report.notes["reload_difference"] = require_reload(out, seen, context=context)

    def _quantize(self, run: Run, assignment: Assignment, architecture: Architecture) -> dict[str, JsonValue]:
        if self.average_bits is None:
            run.quantize(
                {name: (scheme["format"], scheme["group"]) for scheme, names in assignment.schemes for name in names}
            )
            return {}
        searched, kept = (_weights(names, architecture) for names in (assignment.layers, assignment.kept))
        # ModelOpt counts the layers that are left alone, too; the last factor is for the rounding of this division.
        bits = (self.average_bits * searched + UNQUANTIZED * kept) / (searched + kept) * (1 + 1e-12)
        best = run.search(Budget(bits, self.formats, self.search, assignment.kept))
        return {"effective_bits_of_modelopt": best["constraints"]["effective_bits"], "score": float(best["score"])}

    def _folded(self, run: Run, assignment: Assignment, *, context: StageContext) -> dict[str, Folded]:
        """Gives the weights that were rounded, and leaves the model without quantizers.

        Raises ModelError when a layer that should be rounded was not, or when the model computes something else then.
        """
        from harness.stages.quantize.proof.reloading import TOLERANCE, difference, probe

        run.widen()
        before = probe(run.model)
        found = {}
        for number, layer in enumerate(assignment.layers):
            context.progress(number / len(assignment.layers), f"fold {layer}")
            folded = run.fold(layer)
            if folded is not None:
                found[layer] = folded
            elif self.average_bits is None:
                raise ModelError(f"{layer}: modelopt left it as it was")
        if not found:
            raise ModelError("modelopt quantized no layer")
        off = difference(before.logits_BTV, probe(run.model).logits_BTV)
        context.report.notes["fold_difference"] = off
        if not off <= TOLERANCE[before.dtype]:
            raise ModelError(f"with the rounding in its weights the model gives other logits: off by {off:.3g}")
        return found

    def _require_within(
        self, folded: Mapping[str, Folded], assignment: Assignment, architecture: Architecture
    ) -> dict[str, JsonValue]:
        """Gives what the folded weights show. Raises ModelError when they take more bits than were asked for."""
        weights = {layer: _weights([layer], architecture) for layer in assignment.layers}
        bits = {layer: folded[layer].bits if layer in folded else UNQUANTIZED for layer in weights}
        average = sum(bits[layer] * weights[layer] for layer in weights) / sum(weights.values())
        if self.average_bits is not None and average > self.average_bits * (1 + 1e-9):
            raise ModelError(
                f"{average:.4f} bits a weight came out of the search, and {self.average_bits} were asked for"
            )
        levels: dict[str, int] = {}
        for one in folded.values():
            kind = f"{one.kind} {one.bits} bits"
            levels[kind] = max(levels.get(kind, 0), one.most_levels)
        return {
            "average_bits_without_scales": average,
            "bits": {**bits},
            "most_levels": {**levels},
            "share_of_layers": len(folded) / len(architecture.linears),
        }


def write_emulated(
    folded: Mapping[str, Folded], source: Artifact, out: Path, *, architecture: Architecture, context: StageContext
) -> None:
    """Writes the source's files with the folded weights in them, and proves what they are.

    Raises ModelError when a weight is not what its format allows.
    """
    from harness.stages.grids import Gridded, report_grids
    from harness.stages.hf_folder import copy_companions
    from harness.stages.quantize.proof.coverage import plain_tensors, report_coverage, total
    from harness.stages.quantize.proof.headers import read_headers

    grids: dict[str, Gridded] = {}
    written: set[str] = set()
    for file in sorted(source.path.glob("*.safetensors")):
        before = _rewrite(file, out / file.name, folded)
        written |= set(before)
        for layer, weight_RC in before.items():
            one = folded[layer]
            if one.grid is not None:
                grids[f"{layer}.weight"] = Gridded(one.grid, *one.ranges(), weight_RC)
    if missing := set(folded) - written:
        raise Unsupported(
            f"{len(missing)} linear weights are not in the files under the model's own names, first {min(missing)}",
            remedy="leave tied layers out (`ignore: [lm_head]`), or save the model again with `save_pretrained`",
        )
    index = source.path / "model.safetensors.index.json"
    if index.exists():
        (out / index.name).write_bytes(index.read_bytes())
    copy_companions(source.path, out)
    if len(grids) == len(folded):
        report_grids(out, grids, report=context.report)
        return
    plain = [
        tensor
        for module, parts in read_headers(out).items()
        for tensor in plain_tensors(module, _but_weight(parts) if module in folded else parts, architecture)
    ]
    packed = [one.as_packed(layer, "modelopt") for layer, one in folded.items()]
    report_coverage(out, total("modelopt (emulated)", packed, plain, architecture), report=context.report)


def _rewrite(file: Path, out: Path, folded: Mapping[str, Folded]) -> dict[str, Tensor]:
    """Copies a safetensors file with the folded weights in it, and gives those it had."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors, before = {}, {}
    with safe_open(file, framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            tensor = stored.get_tensor(name)
            layer, _, part = name.rpartition(".")
            if part == "weight" and layer in folded:
                before[layer] = tensor
                tensor = folded[layer].plain().to(device="cpu", dtype=tensor.dtype).contiguous()
            tensors[name] = tensor
        save_file(tensors, out, metadata=stored.metadata())
    return before


def _but_weight(parts: Parts) -> Parts:
    return {part: stored for part, stored in parts.items() if part != "weight"}


def _weights(layers: Sequence[str], architecture: Architecture) -> int:
    return sum(rows * columns for rows, columns in (architecture.linears[layer] for layer in layers))


def _tensors(blocks_NT: Any) -> list[Tensor]:
    import torch

    return [] if blocks_NT is None else list(torch.from_numpy(blocks_NT))
