"""Quanto: plain rounding of weights, and of the inputs of linear layers by scales that are watched beforehand.

Weights of 8 bits, integers or floats, are symmetric with one scale a row. Weights of 4 and 2 bits lie on a grid between
the smallest and the largest of their group. Activations are integers of 8 bits with one scale for a whole tensor: the
running mean of the largest input that each block of text brings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.stages.distill.recipe import refuse
from harness.stages.quantize.recipe import QuantizationRecipe, Scheme

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.sources.corpus import Blocks
    from harness.stages.quantize.proof.architecture import Architecture
    from harness.stages.quantize.recipe import Assignment

WEIGHTS = {"int8": 8, "float8": 8, "int4": 4, "int2": 2}
"""Bits by type of weights."""
QTYPES = {"int8": "qint8", "float8": "qfloat8_e4m3fn", "int4": "qint4", "int2": "qint2"}
"""What the library calls these types."""


@final
@dataclass(frozen=True, kw_only=True)
class QuantizeQuanto(QuantizationRecipe):
    """Rounds the linear weights, and on request the inputs of their layers, with optimum-quanto.

    Does:   int8 and float8: code = round(w / s) with s = max|w| of the row over the largest code. int4 and int2:
            code = round((w - min) / s) with s = (max - min) / (2^bits - 1) in groups of `group` columns (null: a whole
            row); scale and minimum are stored as floats of the model's type. `activations: int8` reads the calibration
            text once and gives every layer's input a scale of max|x| / 127, each block of `sequence` tokens moving it
            by a tenth.
    Needs:  optimum-quanto; text only where activations are quantized; groups that divide the columns of every layer.
    Why:    the simplest library that works on every device, with true integer products for int8 weights and
            activations (`torch._int_mm`) and for int8 weights in bfloat16 (`torch._weight_int8pack_mm`) on the host.
    Known:  it is plain rounding: GPTQ, AWQ and HQQ are better at 4 bits and below. One static scale for a whole tensor
            cuts outliers off, so `activations` costs models with loud channels much. Inputs are quantized and outputs
            are not, which is where the library's calibration ends on transformers too; with int4 and int2 weights
            rounded inputs are multiplied as floats. int4, int2 and float8 weights stay packed in memory and are
            unpacked in every pass on the host, and so are int8 weights with float32 inputs: slow, and the outcome is
            `emulated`. The library chooses groups of at most 128 by itself; here `group`
            says. Its int4 kernel for groups of 128 in bfloat16, which rounds the minima again, is not used. A model
            that the library reopens quantizes other activations than the one it saved, and its packed int4 and int2
            layers fail in torch's inference mode, so the folder is read by the `transformers` runtime of this harness
            alone, which calls the library's operators. GPUs have not been tried.
    Source: optimum-quanto 0.2.7: `QLinear`, `AbsmaxOptimizer`, `MaxOptimizer`, `Calibration`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("optimum.quanto", "torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "quantizers"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "packed"
    emulated: ClassVar[bool] = False
    adjustable: ClassVar[tuple[str, ...]] = ("weights", "group")

    weights: str = "int8"
    group: int | None = None
    activations: str | None = None

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights is {self.weights!r}; allowed: {', '.join(WEIGHTS)}")
        if self.group is not None and self.group < 1:
            raise ValueError(f"group is {self.group!r}; allowed: a number of columns from 1, or null for a whole row")
        if self.group is not None and WEIGHTS[self.weights] == 8:
            raise ValueError(f"group is {self.group!r}; allowed: null with {self.weights}, which has one scale a row")
        if self.activations not in (None, "int8"):
            raise ValueError(f"activations is {self.activations!r}; allowed: int8, or null for none")
        refuse(self.problems())

    @property
    def calibrates(self) -> bool:
        return self.activations is not None

    @property
    def scheme(self) -> Scheme:
        return {"weights": {"type": self.weights, "group_size": self.group}, "activations": self.activations}

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        from harness.stages.hf_folder import load_model, reproducible, require_unpacked, stored_dtype
        from harness.stages.quantize.calibration import blocks_to_watch
        from harness.stages.quantize.native_folder import save_native
        from harness.stages.quantize.proof.architecture import read_architecture
        from harness.stages.quantize.proof.packing import write_packed
        from harness.stages.quantize.recipe import assign

        require_unpacked(source)
        architecture = read_architecture(source.path)
        assignment = assign(self, architecture)
        _require_whole_bytes(assignment, architecture)
        with reproducible(context):
            model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
            blocks_NT = blocks_to_watch(self, source, model, context=context)
            layers = _quantize(model, assignment, context=context)
            if blocks_NT is not None:
                _calibrate(model, list(layers), blocks_NT, context=context)
            packed = {name: _parts(model.get_submodule(name), said) for name, said in layers.items()}
            _unpack_what_cannot_be_inferred(model, layers)
            said = {"quant_method": "quanto", "layers": layers}
            write_packed(
                model,
                out,
                lambda: save_native(model, packed, said, source=source.path, out=out),
                source=source,
                context=context,
            )


def _require_whole_bytes(assignment: Assignment, architecture: Architecture) -> None:
    """Raises Unsupported for a layer whose groups are too few to fill whole bytes with their codes."""
    for scheme, names in assignment.schemes:
        for name in names:
            rows, columns = architecture.linears[name]
            bits, group = WEIGHTS[scheme["weights"]["type"]], scheme["weights"]["group_size"] or columns
            if rows * columns // group % (8 // bits):
                raise Unsupported(
                    f"{name} has {rows} x {columns} weights, and groups of {group} of them do not fill whole bytes "
                    f"with codes of {bits} bits",
                    remedy="choose another group, or keep this layer with `overrides`",
                )


def _quantize(model: PreTrainedModel, assignment: Assignment, *, context: StageContext) -> dict[str, dict[str, Any]]:
    """Puts the library's layers into the model, packed, and gives what the configuration says of each."""
    from optimum.quanto import qtypes
    from optimum.quanto.nn import QLinear

    from harness.stages.quantize.native_folder import schemes_by_layer

    _unpack_without_compiling()
    layers: dict[str, dict[str, Any]] = {}
    for name, scheme, fraction in schemes_by_layer(assignment):
        context.progress(fraction, f"quanto: {name}")
        weights, activations = scheme["weights"], scheme["activations"]
        layer = QLinear.from_module(
            model.get_submodule(name),
            weights=qtypes[QTYPES[weights["type"]]],
            activations=None if activations is None else qtypes[QTYPES[activations]],
        )
        layer.weight_group_size = weights["group_size"]
        if activations is not None:
            layer.disable_output_quantization()
        _pack(layer)
        model.set_submodule(name, layer, strict=True)
        layers[name] = {"weights": weights["type"], "group_size": weights["group_size"], "activations": activations}
    return layers


def _pack(layer: Any) -> None:
    """Rounds a layer's weight as the library's `freeze` does, but keeps the form that is stored."""
    import torch
    from optimum.quanto.tensor import quantize_weight

    weight_RC, qtype, group = layer.weight.detach(), layer.weight_qtype, layer.weight_group_size
    if qtype.bits == 8:
        grid: dict[str, Any] = {"scale": layer.optimizer(weight_RC, qtype=qtype, axis=0)}
    else:
        scale, shift = layer.optimizer(weight_RC, qtype=qtype, axis=0, group_size=group)
        grid = {"scale": scale, "shift": shift, "group_size": group}
    kept = layer.activation_qtype
    packed = quantize_weight(weight_RC, qtype=qtype, axis=0, activation_qtype=kept, optimized=False, **grid)
    layer.weight = torch.nn.Parameter(packed, requires_grad=False)


def _calibrate(model: PreTrainedModel, layers: Sequence[str], blocks_NT: Blocks, *, context: StageContext) -> None:
    """Lets the library watch what goes into every layer. Raises ModelError where that is nought, or no numbers."""
    import torch
    from optimum.quanto import Calibration

    with torch.no_grad(), Calibration(streamline=False):
        for number, block_T in enumerate(blocks_NT):
            context.progress(number / len(blocks_NT), "quanto: watch activations")
            model(torch.as_tensor(block_T)[None].to(model.device), use_cache=False)
    for name in layers:
        scale: Any = model.get_submodule(name).input_scale
        if not (bool(scale.isfinite()) and float(scale) > 0):
            raise ModelError(f"the calibration text gives the input of {name} a scale of {float(scale)}")


def _unpack_what_cannot_be_inferred(model: PreTrainedModel, layers: dict[str, dict[str, Any]]) -> None:
    """Gives layers of less than 8 bits the library's unpacked weight, since its packed ones fail in inference mode.

    So the model in memory computes with what the library takes the codes for, and the proof holds the files against it.
    """
    import torch

    for name, said in layers.items():
        if WEIGHTS[said["weights"]] == 8:
            continue
        layer: Any = model.get_submodule(name)
        weight_RC = layer.weight.cpu().dequantize().to(layer.weight.device)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = torch.nn.Parameter(weight_RC.detach(), requires_grad=False)
        plain.bias = layer.bias
        if said["activations"] is not None:
            plain.register_forward_pre_hook(_rounding(layer))
        model.set_submodule(name, plain, strict=True)


def _rounding(layer: Any) -> Any:
    """Gives a hook that rounds a layer's input as the library does."""
    from optimum.quanto.tensor import quantize_activation

    def hook(module: object, inputs: tuple[Tensor]) -> Tensor:
        rounded: Tensor = quantize_activation(inputs[0], layer.activation_qtype, layer.input_scale).dequantize()
        return rounded

    return hook


def _unpack_without_compiling() -> None:
    """Lets quanto unpack codes on the host by tensor operations, those that its extension runs.

    Otherwise it compiles the extension into its installation folder, and fails where there is no compiler.
    """
    import torch
    from optimum.quanto.library.extensions import get_extension

    class Unpack:
        @staticmethod
        def unpack(packed: Tensor, bits: int) -> Tensor:
            return torch.cat([(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)])

    extension: Any = get_extension("quanto_cpp")
    extension._lib = Unpack


def _parts(layer: Any, said: dict[str, Any]) -> dict[str, Tensor]:
    import torch

    from harness.stages.quantize.native_folder import SHAPE

    parts: dict[str, Tensor] = {}
    layer.weight.save_to_state_dict(parts, "weight.", False)
    if WEIGHTS[said["weights"]] < 8:
        parts[SHAPE] = torch.tensor((layer.out_features, layer.in_features), dtype=torch.int64)
    if said["activations"] is not None:
        parts["input_scale"] = layer.input_scale
    return parts if layer.bias is None else {**parts, "bias": layer.bias}
