"""LSQ on a tiny model: steps are learned, and stored as they were learned."""

import pytest

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.lsq import QuantizeLsq
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.distill.classroom import assert_continues
from tests.stages.quantize.aware_world import (
    FAST,
    LONG,
    Trained,
    divergence,
    fitted,
    long_text,
    require_the_grid_of_training,
    watching_hands,
)
from tests.stages.quantize.packed_world import pack, tensors
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
MODULE = "model.layers.0.mlp.up_proj"
STAGES = {
    "2": QuantizeLsq(**LONG, bits=2, group=32),
    "3": QuantizeLsq(**FAST, bits=3, group=32),
    "4": QuantizeLsq(**FAST, bits=4, group=32),
    "8": QuantizeLsq(**FAST, bits=8, group=None, overrides={"o_proj": {"bits": 2, "group": 16}, "k_proj": "keep"}),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Artifact:
    return long_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, text) -> Artifact:
    return fitted(tmp_path_factory.mktemp("model"), text)


@pytest.fixture(scope="module")
def built(model, text, tmp_path_factory, reloaded_here) -> dict[str, tuple[Artifact, BuildReport, Trained]]:
    pytest.importorskip("llmcompressor")
    made = {}
    for name, stage in STAGES.items():
        with watching_hands() as trained:
            made[name] = (*pack(stage, model, tmp_path_factory.mktemp(f"bits{name}"), corpus=text), trained)
    return made


def test_lsq_is_a_proper_plugin():
    check_plugin("stages", QuantizeLsq)


@pytest.mark.parametrize("args", [{"bits": 5}, {"group": 0}, {"lora": 4}, {"overrides": {"x": {"learning_rate": 1}}}])
def test_arguments_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeLsq(**{"tokens": 4096, **args})


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_the_files_hold_the_learned_grid_bit_for_bit(name, built):
    out, report, trained = built[name]
    require_the_grid_of_training(out, trained)
    assert report.notes["reload_difference"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2", "3", "4"])
def test_steps_are_learned_and_are_not_those_of_the_largest_weight(name, built, model):
    out, bits = built[name][0], int(name)
    steps = tensors(out.path, MODULE)["weight_scale"]
    values = tensors(model.path, MODULE)["weight"].reshape(256, -1, 32)
    start = 2 * values.abs().mean(-1) / (2 ** (bits - 1) - 1) ** 0.5
    assert bool((steps > 0).all())
    assert not torch.isclose(steps, start, rtol=1e-4).any(dim=1).all()
    assert not torch.isclose(steps, values.abs().amax(-1) / ((2**bits - 1) / 2), rtol=1e-3).all()


@pytest.mark.slow
def test_more_bits_are_nearer_to_the_reference(built, model, text):
    found = [divergence(model.path, built[name][0].path, text) for name in ("2", "3", "4")]
    assert found == sorted(found, reverse=True)


@pytest.mark.slow
def test_training_brings_the_loss_down(built):
    notes = built["2"][1].notes
    assert notes["loss_last"] < notes["loss_first"]
    assert (notes["loss"], notes["steps"]) == ("ce", 32)
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]


@pytest.mark.slow
def test_overrides_are_honoured_in_the_tensors(built):
    out, report, _ = built["8"]
    assert report.notes["coverage"]["layers"] == {
        "pack-quantized 2 bits, group 16": 2,
        "pack-quantized 8 bits, whole row": 10,
    }
    assert "weight" in tensors(out.path, "model.layers.0.self_attn.k_proj")


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here")
def test_a_killed_run_continues_to_the_same_bits(text, tmp_path):
    pytest.importorskip("llmcompressor")
    source = artifact(tiny_llama(tmp_path / "model"), "hf")
    used = context(tmp_path / "scratch", corpus=text)
    assert_continues(lambda: QuantizeLsq(**FAST, bits=2, group=None, checkpoint_every=3), source, used, kills={4: 5})


def test_what_cannot_be_quantized_is_refused_before_anything_is_trained(text, tmp_path):
    source = artifact(tiny_llama(tmp_path / "model"), "hf")
    with pytest.raises(Unsupported, match="groups of 48 do not divide"):
        pack(QuantizeLsq(**FAST, group=48), source, tmp_path / "group", corpus=text)
    with pytest.raises(SpecError, match="names no linear layer"):
        pack(QuantizeLsq(**FAST, ignore=["lm_haed"]), source, tmp_path / "name", corpus=text)


@pytest.mark.slow
def test_torchaos_range_learning_has_the_same_gradients_but_for_the_papers_factor():
    pytest.importorskip("torchao")
    from torchao.quantization.qat import IntxFakeQuantizeConfig
    from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

    from harness.stages.quantize.straight_through import lsq

    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    asked = IntxFakeQuantizeConfig(torch.int3, group_size=32, is_symmetric=True, is_dynamic=False, range_learning=True)
    theirs = IntxFakeQuantizer(asked)
    theirs._initialized = True
    with torch.no_grad():
        theirs(weight)
        theirs.scale.mul_(0.6)  # so that some weights are cut
    factors = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    values = weight.clone().requires_grad_()
    expected = torch.autograd.grad((theirs(values) * factors).sum(), (values, theirs.scale))
    steps = theirs.scale.detach().clone().requires_grad_()
    ours = lsq(values.unflatten(1, (2, 32)), steps[..., None], bits=3).flatten(1)
    found = torch.autograd.grad((ours * factors).sum(), (values, steps))
    torch.testing.assert_close(ours, theirs(values))
    # At the ends they differ: a weight in the last half step is rounded to the last code there, and cut in the paper.
    codes = weight / steps.detach().repeat_interleave(32, dim=1)
    clear = ((codes > -4) & (codes < 3)) | (codes < -4.5) | (codes > 3.5)
    torch.testing.assert_close(found[0][clear], expected[0][clear])
    rows = clear.unflatten(1, (2, 32)).all(-1)
    torch.testing.assert_close(found[1][rows], expected[1].reshape(4, 2)[rows], rtol=1e-4, atol=1e-5)
