"""One run of ModelOpt: its configuration for chosen layers, its calibration or its search, and what it did to weights.

ModelOpt addresses quantizers by patterns, and a pattern that fits nothing is no error. So every layer is named in full,
and what its quantizer does is asked of the quantizer itself afterwards, not taken from the configuration.

Shapes: N blocks, T tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from harness.errors import ModelError, Unsupported
from harness.interfaces import StageContext

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from harness.stages.quantize.folding import Folded, Kind

BITS: Final[Mapping[str, int]] = {"int4": 4, "int4_awq": 4, "int8": 8, "fp8": 8, "nvfp4": 4, "mxfp4": 4}
"""The formats, and the bits of a code."""
INTEGERS: Final = ("int4", "int8")
"""Formats whose weights lie on an integer grid when all is done."""
NEEDS_CUDA: Final = ("nvfp4", "mxfp4")
ANOTHER_RESULT: Final = ("awq_lite: Disabling", "awq_lite: Forcing", "FAILED to find a solution")
"""What the library warns of when it did something else than it was asked to."""


@dataclass(frozen=True)
class Budget:
    """What ModelOpt's search is told: bits for all linear layers, candidates, a way to score, layers to leave alone."""

    effective_bits: float
    formats: Sequence[str]
    method: str
    kept: Sequence[str]


class Run:
    """A model in memory with ModelOpt's fake quantizers in it, and the text that it may read."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Tensor], *, group: int | None, context: StageContext):
        self.model: Any = model
        self._texts = [text.to(model.device) for text in texts]
        self._group = group
        self._context = context

    def quantize(self, formats: Mapping[str, tuple[str, int | None]]) -> None:
        """Quantizes layers by name, each in its format and group. Raises Unsupported for what needs CUDA."""
        named = [
            {"quantizer_name": f"{layer}.weight_quantizer", "cfg": _quantizer(*how)} for layer, how in formats.items()
        ]
        first = next(iter(formats.values()))[0]
        config = {"quant_cfg": [_NONE, *named], "algorithm": _algorithm(first)}
        with self._heard(), _refused_without_cuda({how[0] for how in formats.values()}):
            import modelopt.torch.quantization as mtq  # importing it warns, too

            self.model = mtq.quantize(self.model, config, self._read_all if self._texts else None)
            module = self.model.get_submodule(next(iter(formats)))
            module.weight_quantizer(module.weight)  # formats without a kernel fail when they are used, not before

    def search(self, budget: Budget) -> dict[str, Any]:
        """Lets ModelOpt choose a format for every layer; gives what it says about its choice.

        Raises Unsupported when it finds none.
        """
        count = len(self._texts)
        with self._heard():
            import modelopt.torch.quantization as mtq  # importing it warns, too

            self.model, state = mtq.auto_quantize(
                self.model,
                constraints={"effective_bits": budget.effective_bits},
                quantization_formats=[
                    {
                        "quant_cfg": [
                            _NONE,
                            {"quantizer_name": "*weight_quantizer", "cfg": _quantizer(one, self._group)},
                        ],
                        "algorithm": _algorithm(one),
                    }
                    for one in budget.formats
                ],
                data_loader=self._texts,
                forward_step=self._logits,
                loss_func=_next_token_loss if budget.method == "gradient" else None,
                disabled_layers=list(budget.kept),
                num_calib_steps=count,
                num_score_steps=count,
                method=budget.method,
            )
        best: dict[str, Any] = state["best"]
        if not best["is_satisfied"]:
            raise Unsupported(
                f"modelopt's search by {budget.method} found no assignment with {budget.effective_bits:.3f} bits",
                remedy="use `search: gradient`, more bits, or quantize.mixed",
            )
        return best

    def widen(self) -> None:
        """Turns weights and what the quantizers hold into float32, which loses nothing, so that folding is exact."""
        self.model.float()

    def narrow(self, dtype: torch.dtype) -> None:
        """Turns the weights, and nothing else, into the type in which they are stored."""
        for weight in self.model.parameters():
            weight.data = weight.data.to(dtype)

    def fold(self, layer: str) -> Folded | None:
        """Bakes a layer's rounding, and what AWQ multiplies its inputs with, into its weight, and says what that was.

        None for a layer that is left alone. Raises ModelError when the weight is not what its format allows.
        """
        import torch

        from harness.stages.quantize.folding import Folded

        module = self.model.get_submodule(layer)
        quantizer, inputs = module.weight_quantizer, module.input_quantizer
        if not quantizer.is_enabled:
            return None
        kind, bits = _kind(quantizer.num_bits)
        amax = None if kind == "e2m1" else quantizer.amax
        scale_C = inputs.pre_quant_scale
        with torch.no_grad():
            folded = Folded(
                kind=kind,
                bits=bits,
                group=(quantizer.block_sizes or {}).get(-1),
                amax=None if amax is None else amax.detach(),
                weight_RC=quantizer(module.weight),
                input_scale_C=None if scale_C is None else scale_C.detach().reshape(-1),
            )
            try:
                module.weight.copy_(folded.plain())
            except ModelError as error:
                raise ModelError(f"{layer}: {error}") from error
        quantizer.disable()
        inputs._enable_pre_quant_scale = False  # what `fold_weight` sets when it keeps the factors
        return folded

    def _read_all(self, model: Any) -> None:
        import torch

        with torch.no_grad():
            for number, tokens_T in enumerate(self._texts):
                self._context.progress(number / len(self._texts), "calibrate")
                model(tokens_T[None], use_cache=False)

    def _logits(self, model: Any, tokens_T: Tensor) -> Tensor:
        self._context.progress(None, "calibrate and score formats")
        logits: Tensor = model(tokens_T[None], use_cache=False).logits
        return logits

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Notes what the library warns of. Raises ModelError when that means another result than the one asked for."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        said = sorted({str(one.message) for one in caught if "modelopt" in one.filename})
        if failed := [
            message for message in said if message.startswith(ANOTHER_RESULT) or ANOTHER_RESULT[-1] in message
        ]:
            raise ModelError(f"modelopt did not do what it was asked to: {failed[0]}")
        if said:
            self._context.report.notes["warnings"] = [*said]


_NONE: Final[Mapping[str, Any]] = {"quantizer_name": "*", "enable": False}


def _quantizer(name: str, group: int | None) -> dict[str, Any]:
    """Gives the attributes of ModelOpt's weight quantizer for a format, as its own presets have them."""
    if name in ("int4", "int4_awq"):
        return {"num_bits": 4, "block_sizes": {-1: group, "type": "static"}} if group else {"num_bits": 4, "axis": 0}
    if name == "int8":
        return {"num_bits": 8, "axis": 0}
    if name == "fp8":
        return {"num_bits": (4, 3), "axis": None}
    block, scale_bits = (16, (4, 3)) if name == "nvfp4" else (32, (8, 0))
    return {"num_bits": (2, 1), "block_sizes": {-1: block, "type": "dynamic", "scale_bits": scale_bits}}


def _algorithm(name: str) -> Any:
    if name == "mxfp4":
        return None  # nothing to calibrate: exponents are found as weights come
    return {"method": "awq_lite", "alpha_step": 0.1} if name == "int4_awq" else "max"


def _kind(num_bits: Any) -> tuple[Kind, int]:
    kinds: dict[Any, tuple[Kind, int]] = {(4, 3): ("fp8", 8), (2, 1): ("e2m1", 4)}
    return kinds[num_bits] if num_bits in kinds else ("integers", int(num_bits))


def _next_token_loss(logits_1TV: Tensor, tokens_T: Tensor) -> torch.Tensor:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits_1TV[0, :-1].float(), tokens_T[1:])


@contextmanager
def _refused_without_cuda(formats: set[str]) -> Iterator[None]:
    """Lets what the library says about a missing CUDA device end as Unsupported, for the formats that need one."""
    asked = sorted(formats & set(NEEDS_CUDA))
    if not asked:
        yield
        return
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        raise Unsupported(
            f"modelopt cannot emulate {' and '.join(asked)} here: {error}",
            remedy="run it on a CUDA device, or use quantize.fp4, which packs these formats on any machine",
        ) from error
