"""Round-to-nearest on checkpoints: what changes, what must not, and what is reported."""

import json
import math
from pathlib import Path

import pytest

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact
from harness.stages.quantize.rtn import QuantizeRtn
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def quantize(source: Artifact, out: Path, **args):
    out.mkdir(parents=True)
    used = context(out.with_name(out.name + "-scratch"))
    QuantizeRtn(**args).apply(source, out, context=used)
    return out, used.report


def is_linear(name: str) -> bool:
    return name.split(".")[-2] in LINEAR


def test_rtn_is_a_proper_plugin():
    check_plugin("stages", QuantizeRtn)


def test_linear_weights_go_to_the_grid_and_nothing_else_moves(model, tmp_path):
    out, _ = quantize(model, tmp_path / "out", bits=3, group=16)
    before, after = tensors(model.path), tensors(out)
    assert before.keys() == after.keys()
    for name, weight in after.items():
        assert weight.dtype == before[name].dtype
        if is_linear(name):
            groups = weight.reshape(-1, 16)
            assert max(len(set(group.tolist())) for group in groups) <= 2**3
            assert not torch.equal(weight, before[name])
        else:
            assert torch.equal(weight, before[name])


def test_the_nominal_size_is_that_of_packed_weights_and_untouched_tensors(model, tmp_path):
    _, report = quantize(model, tmp_path / "out", bits=4, group=48)
    expected = 0
    for name, weight in tensors(model.path).items():
        if is_linear(name):
            groups = weight.shape[0] * math.ceil(weight.shape[1] / 48)
            expected += weight.numel() // 2 + groups * 2 + groups // 2  # codes, 16-bit scales, 4-bit zero points
        else:
            expected += 4 * weight.numel()
    assert report.nominal_bytes == expected


def test_the_notes_say_how_much_was_quantized_and_how_badly(model, tmp_path):
    out, report = quantize(model, tmp_path / "out", bits=2)
    before, after = tensors(model.path), tensors(out)
    chosen = [name for name in before if is_linear(name)]
    weights = sum(before[name].numel() for name in chosen)
    squared = sum(float((before[name] - after[name]).double().square().sum()) for name in chosen)
    assert report.notes["weights_quantized"] == weights
    assert report.notes["fraction_quantized"] == weights / sum(t.numel() for t in before.values())
    assert report.notes["mean_squared_error"] == pytest.approx(squared / weights, rel=1e-9)


def test_everything_that_is_no_weight_is_copied_byte_for_byte(model, tmp_path):
    (model.path / "LICENSE").write_text("as you like")
    out, _ = quantize(model, tmp_path / "out", bits=4)
    for file in model.path.iterdir():
        if file.suffix != ".safetensors":
            assert (out / file.name).read_bytes() == file.read_bytes()


def test_more_bits_bring_the_answers_closer_to_the_originals(model, tmp_path):
    from transformers import AutoModelForCausalLM

    tokens = torch.arange(3, 43)[None]

    def logits(folder: Path):
        with torch.inference_mode():
            return AutoModelForCausalLM.from_pretrained(folder)(tokens).logits

    reference = logits(model.path)
    errors = [
        float((logits(quantize(model, tmp_path / str(bits), bits=bits)[0]) - reference).square().mean())
        for bits in (2, 3, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 100


def test_a_file_in_pieces_gives_the_same_tensors_and_the_same_pieces(model, tmp_path):
    from transformers import AutoModelForCausalLM

    pieces = tmp_path / "pieces"
    AutoModelForCausalLM.from_pretrained(model.path).save_pretrained(pieces, max_shard_size="100KB")
    assert len(list(pieces.glob("*.safetensors"))) > 1
    whole, report = quantize(model, tmp_path / "whole", bits=4)
    split, report_split = quantize(artifact(pieces, "hf"), tmp_path / "split", bits=4)
    left, right = tensors(whole), tensors(split)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert report.nominal_bytes == report_split.nominal_bytes
    AutoModelForCausalLM.from_pretrained(split)  # the index names the pieces


def test_bfloat16_stays_bfloat16(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tiny_llama(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    out, _ = quantize(artifact(folder, "hf"), tmp_path / "out", bits=4)
    assert {t.dtype for t in tensors(out).values()} == {torch.bfloat16}


def test_layers_in_skip_stay_as_they_are(model, tmp_path):
    out, _ = quantize(model, tmp_path / "out", bits=2, skip=["lm_head", "down_proj", "model.layers.0.self_attn.q_proj"])
    before, after = tensors(model.path), tensors(out)
    kept = {name for name in before if is_linear(name) and torch.equal(before[name], after[name])}
    expected = {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)} | {"model.layers.0.self_attn.q_proj.weight"}
    assert kept == expected


def test_a_skip_that_names_nothing_suggests_the_closest(model, tmp_path):
    with pytest.raises(SpecError, match="did you mean 'down_proj'"):
        quantize(model, tmp_path / "out", bits=4, skip=["lm_head", "dwn_proj"])


def test_an_untied_head_is_quantized_only_when_asked_for(tmp_path):
    source = artifact(tiny_llama(tmp_path / "model", tie=False), "hf")
    kept, _ = quantize(source, tmp_path / "kept", bits=2)
    asked, _ = quantize(source, tmp_path / "asked", bits=2, skip=[])
    head = tensors(source.path)["lm_head.weight"]
    assert torch.equal(tensors(kept)["lm_head.weight"], head)
    assert not torch.equal(tensors(asked)["lm_head.weight"], head)


def test_a_tied_head_cannot_be_quantized_apart_from_the_embedding(model, tmp_path):
    with pytest.raises(Unsupported, match=r"lm_head\.weight"):
        quantize(model, tmp_path / "out", bits=4, skip=[])


def test_packed_weights_are_not_quantized_again(tmp_path):
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(Unsupported, match="already packed"):
        quantize(artifact(folder, "hf"), tmp_path / "out", bits=4)


@pytest.mark.parametrize("args", [{"bits": 5}, {"bits": 4, "group": 0}, {"bits": 4, "skip": "lm_head"}])
def test_arguments_out_of_range_are_refused_with_what_is_allowed(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeRtn(**args)


@pytest.mark.model
def test_four_bits_of_a_real_model_cost_a_little_and_two_cost_everything(smollm2_dir, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = "The water cycle describes how water evaporates from the oceans, condenses into clouds and falls as rain."
    tokens = AutoTokenizer.from_pretrained(smollm2_dir)(text, return_tensors="pt").input_ids

    def loss(folder: Path) -> float:
        with torch.inference_mode():
            return float(AutoModelForCausalLM.from_pretrained(folder)(tokens, labels=tokens).loss)

    source = artifact(smollm2_dir, "hf")
    four, report = quantize(source, tmp_path / "4", bits=4, group=64)
    two, _ = quantize(source, tmp_path / "2", bits=2, group=64)
    # 106,168,320 weights sit in linear layers: 30 * (2 * 576^2 + 2 * 576 * 192 + 3 * 576 * 1536).
    assert report.notes["weights_quantized"] == 30 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536)
    assert loss(four) < loss(smollm2_dir) + 1 < loss(two)
