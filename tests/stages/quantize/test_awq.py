"""AWQ through llm-compressor, against the paper written out slowly."""

import numpy as np
import pytest

from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.awq import QuantizeAwq
from harness.stages.quantize.proof.reloading import difference
from harness.testing import check_plugin
from tests.stages.prune.slow_references import inputs_of, weights_of
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load
from tests.stages.quantize.packed_world import pack, reopened, tensors, unpack_integers
from tests.stages.quantize.slow_quantizers import awq, round_asymmetric

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
pytestmark = pytest.mark.usefixtures("reloaded_here")
STEPS = 7
# The one linear layer of a Llama that is a block of its own: the search looks at its output and nothing else.
DOWN = "model.layers.0.mlp.down_proj"


def stage(**args) -> QuantizeAwq:
    return QuantizeAwq(**{"group": 32, "tokens": TOKENS, "sequence": SEQUENCE, "steps": STEPS} | args)


@pytest.fixture(scope="module")
def packed(loud, corpus, tmp_path_factory, reloaded_here) -> tuple[Artifact, BuildReport]:
    return pack(stage(duo_scaling=False), loud, tmp_path_factory.mktemp("packed"), corpus=corpus)


@pytest.fixture(scope="module")
def inputs(loud, corpus) -> np.ndarray:
    return inputs_of(load(loud.path), [DOWN], blocks_of(loud, corpus))[DOWN]


def test_awq_is_a_proper_plugin():
    check_plugin("stages", QuantizeAwq)


def test_the_scaled_and_rounded_weights_are_those_of_the_paper(packed, loud, inputs):
    before, after = weights_of(loud.path)[f"{DOWN}.weight"], unpack_integers(packed[0].path, DOWN)
    expected, _ = awq(before, inputs, bits=4, group=32, steps=STEPS)
    # float32 against float64: one step of the grid apart where a weight, or a zero point, was between two points.
    assert np.isclose(after, expected, rtol=1e-3, atol=1e-5).mean() > 0.98


def test_the_output_moves_no_more_than_under_plain_rounding(packed, loud, inputs):
    before, after = weights_of(loud.path)[f"{DOWN}.weight"], unpack_integers(packed[0].path, DOWN)
    _, scale_C = awq(before, inputs, bits=4, group=32, steps=STEPS)
    errors = [
        (((weight - before) @ inputs.T) ** 2).mean() for weight in (after / scale_C, round_asymmetric(before, 4, 32))
    ]
    assert errors[0] <= errors[1]


def test_scaling_cancels_out_and_what_is_left_is_rounding(packed, loud, corpus, tmp_path):
    # Steps at 8 bits are 17 times finer than at 4. Scales that did not cancel would leave an error that stays.
    tokens = torch.arange(3, 60)[None]
    fine, _ = pack(stage(bits=8, duo_scaling=False), loud, tmp_path, corpus=corpus)
    true = load(loud.path)(tokens).logits.detach()
    errors = [difference(true, reopened(out.path)(tokens).logits) for out in (packed[0], fine)]
    assert errors[1] < errors[0] / 6


def test_zero_points_are_stored_and_the_runtime_computes_with_what_the_codes_stand_for(packed):
    folder, model = packed[0].path, reopened(packed[0].path)
    # 64 rows of 4 bits are 8 words, one column of them for each of 256 / 32 groups.
    assert tensors(folder, DOWN)["weight_zero_point"].shape == (8, 8)
    for layer in (0, 1):
        for part in ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj"):
            module = f"model.layers.{layer}.{part}"
            found = model.get_submodule(module).weight.double().numpy()
            np.testing.assert_allclose(found, unpack_integers(folder, module), rtol=1e-6)


def test_the_report_says_which_pairs_were_left_unscaled(packed):
    _, report = packed
    # Two query heads share a key head here, so the value projection is narrower than what the output projection reads.
    assert any("2 mappings were skipped" in said for said in report.notes["warnings"])
    assert report.notes["coverage"]["layers"] == {"pack-quantized 4 bits, group 32": 14}


def test_layers_that_are_ignored_stay_and_the_same_seed_gives_the_same_bytes(loud, tmp_path):
    asked = stage(overrides={"model.layers.1.*": "keep"}, data_free=True)
    one, two = (pack(asked, loud, tmp_path / name)[0].path for name in ("one", "two"))
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(tensors(one)[name], tensors(loud.path)[name])


@pytest.mark.parametrize("args", [{"bits": 6}, {"group": 0}, {"steps": 2}, {"overrides": {"a": {"steps": 4}}}])
def test_arguments_that_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeAwq(**args)
