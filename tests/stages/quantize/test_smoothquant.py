"""SmoothQuant through llm-compressor, against its equation, and W8A8 as it is stored."""

import numpy as np
import pytest

from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.smoothquant import QuantizeSmoothquant
from harness.testing import check_plugin
from tests.stages.prune.slow_references import inputs_of, weights_of
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load
from tests.stages.quantize.packed_world import pack, reopened, tensors

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
pytestmark = pytest.mark.usefixtures("reloaded_here")
LAYER = "model.layers.0"
PROJECTIONS = [f"{LAYER}.self_attn.{part}_proj" for part in "qkv"]


def stage(**args) -> QuantizeSmoothquant:
    return QuantizeSmoothquant(tokens=TOKENS, sequence=SEQUENCE, **args)


@pytest.fixture(scope="module")
def packed(loud, corpus, tmp_path_factory, reloaded_here) -> dict[str, tuple[Artifact, BuildReport]]:
    return {
        rounding: pack(stage(rounding=rounding), loud, tmp_path_factory.mktemp(rounding), corpus=corpus)
        for rounding in ("rtn", "gptq")
    }


@pytest.fixture(scope="module")
def scale(loud, corpus) -> np.ndarray:
    """s = range(x)^a / (2 max|w|)^(1 - a) for every input channel (C,), a = 1/2."""
    inputs = inputs_of(load(loud.path), PROJECTIONS[:1], blocks_of(loud, corpus))[PROJECTIONS[0]]
    before = weights_of(loud.path)
    peaks = np.max([np.abs(before[f"{name}.weight"]).max(axis=0) for name in PROJECTIONS], axis=0)
    return np.sqrt((inputs.max(axis=0) - inputs.min(axis=0)) / (2 * peaks))


def test_smoothquant_is_a_proper_plugin():
    check_plugin("stages", QuantizeSmoothquant)


def test_the_norm_is_divided_by_the_scale_of_the_equation(packed, loud, scale):
    name = f"{LAYER}.input_layernorm.weight"
    np.testing.assert_allclose(weights_of(packed["rtn"][0].path)[name], weights_of(loud.path)[name] / scale, rtol=1e-4)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_weights_are_multiplied_by_it_and_rounded_to_8_bits_a_row(name, packed, loud, scale):
    stored = tensors(packed["rtn"][0].path, name)
    smooth = weights_of(loud.path)[f"{name}.weight"] * scale
    steps = np.abs(smooth).max(axis=1, keepdims=True) / 127.5
    np.testing.assert_allclose(stored["weight_scale"].double().numpy(), steps, rtol=1e-4)
    assert stored["weight"].dtype == torch.int8
    assert np.abs(stored["weight"].numpy() - np.clip(np.round(smooth / steps), -128, 127)).max() <= 1


def test_activations_are_rounded_too(packed):
    model, tokens = reopened(packed["rtn"][0].path), torch.arange(3, 40)[None]
    rounded = model(tokens).logits
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.forward = torch.nn.Linear.forward.__get__(module)
    assert not torch.equal(rounded, model(tokens).logits)


def test_smoothing_brings_loud_channels_nearer_to_the_model_than_plain_w8a8(packed, loud, corpus, tmp_path):
    # Nothing is moved into the weights with strength 0 up to a factor that only depends on them.
    tokens = torch.arange(3, 60)[None]
    true = load(loud.path)(tokens).logits.detach()
    plain, _ = pack(stage(strength=0.0), loud, tmp_path, corpus=corpus)
    errors = [float((reopened(out.path)(tokens).logits - true).square().mean()) for out in (packed["rtn"][0], plain)]
    assert errors[0] < errors[1]


def test_gptq_after_it_stores_the_same_scales_and_other_codes(packed):
    one, two = (tensors(packed[rounding][0].path, PROJECTIONS[0]) for rounding in ("rtn", "gptq"))
    assert torch.equal(one["weight_scale"], two["weight_scale"])
    assert not torch.equal(one["weight"], two["weight"])
    assert packed["gptq"][1].notes["coverage"]["activations"] == ["8-bit int per token, dynamic"]


@pytest.mark.parametrize("args", [{"strength": 1.5}, {"rounding": "awq"}, {"overrides": {"down_proj": {"bits": 4}}}])
def test_arguments_that_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeSmoothquant(**args)
