"""Checks of what was written: which bits, which layers, and whether the model still says what it said.

How far a model may move is measured by the plainest quantizer there is. The source is rounded to the nearest point of
the same grids (as many bits, as many columns to a scale), and how far its states and logits are then from the source's
is what a method is compared with: it may be FACTOR times as far, and twice that when it rounds activations too, which
plain rounding does not. 8-bit floats have coarser steps than 8-bit integers, so from 6 bits on the distance at 5 bits
is allowed as well. A layer of zeros or scales that belong to other weights are further away than that.

Weights may move together: AWQ and SmoothQuant multiply a column of one layer and divide what feeds it. So weights are
held against the source's after a factor for every row and every column has been taken out, and what is compared is how
large each group is; the grid of a group cannot make it much larger or smaller, and a scale of another group does.

Shapes: B texts, T tokens, V vocabulary, D width, R rows, C columns, G groups a row.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from harness.conformance.bench import Bench, runtime_for
from harness.conformance.grids import is_kept, tensors_of
from harness.conformance.models import KEPT, OTHER, PLAIN, TIED
from harness.conformance.verdicts import NotApplicable, require
from harness.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

    from harness.conformance.reading import Reading

FACTOR: Final = 2.5
BAND: Final = 1.35
"""How much larger or smaller than it was a group of weights may be."""
SHARE_OUTSIDE: Final = 0.05
"""Share of groups that may lie outside the band, beside twice as many as plain rounding has there."""
IGNORING: Final = ("ignore", "skip", "exclude", "modules_to_not_convert")
HEAD, EMBEDDING = "lm_head", "model.embed_tokens"
GROUP: Final = 64
"""Columns that are compared together; no more than share a scale."""


def stores_what_it_says(bench: Bench) -> str | NotApplicable:
    """The tensors hold as many bits a weight as is declared, and something was quantized at all."""
    found = bench.grids
    require(not found.wrong, found.wrong)
    return NotApplicable(found.unknown) if found.unknown else found.seen


def honours_ignore(bench: Bench) -> str | NotApplicable:
    """A layer that is named to be left alone is, and others are not."""
    argument = bench.argument(*IGNORING)
    if argument is None:
        return NotApplicable(f"it has no argument {' or '.join(IGNORING[:2])}")
    name, given = argument
    require(not isinstance(given, str), f"{name} is {given!r}; it is to be a list of module names")
    built = bench.build(PLAIN, label=name, **{name: [*(given or ()), KEPT]})
    require(not built.error, f"with {name}: [{KEPT}] it fails: {built.error}")
    before, after = tensors_of(bench.world.sources[PLAIN].path), tensors_of(built.path)
    require(is_kept(before, after, f"{KEPT}.weight"), f"{KEPT} was to be left alone by {name}, and is not what it was")
    require(not is_kept(before, after, f"{OTHER}.weight"), f"{name}: [{KEPT}] keeps {OTHER} too")
    return f"{name}: [{KEPT}] keeps that layer bit for bit, and {OTHER} is quantized"


def keeps_the_ends(bench: Bench) -> str | NotApplicable:
    """Embedding and head are what they were, unless the stage is told to quantize the head."""
    after, before = tensors_of(bench.require(PLAIN).path), tensors_of(bench.world.sources[PLAIN].path)
    if bench.format not in ("hf", "grid", "packed"):
        return NotApplicable(f"a {bench.format} file says by its type what becomes of them")
    argument = bench.argument(*IGNORING)
    is_told = argument is not None and HEAD not in argument[1]
    ends = [EMBEDDING] if is_told else [EMBEDDING, HEAD]
    changed = [end for end in ends if not is_kept(before, after, f"{end}.weight")]
    require(not changed, f"{' and '.join(changed)} changed, and nobody asked for it")
    return f"{' and '.join(ends)} bit for bit as they were{', the head was asked for' if is_told else ''}"


def reads_back_the_same(bench: Bench) -> str:
    """Two fresh processes that open the folder compute the same."""
    import torch

    first, second = bench.reading(PLAIN).require(), bench.again.require()
    assert first.logits_BTV is not None
    assert second.logits_BTV is not None
    furthest = float((first.logits_BTV - second.logits_BTV).abs().max())
    require(torch.equal(first.logits_BTV, second.logits_BTV), f"two processes differ by up to {furthest:.3g} in logits")
    return f"two fresh processes give the same {first.logits_BTV.numel():,} logits"


def answers_like_the_source(bench: Bench) -> str:
    """After every layer the state is about as near to the source's as plain rounding leaves it."""
    return "; ".join(_near(bench, PLAIN))


def answers_when_tied(bench: Bench) -> str:
    """A model whose head is its embedding stays one, and still answers."""
    built = bench.require(TIED)
    reading = bench.reading(TIED).require()
    tensors = tensors_of(built.path)
    if bench.format != "gguf":
        ends = [tensors[f"{end}.weight"] for end in (EMBEDDING, HEAD) if f"{end}.weight" in tensors]
        require(all(bool(end.any()) for end in ends), "a head of zeros was written")
        require(reading.is_tied, "head and embedding were one tensor and are two")
    return f"in bfloat16, still tied; {_near(bench, TIED)[-1]}"


def opens_in_a_runtime(bench: Bench) -> str:
    """The folder has all a runtime needs, and a text scored with its own tokenizer has finite log-probabilities."""
    bench.require(PLAIN)
    runtime = runtime_for(bench.format)
    require(runtime is not None, f"no runtime here opens the format {bench.format!r}")
    reading = bench.reading(PLAIN)
    require(not reading.error, f"{runtime} cannot open it: {reading.error}")
    require(not reading.session_error, f"{runtime} cannot score a text: {reading.session_error}")
    finite = [value for value in reading.logprobs if math.isfinite(value)]
    require(len(finite) == len(reading.logprobs) > 0, "log-probabilities are not finite")
    return f"{runtime}: {len(finite)} tokens at {sum(finite) / len(finite):.2f} nats each"


def weighs_like_the_source(bench: Bench) -> str | NotApplicable:
    """Groups of weights, as a fresh process computes with them, are as large as the source's."""
    found, source, rounded = (bench.reading(PLAIN, what=what).require() for what in ("built", "source", "rounded"))
    if not found.weights:
        return NotApplicable(f"{runtime_for(bench.format)} does not show single layers")
    worst = ("", -1.0, 0.0)
    for module, weight_RC in source.weights.items():
        group = next((one.group for one in bench.grids.roundings if one.module == module), None) or GROUP
        outside, plainly = (_outside(weight_RC, each.weights[module], min(group, GROUP)) for each in (found, rounded))
        allowed = SHARE_OUTSIDE + 2 * plainly
        require(
            outside <= allowed,
            f"{module}: {outside:.0%} of the groups of weights are not as large as they were (beyond {BAND:.2f} times, "
            f"rows' and columns' factors apart); plain rounding has {plainly:.1%} there, and {allowed:.0%} are allowed",
        )
        worst = max(worst, (module, outside, allowed), key=lambda one: one[1])
    return f"at most {worst[1]:.1%} of a layer's groups moved in size ({worst[0]}), {worst[2]:.0%} are allowed"


def _near(bench: Bench, model: str) -> list[str]:
    """Gives how far each layer and the logits are. Raises AssertionError for the first one that is too far."""
    readings = [bench.reading(model, what=what).require() for what in ("built", "source", "rounded", "coarse")]
    factor = FACTOR * (2 if bench.grids.rounds_inputs else 1)
    found, source, rounded, coarse = (_states(reading) for reading in readings)
    told = []
    for name, state in source.items():
        distance, plainly, coarsely = (relative(state, other[name]) for other in (found, rounded, coarse))
        allowed = max(factor * plainly, coarsely)
        said = f"{name} off by {distance:.3g} (plain rounding {plainly:.3g}, allowed {allowed:.3g})"
        require(distance <= allowed, said)
        told.append(said)
    return told


def _states(reading: Reading) -> dict[str, Tensor]:
    assert reading.logits_BTV is not None
    layers = {f"layer {number}": state for number, state in enumerate(reading.layers_BTD)}
    return layers | {"logits": reading.logits_BTV}


def relative(expected_BTD: Tensor, found_BTD: Tensor) -> float:
    """Gives the distance of states over the spread of those expected about their mean over all tokens."""
    if expected_BTD.shape != found_BTD.shape:
        raise ModelError(f"states have the shape {list(found_BTD.shape)}, the source's {list(expected_BTD.shape)}")
    expected_ND, found_ND = expected_BTD.double().flatten(0, 1), found_BTD.double().flatten(0, 1)
    spread_ND = expected_ND - expected_ND.mean(dim=0)
    return float((expected_ND - found_ND).norm() / spread_ND.norm())


def _outside(before_RC: Tensor, after_RC: Tensor, group: int) -> float:
    """Gives the share of groups whose size changed by more than the band, rows' and columns' own factors taken out."""
    expected_RG = _sizes(without_factors(before_RC.double(), after_RC.double()), group)
    found_RG = _sizes(after_RC.double(), group)
    return float(((found_RG < expected_RG / BAND) | (found_RG > expected_RG * BAND)).double().mean())


def without_factors(before_RC: Tensor, after_RC: Tensor) -> Tensor:
    """Gives the weights before, with the factors for rows and columns that bring them nearest to those after.

    Least squares by turns; a factor is between 1/64 and 64, so that what became zero still shows.
    """
    import torch

    rows_R1, columns_1C = torch.ones_like(before_RC[:, :1]), torch.ones_like(before_RC[:1])
    for _ in range(3):
        columns_1C = _factor(before_RC * rows_R1, after_RC, dim=0)
        rows_R1 = _factor(before_RC * columns_1C, after_RC, dim=1)
    return before_RC * rows_R1 * columns_1C


def _factor(before_RC: Tensor, after_RC: Tensor, *, dim: int) -> Tensor:
    square = before_RC.square().sum(dim=dim, keepdim=True).clamp(min=1e-30)
    return ((before_RC * after_RC).sum(dim=dim, keepdim=True) / square).clamp(1 / 64, 64)


def _sizes(weight_RC: Tensor, group: int) -> Tensor:
    import torch

    return torch.stack([part_RK.norm(dim=1) for part_RK in torch.split(weight_RC, group, dim=1)], dim=1)
