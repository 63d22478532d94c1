"""Inequalities that make a method what it is, on models drawn from several seeds: each stage against plain rounding.

All of them hold for any weights as long as inputs go together and some channels are loud, as in trained models.
"""

from functools import partial

import numpy as np
import pytest

from harness.interfaces import Artifact
from harness.stages.prune.magnitude import PruneMagnitude
from harness.stages.prune.wanda import PruneWanda
from harness.stages.quantize.awq import QuantizeAwq
from harness.stages.quantize.fp4 import QuantizeFp4
from harness.stages.quantize.gptq import QuantizeGptq
from harness.stages.quantize.smoothquant import QuantizeSmoothquant
from tests.stages.prune.slow_references import inputs_of, output_error, weights_of
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load, loud_llama, prune
from tests.stages.quantize.packed_world import pack, reopened

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("reloaded_here")]
READ = {"tokens": TOKENS, "sequence": SEQUENCE}
# What the first decoder layer reads does not depend on what was rounded.
PROJECTIONS = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]


@pytest.fixture(scope="module", params=[1, 2, 3])
def model(request, tmp_path_factory) -> Artifact:
    return loud_llama(tmp_path_factory.mktemp(f"loud-{request.param}"), seed=request.param)


@pytest.fixture(scope="module")
def inputs(model, corpus) -> dict[str, np.ndarray]:
    return inputs_of(load(model.path), PROJECTIONS, blocks_of(model, corpus))


@pytest.fixture
def packed(model, corpus, tmp_path):
    return partial(pack, source=model, corpus=corpus)


def logits(folder):
    return reopened(folder)(torch.arange(3, 60)[None]).logits.detach()


def moved(model: Artifact, folder, inputs) -> float:
    """The squared error of the projections' outputs, with what the runtime computes from the folder."""
    after = reopened(folder)
    before = weights_of(model.path)
    return sum(
        output_error(before[f"{name}.weight"], after.get_submodule(name).weight.double().numpy(), inputs[name])
        for name in PROJECTIONS
    )


def projected(running, blocks_NT: np.ndarray):
    """What the projections of the first layer give for the text, the scaling of the norm before them included."""
    found = []
    hooks = [
        running.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output.detach()))
        for name in PROJECTIONS
    ]
    with torch.no_grad():
        running(torch.from_numpy(blocks_NT))
    for hook in hooks:
        hook.remove()
    return torch.cat(found, dim=-1)


@pytest.mark.parametrize("bits", [4, 3])
def test_gptq_moves_outputs_less_than_plain_rounding(bits, model, inputs, packed, tmp_path):
    tuned, _ = packed(QuantizeGptq(bits=bits, group=32, **READ), folder=tmp_path / "gptq")
    # Damping near 1 takes the Hessian for a multiple of the unit matrix, under which GPTQ is plain rounding.
    plain, _ = packed(
        QuantizeGptq(bits=bits, group=32, damping=0.999999, act_order=False, **READ), folder=tmp_path / "r"
    )
    assert moved(model, tuned.path, inputs) < moved(model, plain.path, inputs)


def test_awq_moves_the_projections_of_loud_channels_less_than_rounding_without_its_scales(
    model, corpus, packed, tmp_path
):
    blocks_NT = blocks_of(model, corpus)
    plain = QuantizeGptq(group=32, symmetric=False, damping=0.999999, act_order=False, **READ)
    scaled, unscaled = (
        packed(QuantizeAwq(group=32, **READ), folder=tmp_path / "awq"),
        packed(plain, folder=tmp_path / "r"),
    )
    true = projected(load(model.path), blocks_NT)
    errors = [float((projected(reopened(out.path), blocks_NT) - true).square().mean()) for out, _ in (scaled, unscaled)]
    assert errors[0] < errors[1]


def test_smoothquant_is_nearer_than_plain_w8a8_where_channels_are_loud(model, packed, tmp_path):
    true = logits(model.path)
    smooth, _ = packed(QuantizeSmoothquant(**READ), folder=tmp_path / "smooth")
    plain, _ = packed(QuantizeSmoothquant(strength=0.0, **READ), folder=tmp_path / "plain")
    errors = [float((logits(out.path) - true).square().mean()) for out in (smooth, plain)]
    assert errors[0] < errors[1]


def test_nvfp4_is_nearer_to_the_weights_than_mxfp4(model, packed, tmp_path):
    before = weights_of(model.path)
    errors = []
    for kind in ("nvfp4", "mxfp4"):
        after = reopened(packed(QuantizeFp4(kind=kind), folder=tmp_path / kind)[0].path)
        errors.append(
            sum(
                float(((after.get_submodule(name).weight.double().numpy() - before[f"{name}.weight"]) ** 2).sum())
                for name in PROJECTIONS
            )
        )
    assert errors[0] < errors[1]


def test_wanda_moves_outputs_less_than_magnitude_pruning(model, inputs, corpus, tmp_path):
    by_inputs, _ = prune(PruneWanda(**READ), model, tmp_path / "wanda", corpus=corpus)
    by_size, _ = prune(PruneMagnitude(scope="row"), model, tmp_path / "magnitude")
    before = weights_of(model.path)
    errors = [
        sum(output_error(before[f"{n}.weight"], weights_of(out)[f"{n}.weight"], inputs[n]) for n in PROJECTIONS)
        for out in (by_inputs, by_size)
    ]
    assert errors[0] < errors[1]
