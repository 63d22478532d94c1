"""QAD on a tiny model fitted for a moment: nearer to itself than rounding and QAT, and packed as it was trained."""

import pytest

from harness.errors import SpecError
from harness.interfaces import Artifact, BuildReport
from harness.spec import Need
from harness.stages.quantize.fp4 import QuantizeFp4
from harness.stages.quantize.proof import reloading
from harness.stages.quantize.qad import QuantizeQad
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.distill.classroom import assert_continues
from tests.stages.quantize.aware_world import (
    FAST,
    LONG,
    Trained,
    decoded,
    divergence,
    fitted,
    long_text,
    require_the_grid_of_training,
    watching_hands,
)
from tests.stages.quantize.packed_world import pack, reopened, tensors
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
READ_AFRESH = reloading._read_afresh  # as it is before the module's fixture stands in for it
INT3 = {"kind": "int", "bits": 3, "group": 32}
MIXED = {"down_proj": {"bits": 8, "group": None}, "model.layers.1.self_attn.*": "keep"}
STAGES = {
    "nvfp4 kl": QuantizeQad(**LONG),
    "nvfp4 ce": QuantizeQad(**LONG, loss="ce"),
    "nvfp4 following": QuantizeQad(**FAST, scales="following"),
    "nvfp4 both": QuantizeQad(**FAST, activations=True),
    "int3 kl": QuantizeQad(**LONG, **INT3),
    "int3 ce": QuantizeQad(**LONG, **INT3, loss="ce"),
    "int3 mixed following": QuantizeQad(
        **FAST, **INT3, scales="following", overrides=MIXED, ignore=["lm_head", "up_proj"]
    ),
    "int8 both": QuantizeQad(**FAST, kind="int", bits=8, group=None, activations=True),
}
Built = dict[str, tuple[Artifact, BuildReport, Trained]]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Artifact:
    return long_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def model(tmp_path_factory, text) -> Artifact:
    return fitted(tmp_path_factory.mktemp("model"), text)


@pytest.fixture(scope="module")
def built(model, text, tmp_path_factory, reloaded_here) -> Built:
    pytest.importorskip("llmcompressor")
    made = {}
    for name, stage in STAGES.items():
        with watching_hands() as trained:
            made[name] = (*pack(stage, model, tmp_path_factory.mktemp(name.replace(" ", "-")), corpus=text), trained)
    return made


def test_qad_is_a_proper_plugin():
    check_plugin("stages", QuantizeQad)


def test_the_teacher_is_the_model_that_comes_in_unless_another_is_named():
    corpus = Need(name="corpus", source="docstrings:default")
    assert QuantizeQad(tokens=4096).needs == (corpus,)
    assert QuantizeQad(tokens=4096, teacher={"source": "reference"}).needs == (Need(name="teacher"), corpus)
    assert QuantizeQad(tokens=4096, data_free=True, heldout_tokens=0).needs == ()


@pytest.mark.parametrize(
    "args",
    [
        {"kind": "mxfp4"},
        {"loss": "mse"},
        {"scales": "learned"},
        {"kind": "int", "bits": 5},
        {"kind": "int", "group": 0},
        {"bits": 8},
        {"kind": "int", "activations": True},
        {"teacher": "hub:x/y"},
        {"lora": 8},
        {"quantized": "frozen"},
        {"overrides": {"down_proj": {"bits": 8}}},
        {"ignore": "lm_head"},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeQad(**{"tokens": 4096, **args})


@pytest.mark.parametrize("args", [{"tokens": 10}, {"learning_rate": 0.0}, {"optimizer": "sgd"}])
def test_training_arguments_are_checked_as_for_all_training(args):
    with pytest.raises(ValueError, match=r"tokens|learning_rate|optimizer"):
        QuantizeQad(**{"tokens": 4096, **args})


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_the_files_hold_the_weights_and_scales_of_training_bit_for_bit(name, built):
    out, report, trained = built[name]
    require_the_grid_of_training(out, trained)
    # The trained model in memory rounds weights and inputs by this project's code, the files are read by the library's.
    assert report.notes["reload_difference"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("form", ["nvfp4", "int3"])
def test_qad_is_nearer_to_the_reference_than_rounding_and_than_training_on_text(form, built, model, text):
    taught, control = (built[f"{form} {loss}"] for loss in ("kl", "ce"))
    found, drifted = (divergence(model.path, out.path, text) for out, _, _ in (taught, control))
    # Both start from plain rounding with the same scales.
    before = taught[1].notes["heldout_kl_before"]
    assert before == pytest.approx(control[1].notes["heldout_kl_before"], rel=1e-6)
    assert found < before
    assert found < drifted
    assert taught[1].notes["heldout_kl_after"] == pytest.approx(found, rel=0.1)
    assert (taught[1].notes["loss"], control[1].notes["loss"]) == ("kl", "ce")


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here")
def test_before_training_it_is_plain_rounding(built, model, text, tmp_path):
    out, _ = pack(QuantizeFp4(), model, tmp_path)
    rounded = divergence(model.path, out.path, text)
    # Rounded models are compared in bfloat16, whose own rounding is a small part of what four bits cost.
    assert built["nvfp4 kl"][1].notes["heldout_kl_before"] == pytest.approx(rounded, rel=0.1)
    assert divergence(model.path, built["nvfp4 kl"][0].path, text) < rounded


@pytest.mark.slow
def test_all_weights_are_trained_and_scales_are_fixed_or_follow(built, model):
    embedding = tensors(model.path)["model.embed_tokens.weight"].to(torch.bfloat16)
    assert not torch.equal(tensors(built["nvfp4 kl"][0].path)["model.embed_tokens.weight"], embedding)
    module = "model.layers.0.mlp.gate_proj"
    before = tensors(model.path, module)["weight"].reshape(256, -1, 32).abs().amax(-1)
    for name, stays in (("int3 kl", True), ("int3 mixed following", False)):
        steps = tensors(built[name][0].path, module)["weight_scale"]
        assert torch.isclose(steps, before / 3.5, rtol=1e-6).all() == stays


@pytest.mark.slow
def test_overrides_and_ignore_are_honoured_in_the_tensors(built):
    out, report, _ = built["int3 mixed following"]
    assert report.notes["coverage"]["layers"] == {
        "pack-quantized 3 bits, group 32": 6,  # gate in both layers, four projections in the first
        "pack-quantized 8 bits, whole row": 2,
    }
    for layer in (0, 1):
        assert "weight" in tensors(out.path, f"model.layers.{layer}.mlp.up_proj")
        assert tensors(out.path, f"model.layers.{layer}.mlp.down_proj")["weight_scale"].shape == (64, 1)
    assert "weight" in tensors(out.path, "model.layers.1.self_attn.q_proj")


@pytest.mark.slow
def test_the_report_says_what_was_stored_and_trained(built):
    notes = built["nvfp4 both"][1].notes
    assert notes["coverage"]["activations"] == ["4-bit float per tensor_group, local"]
    assert notes["coverage"]["bits_per_quantized_weight"] == pytest.approx(4.5, abs=0.02)
    assert (notes["steps"], notes["calibration"]["blocks"]) == (8, 16)
    assert built["int8 both"][1].notes["coverage"]["layers"] == {"int-quantized 8 bits, whole row": 14}
    assert built["int3 kl"][1].tokens == LONG["tokens"]


@pytest.mark.slow
def test_the_runtime_computes_with_the_decoded_weights(built):
    for name in ("nvfp4 kl", "int3 kl", "int8 both"):
        folder = built[name][0].path
        module = "model.layers.1.mlp.down_proj"
        assert torch.equal(reopened(folder).get_submodule(module).weight, decoded(folder, module))


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here")
@pytest.mark.parametrize("args", [{"activations": True}, {**INT3, "scales": "following", "data_free": True}])
def test_a_killed_run_continues_to_the_same_bits(args, text, tmp_path):
    pytest.importorskip("llmcompressor")
    source = artifact(tiny_llama(tmp_path / "model"), "hf")
    used = context(tmp_path / "scratch", corpus=text)
    assert_continues(lambda: QuantizeQad(**FAST, **args, checkpoint_every=3), source, used, kills={5: 5})


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here")
def test_bfloat16_models_keep_their_type_and_land_on_the_grid_of_training(text, tmp_path):
    pytest.importorskip("llmcompressor")
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    stage = QuantizeQad(**FAST, kind="int", bits=8, group=None)
    with watching_hands() as trained:
        out, report = pack(stage, artifact(folder, "hf"), tmp_path / "packed", corpus=text)
    require_the_grid_of_training(out, trained)
    assert tensors(out.path)["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert report.notes["reload_difference"] == 0.0


@pytest.mark.slow
def test_a_fresh_process_computes_what_was_trained(text, tmp_path, monkeypatch):
    pytest.importorskip("llmcompressor")
    monkeypatch.setattr(reloading, "_read_afresh", READ_AFRESH)
    source = artifact(tiny_llama(tmp_path / "model"), "hf")
    _, report = pack(QuantizeQad(**FAST, activations=True), source, tmp_path / "packed", corpus=text)
    assert report.notes["reload_difference"] == 0.0


@pytest.mark.slow
def test_a_teacher_of_another_vocabulary_is_refused(model, text, tmp_path):
    pytest.importorskip("llmcompressor")
    stranger = artifact(tiny_llama(tmp_path / "stranger", vocab=370), "hf")
    stage = QuantizeQad(**FAST, teacher={"source": "reference"})
    with pytest.raises(SpecError, match="different vocabularies"):
        pack(stage, model, tmp_path / "packed", corpus=text, teacher=stranger)
