"""AutoRound and AutoScheme, against plain rounding written out by hand and decoders of what lies in the files.

Shapes: R rows, C columns, G groups a row, N texts, T tokens.
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.spec import Need
from harness.stages.quantize._auto_round import require_packable
from harness.stages.quantize.autoround import QuantizeAutoround
from harness.stages.quantize.autoscheme import QuantizeAutoscheme, counted_bits
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.coverage import Coverage, prove
from harness.stages.quantize.proof.reloading import difference
from harness.stages.quantize.recipe import assign
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load
from tests.stages.quantize.packed_world import pack, reading_here, reopened, tensors, words_to_codes
from tests.stages.quantize.test_coverage import MODEL, folder
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
GROUP = 32
UP, DOWN, KEPT = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"
AWQ_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]  # where in a word AutoAWQ's gemm puts eight codes
LIBRARY = [
    pytest.mark.slow,
    # It asks torch for deterministic algorithms and to warn where there is none.
    pytest.mark.filterwarnings("ignore:.*does not have a deterministic implementation"),
    # gptqmodel leaves a folder for the interpreter to clean up.
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up <TemporaryDirectory:ResourceWarning"),
    # Modules written in C that gptqmodel and datasets import.
    pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning"),
]


def slow(test):
    """Marks a test that imports the library."""
    for mark in LIBRARY:
        test = mark(test)
    return test


def stage(**args) -> QuantizeAutoround:
    return QuantizeAutoround(**{"group": GROUP, "tokens": TOKENS, "sequence": SEQUENCE, "iters": 0} | args)


def scheme(**args) -> QuantizeAutoscheme:
    return QuantizeAutoscheme(**{"group": GROUP, "tokens": TOKENS, "sequence": SEQUENCE, "iters": 0} | args)


STAGES = {
    "2": stage(bits=2),
    "2 tuned": stage(bits=2, iters=10),
    "4": stage(layout="gptq"),
    "4 asymmetric": stage(symmetric=False),
    "awq": stage(layout="awq", symmetric=False, overrides={"model.layers.1.self_attn.*": "keep"}),
    "8": stage(bits=8, group=None, symmetric=False),
    "mixed": stage(bits=3, overrides={"down_proj": {"bits": 8, "group": None}, "layers.1.self_attn.q_proj": "keep"}),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("plain")), "hf")


@pytest.fixture(scope="module")
def packed(plain, corpus, tmp_path_factory) -> dict[str, tuple[Artifact, BuildReport]]:
    pytest.importorskip("auto_round")
    made = {"2 tuned": pack(STAGES["2 tuned"], plain, tmp_path_factory.mktemp("fresh"), corpus=corpus)}
    with reading_here():
        for name in set(STAGES) - set(made):
            made[name] = pack(STAGES[name], plain, tmp_path_factory.mktemp("packed"), corpus=corpus)
    return made


@pytest.fixture(scope="module")
def chosen(plain, corpus, tmp_path_factory) -> tuple[Artifact, BuildReport]:
    pytest.importorskip("auto_round")
    with reading_here():
        return pack(scheme(average_bits=5.0), plain, tmp_path_factory.mktemp("chosen"), corpus=corpus)


def decode(where: Path, module: str) -> np.ndarray:
    """The weights (R, C) in float64, from the words, by the layout that the configuration names."""
    config = json.loads((where / "config.json").read_text())["quantization_config"]
    stored = tensors(where, module)
    scales_GR = stored["scales"].double().numpy()
    rows = scales_GR.shape[1]
    bits = stored["qzeros"].shape[1] * 32 // rows
    if "awq" in config.get("packing_format", config["quant_method"]):
        codes_CR, zeros_GR = (awq_codes(stored[name].numpy()) for name in ("qweight", "qzeros"))
    else:
        columns = stored["qweight"].shape[0] * 32 // bits
        codes_CR = words_to_codes(stored["qweight"].numpy().T.copy(), bits, columns).T
        # AutoGPTQ stores zero points less 1; the library's own format does not.
        zeros_GR = words_to_codes(stored["qzeros"].numpy(), bits, rows) + (config.get("packing_format") != "auto_round")
    width = len(codes_CR) // len(scales_GR)
    return ((codes_CR - np.repeat(zeros_GR, width, axis=0)) * np.repeat(scales_GR, width, axis=0)).T


def awq_codes(words: np.ndarray) -> np.ndarray:
    """Codes of 4 bits, eight in every word along the second axis."""
    parts = [(words.astype(np.uint32) >> (4 * place)) & 15 for place in AWQ_PLACES]
    return np.stack(parts, axis=-1).reshape(len(words), -1).astype(np.int64)


def packed_modules(where: Path) -> list[str]:
    return [name.removesuffix(".qweight") for name in tensors(where) if name.endswith(".qweight")]


def moved(source: Artifact, where: Path, corpus: Artifact) -> float:
    """By how much of their spread logits move on the calibration text, in float32 with decoded weights."""
    model, tokens_NT = load(source.path), torch.from_numpy(blocks_of(source, corpus))
    with torch.no_grad():
        before = model(tokens_NT, use_cache=False).logits
        for name in packed_modules(where):
            model.get_submodule(name).weight.copy_(torch.from_numpy(decode(where, name)))
        return difference(before, model(tokens_NT, use_cache=False).logits)


@pytest.mark.parametrize("kind", [QuantizeAutoround, QuantizeAutoscheme])
def test_both_are_proper_plugins(kind):
    check_plugin("stages", kind)


@pytest.mark.parametrize(
    "args",
    [
        {"bits": 5},
        {"group": 0},
        {"iters": -1},
        {"lr": 0.0},
        {"batch": 0},
        {"layout": "exl2"},
        {"layout": "awq", "bits": 8},
        {"layout": "awq", "group": None},
        {"layout": "gptq", "overrides": {"down_proj": {"bits": 8}}},
        {"overrides": {"down_proj": {"symmetric": False}}},
        {"ignore": "lm_head"},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeAutoround(**args)


@pytest.mark.parametrize(
    "args",
    [
        {"options": (4,)},
        {"options": (4, 4)},
        {"options": (4, 5)},
        {"options": "4"},
        {"average_bits": 2.0},
        {"average_bits": 16},
        {"overrides": {"down_proj": {"group": 64}}},
    ],
)
def test_a_search_without_a_choice_is_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeAutoscheme(**args)


def test_plain_rounding_needs_no_text_and_a_search_always_does():
    text = (Need(name="corpus", source="docstrings:default"),)
    assert (QuantizeAutoround().needs, QuantizeAutoround(iters=0).needs) == (text, ())
    assert QuantizeAutoscheme(iters=0).needs == text


def test_layers_that_would_be_skipped_or_not_found_again_are_refused(monkeypatch):
    odd = Architecture({"a": (48, 64), "b": (64, 64)}, "embed", None, tied=False)
    with pytest.raises(Unsupported, match="a is 48 x 64, and AutoRound packs multiples of 32"):
        require_packable(assign(stage(ignore=[]), odd), odd, layout="autoround")
    require_packable(assign(stage(ignore=["a"]), odd), odd, layout="autoround")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    names = [f"layers.{number}.{part}" for number in (0, 1) for part in ("up", "down")]
    deep = Architecture(dict.fromkeys(names, (64, 64)), "embed", None, tied=False)
    require_packable(assign(stage(ignore=["down"]), deep), deep, layout="gptq")
    with pytest.raises(Unsupported, match="the same layers packed in every decoder layer"):
        require_packable(assign(stage(ignore=["layers.1.down"]), deep), deep, layout="gptq")
    head = Architecture(deep.linears | {"head": (64, 64)}, "embed", "head", tied=False)
    with pytest.raises(Unsupported, match="cannot hold a packed head"):
        require_packable(assign(stage(ignore=[]), head), head, layout="awq")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Unsupported, match="gptqmodel, optimum, which is not installed"):
        require_packable(assign(stage(ignore=[]), deep), deep, layout="gptq")


def test_an_average_that_no_choice_can_reach_is_refused_before_anything_is_loaded(plain, tmp_path, corpus):
    # 8 bits in groups of 32 are 8 + (16 + 8) / 32 = 8.75.
    with pytest.raises(Unsupported, match=r"take from 4\.62 to 8\.75 bits"):
        pack(scheme(options=(4, 8), average_bits=9.0), plain, tmp_path / "much", corpus=corpus)
    with pytest.raises(Unsupported, match=r"average_bits is 4\.5"):
        pack(scheme(options=(4, 8), average_bits=4.5), plain, tmp_path / "little", corpus=corpus)


def test_bits_are_counted_with_scales_and_zero_points():
    assert counted_bits((64, 128), 4, 32) == 64 * 128 * 4 + 64 * 4 * (16 + 4)
    assert counted_bits((64, 128), 8, None) == 64 * 128 * 8 + 64 * (16 + 8)
    assert counted_bits((64, 128), 16, 32) == 64 * 128 * 16


# One layer of 64 x 128 in groups of 32, as in test_coverage.
AS_GPTQ = {
    "layer.qweight": ((16, 64), torch.int32),
    "layer.qzeros": ((4, 8), torch.int32),
    "layer.scales": ((4, 64), torch.float16),
}
AS_AWQ = AS_GPTQ | {"layer.qweight": ((128, 8), torch.int32)}
CLAIM = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:auto_gptq",
    "block_name_to_quantize": "layer",
    "bits": 4,
    "group_size": 32,
}


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (AS_GPTQ, CLAIM),
        (AS_GPTQ, CLAIM | {"packing_format": "auto_round"}),
        (AS_AWQ, CLAIM | {"packing_format": "auto_round:auto_awq"}),
        (AS_GPTQ, CLAIM | {"bits": 2, "extra_config": {"layer": {"bits": 4}}}),
        (AS_GPTQ, CLAIM | {"bits": 2, "extra_config": {"other": {"bits": 3}, "lay.*": {"bits": 4}}}),
        (AS_GPTQ, CLAIM | {"block_name_to_quantize": "blocks", "extra_config": {"layer": {"bits": 4}}}),
    ],
)
def test_what_the_configuration_claims_is_found_in_the_tensors(stored, said, tmp_path):
    (fact,) = prove(folder(tmp_path, stored, said), MODEL).quantized
    assert (fact.layout, fact.rows, fact.columns, fact.bits, fact.group) == (said["packing_format"], 64, 128, 4, 32)
    # 8192 codes of 4 bits, 64 x 4 scales of 2 bytes, 64 x 4 zero points of 4 bits.
    assert (fact.code_bytes, fact.scale_bytes, fact.zero_bytes, fact.other_bytes) == (4096, 512, 128, 0)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (CLAIM | {"bits": 2}, "4 bits a weight are stored"),
        (CLAIM | {"group_size": 64}, "32 columns share a scale"),
        (CLAIM | {"extra_config": {"layer": {"bits": 16}}}, "its tensors are packed"),
        (CLAIM | {"block_name_to_quantize": "blocks"}, "its tensors are packed"),
    ],
)
def test_a_configuration_that_claims_something_else_fails(said, error, tmp_path):
    with pytest.raises(ModelError, match=error):
        prove(folder(tmp_path, AS_GPTQ, said), MODEL)


@pytest.mark.parametrize("change", [{"packing_format": "auto_round:fp8"}, {"act_bits": 8}])
def test_other_packing_formats_are_unsupported_and_not_guessed(change, tmp_path):
    with pytest.raises(Unsupported, match="cannot be proved"):
        prove(folder(tmp_path, AS_GPTQ, CLAIM | change), MODEL)


@slow
@pytest.mark.parametrize(
    ("name", "layers", "plain_layers"),
    [
        ("2", {"auto_round:auto_gptq 2 bits, group 32": 14}, 0),
        ("2 tuned", {"auto_round:auto_gptq 2 bits, group 32": 14}, 0),
        ("4", {"gptq 4 bits, group 32": 14}, 0),
        ("4 asymmetric", {"auto_round:auto_awq 4 bits, group 32": 14}, 0),
        ("awq", {"awq 4 bits, group 32": 10}, 4),
        ("8", {"auto_round 8 bits, whole row": 14}, 0),
        (
            "mixed",
            {"auto_round:auto_gptq 3 bits, group 32": 11, "auto_round:auto_gptq 8 bits, whole row": 2},
            1,
        ),
    ],
)
def test_every_layout_holds_the_bits_and_groups_asked_for(name, layers, plain_layers, packed):
    proof = packed[name][1].notes["coverage"]
    assert (proof["layers"], proof["layers_left_plain"], proof["head"]) == (layers, plain_layers, "tied")


@slow
@pytest.mark.parametrize("name", STAGES)
def test_the_runtime_computes_with_what_the_codes_stand_for(name, packed):
    model = reopened(packed[name][0].path)
    for module in (UP, DOWN):
        layer, expected_RC = model.get_submodule(module), decode(packed[name][0].path, module)
        with torch.no_grad():
            found_RC = layer(torch.eye(expected_RC.shape[1], dtype=model.dtype)).T.double().numpy()
        # A rounding to bfloat16, and in one kernel one of the zero point times the scale: 15 of 2^8 steps at most.
        np.testing.assert_allclose(found_RC, expected_RC, rtol=2**-7, atol=2**-8 * np.abs(expected_RC).max())


@slow
@pytest.mark.parametrize("name", ["2", "2 tuned", "8", "mixed"])
def test_the_library_own_kernel_gives_the_model_in_memory_bit_for_bit(name, packed):
    assert packed[name][1].notes["reload_difference"] == 0
    kernel = type(reopened(packed[name][0].path).get_submodule(UP))
    assert (kernel.__name__, kernel.__module__.split(".")[0]) == ("QuantLinear", "auto_round_extension")


@slow
def test_without_steps_it_is_rounding_to_the_nearest_of_a_grid_whose_end_is_the_largest_weight(packed, plain):
    before_RC = tensors(plain.path)[f"{UP}.weight"].double().numpy()
    grouped = before_RC.reshape(len(before_RC), -1, GROUP)
    largest = np.take_along_axis(grouped, np.abs(grouped).argmax(axis=2)[..., None], axis=2)
    # -8 steps are the largest weight, with its sign; the step is kept in bfloat16.
    steps = torch.from_numpy(-largest / 8).to(torch.bfloat16).double().numpy()
    expected_RC = (np.clip(np.round(grouped / steps), -8, 7) * steps).reshape(before_RC.shape)
    found_RC = decode(packed["4"][0].path, UP)
    # float32 against float64: a weight half way between two points may go to either.
    assert np.isclose(found_RC, expected_RC, rtol=1e-3).mean() > 0.999


@slow
def test_more_bits_move_the_logits_less_and_tuning_moves_them_less_than_plain_rounding(packed, plain, corpus):
    errors = {name: moved(plain, packed[name][0].path, corpus) for name in ("2", "2 tuned", "4", "8")}
    assert errors["8"] < errors["4"] / 4 < errors["2"] / 8
    assert errors["2 tuned"] < 0.9 * errors["2"]


@slow
def test_what_is_kept_is_the_same_in_the_type_that_is_written(packed, plain):
    before, after = tensors(plain.path), tensors(packed["mixed"][0].path)
    for name in (f"{KEPT}.weight", "model.embed_tokens.weight", "model.norm.weight"):
        assert torch.equal(before[name].to(torch.bfloat16), after[name])
    assert packed["mixed"][1].labels == ["rounded from float32 to bfloat16 where not quantized"]
    assert json.loads((packed["awq"][0].path / "config.json").read_text())["dtype"] == "bfloat16"


@slow
def test_the_same_seed_gives_the_same_bytes_and_nothing_of_the_process_is_changed(packed, plain, corpus, tmp_path):
    drawn, variables = (random.getstate(), np.random.get_state()[1].tolist()), dict(os.environ)
    with reading_here():
        again, report = pack(STAGES["2 tuned"], plain, tmp_path, corpus=corpus)
    first, second = ((one.path / "model.safetensors").read_bytes() for one in (packed["2 tuned"][0], again))
    assert first == second
    assert report.notes["calibration"] == {"text": "corpus", "blocks": 8, "sequence": SEQUENCE, "seed": 0}
    assert len(report.notes["losses"]) == 2
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn
    assert dict(os.environ) == variables
    assert not torch.are_deterministic_algorithms_enabled()


@slow
def test_chosen_bits_keep_to_the_average_as_the_library_counts_and_the_tensors_show(chosen, plain):
    where, report = chosen[0].path, chosen[1]
    bits = report.notes["bits"]
    facts = {
        fact.module: fact for fact in Coverage.model_validate_json((where / "coverage.json").read_text()).quantized
    }
    assert {name: fact.bits for name, fact in facts.items()} == bits
    assert len(set(bits.values())) > 1
    counted = sum(counted_bits((fact.rows, fact.columns), fact.bits, GROUP) for fact in facts.values())
    average = counted / sum(fact.weights for fact in facts.values())
    assert report.notes["average_bits"] == pytest.approx(average)
    assert 4.0 < average <= 5.0
    assert report.notes["reload_difference"] == 0


@slow
def test_a_head_of_its_own_can_be_packed_and_scores_of_another_model_are_not_used(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    source = artifact(tiny_llama(tmp_path / "model", tie=False), "hf")
    with reading_here():
        _, report = pack(stage(ignore=[]), source, tmp_path / "head", corpus=corpus)
        pack(scheme(average_bits=8.0, options=(4, 16)), source, tmp_path / "scheme", corpus=corpus)
    assert report.notes["coverage"]["head"] == "quantized"
    assert not (tmp_path / "home" / ".cache").exists()
    assert any((tmp_path / "scheme" / "scratch" / "scores").iterdir())
