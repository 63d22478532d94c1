"""QAT by torchao on a tiny model: prepared, trained, converted, and packed on the grid it was trained on."""

import pytest

from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.qat import QuantizeQat
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.distill.classroom import assert_continues
from tests.stages.quantize.aware_world import (
    FAST,
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
    "2": QuantizeQat(**FAST, bits=2, group=32),
    "4": QuantizeQat(**FAST, bits=4, group=32),
    "8": QuantizeQat(**FAST, bits=8, group=None, overrides={"o_proj": {"bits": 2, "group": 16}, "k_proj": "keep"}),
    "4 both": QuantizeQat(**FAST, bits=4, group=32, activations=True),
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Artifact:
    return long_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, text) -> Artifact:
    return fitted(tmp_path_factory.mktemp("model"), text)


@pytest.fixture(scope="module")
def built(model, text, tmp_path_factory, reloaded_here) -> dict[str, tuple[Artifact, BuildReport, Trained]]:
    pytest.importorskip("torchao")
    pytest.importorskip("llmcompressor")
    made = {}
    for name, stage in STAGES.items():
        with watching_hands() as trained:
            made[name] = (*pack(stage, model, tmp_path_factory.mktemp(name.replace(" ", "-")), corpus=text), trained)
    return made


def test_qat_is_a_proper_plugin():
    check_plugin("stages", QuantizeQat)


@pytest.mark.parametrize("args", [{"bits": 5}, {"group": 1}, {"lora": 4}, {"overrides": {"x": {"activations": True}}}])
def test_arguments_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeQat(**{"tokens": 4096, **args})


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_the_files_hold_what_torchao_converted_bit_for_bit(name, built):
    out, report, trained = built[name]
    require_the_grid_of_training(out, trained)
    assert report.notes["reload_difference"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits", "group"), [("2", 2, 32), ("4", 4, 32), ("8", 8, 64), ("4 both", 4, 32)])
def test_the_grid_is_that_of_the_largest_weight_and_has_all_codes(name, bits, group, built):
    _, _, trained = built[name]
    weight = trained.weights[MODULE].reshape(256, -1, group)
    codes = (weight / trained.parameters[MODULE]["weight_scale"][..., None]).round()
    assert (codes.min(), codes.max()) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    # torchao's symmetric step is max|w| over half the range: the largest weight is on the last code or half beyond it.
    peaks = codes.abs().amax(-1)
    assert set(peaks.unique().tolist()) <= {2 ** (bits - 1) - 1, 2 ** (bits - 1)}


@pytest.mark.slow
def test_more_bits_are_nearer_to_the_reference_and_the_loss_comes_down(built, model, text):
    found = [divergence(model.path, built[name][0].path, text) for name in ("2", "4")]
    assert found == sorted(found, reverse=True)
    assert built["2"][1].notes["loss_last"] < built["2"][1].notes["loss_first"]


@pytest.mark.slow
def test_codes_take_the_bits_they_are_called_by(built):
    # 4 bits and a 32-bit scale for 32 weights, 64 bytes or less of shape for a layer.
    notes = built["4"][1].notes["coverage"]
    assert notes["layers"] == {"pack-quantized 4 bits, group 32": 14}
    assert notes["bits_per_quantized_weight"] == pytest.approx(5.0, abs=0.05)
    # torchao's own layout has a byte for every code, and says so.
    assert built["4 both"][1].notes["coverage"]["layers"] == {"torchao-int8 8 bits, group 32": 14}
    assert built["4 both"][1].notes["coverage"]["activations"] == ["8-bit int per token, dynamic, asymmetric"]
    assert built["4 both"][1].labels == ["torchao stores codes of fewer bits in 8 bits each"]
    assert built["8"][1].notes["coverage"]["layers"] == {
        "pack-quantized 2 bits, group 16": 2,
        "pack-quantized 8 bits, whole row": 10,
    }
    assert "weight" in tensors(built["8"][0].path, "model.layers.0.self_attn.k_proj")


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here")
def test_a_killed_run_continues_to_the_same_bits(text, tmp_path):
    pytest.importorskip("torchao")
    pytest.importorskip("llmcompressor")
    source = artifact(tiny_llama(tmp_path / "model"), "hf")
    used = context(tmp_path / "scratch", corpus=text)
    asked = {**FAST, "bits": 3, "group": 32, "activations": True, "checkpoint_every": 3}
    assert_continues(lambda: QuantizeQat(**asked), source, used, kills={7: 2})


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here")
@pytest.mark.parametrize("activations", [True, False])
def test_bfloat16_models_are_read_back_as_they_were_in_memory(activations, text, tmp_path):
    pytest.importorskip("torchao")
    pytest.importorskip("llmcompressor")
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    stage = QuantizeQat(**FAST, group=64, activations=activations)
    with watching_hands() as trained:
        out, report = pack(stage, artifact(folder, "hf"), tmp_path / "packed", corpus=text)
    require_the_grid_of_training(out, trained)
    assert tensors(out.path)["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert report.notes["reload_difference"] == 0.0
