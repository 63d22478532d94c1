"""GPTQ and AWQ through GPTQModel: the layouts decoded from their definition, the methods against slow references.

Shapes: R rows, C columns, G groups a row, N inputs.
"""

from __future__ import annotations

import gc
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import ModelError, SpecError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.spec import Need
from harness.stages.quantize._gptqmodel import LAYER_TOLERANCE, Quantized, _surroundings, require_layers, require_room
from harness.stages.quantize.gptqmodel import QuantizeGptqmodel
from harness.stages.quantize.gptqmodel_awq import QuantizeGptqmodelAwq
from harness.stages.quantize.proof.architecture import Architecture
from harness.stages.quantize.proof.coverage import prove
from harness.stages.quantize.proof.declared import read_declaration
from harness.stages.quantize.recipe import assign
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.slow_references import inputs_of, output_error, weights_of
from tests.stages.prune.sparse_world import LOUD, SEQUENCE, TOKENS, blocks_of, load
from tests.stages.quantize.packed_world import pack, reading_here, reopened, rewrite, tensors, words_to_codes
from tests.stages.quantize.slow_quantizers import gptq, round_asymmetric, round_symmetric, symmetric_scales
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
# GPTQModel makes a temporary folder for every configuration, one for every reading too, and leaves it to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Implicitly cleaning up <TemporaryDirectory '[^']*gptqmodel_:ResourceWarning"
)

READ = {"group": 32, "tokens": TOKENS, "sequence": SEQUENCE}
FIRST = [f"model.layers.0.{name}" for name in ("self_attn.q_proj", "mlp.up_proj")]
DOWN = "model.layers.0.mlp.down_proj"
# Two layers of seven linear modules each, 128 wide, and the head.
LINEARS = {
    f"model.layers.{layer}.{part}_proj": (128, 128)
    for layer in (0, 1)
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
}
PLAN = Architecture(LINEARS | {"lm_head": (384, 128)}, "model.embed_tokens", "lm_head", tied=False)


def stage(**args) -> QuantizeGptqmodel:
    return QuantizeGptqmodel(**READ | args)


def awq_stage(**args) -> QuantizeGptqmodelAwq:
    return QuantizeGptqmodelAwq(**READ | args)


# What needs no library.


@pytest.mark.parametrize("plugin", [QuantizeGptqmodel, QuantizeGptqmodelAwq])
def test_they_are_proper_plugins_and_ask_for_the_corpus(plugin):
    check_plugin("stages", plugin)
    assert plugin().needs == (Need(name="corpus", source="docstrings:default"),)
    assert plugin(data_free=True).needs == ()


@pytest.mark.parametrize(
    "args",
    [
        {"bits": 5},
        {"group": 48},
        {"damping": 0},
        {"format": "marlin"},
        {"sequence": 8, "tokens": 64},
        {"group_aware": True},
        {"group_aware": True, "act_order": False, "static_groups": False, "group": None},
        {"ignore": "lm_head"},
        {"overrides": {"down_proj": {"bits": 5}}},
        {"overrides": {"down_proj": {"damping": 0.1}}},
    ],
)
def test_arguments_of_gptq_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeGptqmodel(**args)


@pytest.mark.parametrize("args", [{"group": 256}, {"group": None}, {"sequence": 8}, {"overrides": {"q": {"bits": 8}}}])
def test_arguments_of_awq_that_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeGptqmodelAwq(**args)


def test_other_bits_or_groups_for_some_layers_are_refused_and_another_symmetry_is_not():
    for change in ({"bits": 8}, {"group": 64}):
        asked = stage(overrides={"down_proj": change})
        with pytest.raises(Unsupported, match="one width for all") as caught:
            asked.exceptions(assign(asked, PLAN))
        assert "quantize.gptq" in str(caught.value.remedy)
    asked = stage(
        overrides={"model.layers.1.mlp.down_proj": {"symmetric": False}, "model.layers.0.self_attn.*": "keep"}
    )
    found = asked.exceptions(assign(asked, PLAN))
    assert found[r"+:^model\.layers\.1\.mlp\.down_proj$"] == {"sym": False}
    assert sorted(key for key in found if key.startswith("-:")) == sorted(
        [r"-:^lm_head$", *(rf"-:^model\.layers\.0\.self_attn\.{part}_proj$" for part in "qkvo")]
    )


def test_a_head_and_odd_sizes_are_refused_where_the_layout_has_no_room():
    asked = stage(ignore=[])
    with pytest.raises(Unsupported, match="packed lm_head"):
        require_room(assign(asked, PLAN), PLAN, rows_at_once=32)
    odd = Architecture({"a": (96, 64)}, "embed", None, tied=False)
    free = assign(stage(ignore=[]), odd)
    require_room(free, odd, rows_at_once=32)
    with pytest.raises(Unsupported, match="64 rows and 32 columns"):
        require_room(free, odd, rows_at_once=64)


def test_a_zero_point_of_zero_has_no_place_in_the_first_layout():
    zeros = torch.tensor([[8, 0], [7, 3]])
    with pytest.raises(Unsupported, match="zero point of 0"):
        stage(symmetric=False).check("layer", zeros)
    stage(symmetric=False, format="gptq_v2").check("layer", zeros)
    stage(symmetric=False).check("layer", zeros + 1)


def test_the_environment_is_put_back():
    before = dict(os.environ)
    with _surroundings():
        assert os.environ["GPTQMODEL_CPU_WORKERS"] == "2"
        os.environ["SET_BY_AN_IMPORT"] = "1"
    assert dict(os.environ) == before


def written(folder: Path, quantization: dict) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": quantization}))
    return folder


def test_gptq_leaves_the_head_and_what_is_not_named_as_it_is(tmp_path):
    config = {"quant_method": "gptq", "bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"}
    named = config | {"modules_in_block_to_quantize": [["layers.0.up_proj"], ["layers.0.down_proj"]]}
    everything = read_declaration(written(tmp_path, config))
    assert everything.claim("lm_head") is None
    assert (everything.claim("layers.0.q_proj").bits, everything.claim("layers.0.q_proj").group) == (3, None)
    some = read_declaration(written(tmp_path, named))
    assert some.claim("model.layers.0.up_proj").bits == 3
    assert some.claim("model.layers.0.q_proj") is None
    with_head = read_declaration(written(tmp_path, config | {"lm_head": True}))
    assert with_head.claim("lm_head").bits == 3


def test_awq_leaves_the_head_as_it_is(tmp_path):
    config = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "modules_to_not_convert": None}
    said = read_declaration(written(tmp_path, config))
    assert said.claim("lm_head") is None
    assert said.claim("model.layers.0.up_proj").group == 64


@pytest.mark.parametrize(("bits", "words"), [(2, 4), (3, 6), (4, 8), (8, 16)])
def test_bits_of_gptq_are_counted_from_the_words_of_a_column(bits, words, tmp_path):
    from safetensors.torch import save_file

    # 64 columns of `bits` bits are 2 * bits words; 96 rows of zero points are 3 * bits words for each of 2 groups.
    parts = {
        "layer.qweight": torch.zeros((words, 96), dtype=torch.int32),
        "layer.qzeros": torch.zeros((2, 3 * bits), dtype=torch.int32),
        "layer.scales": torch.zeros((2, 96), dtype=torch.float16),
        "layer.g_idx": torch.zeros(64, dtype=torch.int32),
    }
    save_file(parts, tmp_path / "model.safetensors")
    config = {"quant_method": "gptq", "bits": bits, "group_size": 32, "checkpoint_format": "gptq", "lm_head": False}
    (fact,) = prove(written(tmp_path, config), Architecture({"layer": (96, 64)}, "embed", None, tied=False)).quantized
    assert (fact.bits, fact.group, fact.code_bytes, fact.zero_bytes) == (bits, 32, words * 96 * 4, 2 * 3 * bits * 4)
    assert fact.other_bytes == 64 * 4


# The layouts, decoded bit by bit.


def decode_gptq(folder: Path, module: str, *, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (R, C) and the step of each. Codes run down the columns of `qweight`, zero points along its rows.

    AutoGPTQ stores zero points less 1 (`offset` 1), its second version as they are (0). `g_idx` is a column's group.
    """
    stored = {name: tensor.numpy() for name, tensor in tensors(folder, module).items()}
    columns, rows = len(stored["g_idx"]), stored["qweight"].shape[1]
    bits = stored["qweight"].shape[0] * 32 // columns
    codes_RC = words_to_codes(stored["qweight"].T, bits, columns)
    zeros_GR = words_to_codes(stored["qzeros"], bits, rows) + offset
    steps_RC = stored["scales"].astype(np.float64)[stored["g_idx"]].T
    return (codes_RC - zeros_GR[stored["g_idx"]].T) * steps_RC, steps_RC


def decode_awq(folder: Path, module: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights (R, C) and the step of each: eight rows a word, of which the lowest half byte is row 0, then 2, 4, ..."""
    stored = tensors(folder, module)
    steps_GR = stored["scales"].double().numpy()

    def unpack(words_XW: np.ndarray) -> np.ndarray:
        mixed = words_to_codes(words_XW, 4, 8 * words_XW.shape[1]).reshape(len(words_XW), -1, 8)
        in_order = np.empty_like(mixed)
        in_order[..., [0, 2, 4, 6, 1, 3, 5, 7]] = mixed
        return in_order.reshape(len(words_XW), -1)

    codes_CR, zeros_GR = unpack(stored["qweight"].numpy()), unpack(stored["qzeros"].numpy())
    width = len(codes_CR) // len(steps_GR)
    steps_CR, zeros_CR = (np.repeat(matrix, width, axis=0) for matrix in (steps_GR, zeros_GR))
    return ((codes_CR - zeros_CR) * steps_CR).T, steps_CR.T


def computed(folder: Path, module: str) -> np.ndarray:
    """The weights (R, C) that a runtime multiplies by: what the module gives for the unit vectors."""
    layer = reopened(folder).get_submodule(module)
    columns = len(tensors(folder, module).get("g_idx", tensors(folder, module)["qweight"]))
    with torch.inference_mode():
        return layer(torch.eye(columns, dtype=torch.bfloat16)).double().numpy().T


# The library at work.


@contextmanager
def without_compiling() -> Iterator[None]:
    """GPTQModel compiles what unpacks 2, 3 and 8 bits, which takes half a minute and changes no number."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    pytest.importorskip("gptqmodel")
    with reading_here(), without_compiling():
        yield
    with warnings.catch_warnings():
        # What is left of those folders must not be collected in the tests of another file.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def loud16(tmp_path_factory) -> Artifact:
    """A tiny Llama, 128 wide, with a few loud channels, stored in bfloat16."""
    folder = tiny_llama(tmp_path_factory.mktemp("loud16"), hidden=128)
    model = load(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[list(LOUD)] *= 30
    model.to(torch.bfloat16).save_pretrained(folder)
    return artifact(folder, "hf")


RUNS = {
    "4 bits": stage(),
    "8 bits, groups as they come": stage(bits=8, static_groups=False),
    "3 bits": stage(bits=3),
    "2 bits, rows": stage(bits=2, group=None, act_order=False, static_groups=False),
    "4 bits, as they lie": stage(act_order=False),
    "4 bits, group aware": stage(act_order=False, static_groups=False, group_aware=True),
    "2 bits, zero points": stage(bits=2, symmetric=False, format="gptq_v2"),
    "kept": stage(overrides={"model.layers.1.*": "keep", "o_proj": {"symmetric": False}}, ignore=["lm_head", "v_proj"]),
    "awq": awq_stage(),
    "awq kept": awq_stage(overrides={"model.layers.1.mlp.*": "keep"}),
}
Packed = dict[str, tuple[Artifact, BuildReport]]


@pytest.fixture(scope="module")
def packed(loud16, corpus, tmp_path_factory, quiet) -> Packed:
    return {
        name: pack(asked, loud16, tmp_path_factory.mktemp("packed") / str(number), corpus=corpus)
        for number, (name, asked) in enumerate(RUNS.items())
    }


@pytest.fixture(scope="module")
def inputs(loud16, corpus) -> dict[str, np.ndarray]:
    return inputs_of(load(loud16.path), [*FIRST, DOWN], blocks_of(loud16, corpus))


slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("name", [name for name in RUNS if "awq" not in name])
def test_the_runtime_computes_with_what_the_codes_of_gptq_stand_for(name, packed):
    folder, offset = packed[name][0].path, 0 if RUNS[name].format == "gptq_v2" else 1
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.o_proj", DOWN):
        weights_RC, steps_RC = decode_gptq(folder, module, offset=offset)
        # The fast kernel rounds scales, and zero points times scales, to 8 binary digits: far less than a step.
        allowed = 0.06 * steps_RC + 2**-7 * np.abs(weights_RC)
        assert (np.abs(computed(folder, module) - weights_RC) <= allowed).all()


@slow
@pytest.mark.parametrize("name", ["awq", "awq kept"])
def test_the_runtime_computes_with_what_the_codes_of_awq_stand_for(name, packed):
    folder = packed[name][0].path
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj", DOWN):
        weights_RC, steps_RC = decode_awq(folder, module)
        assert (np.abs(computed(folder, module) - weights_RC) <= 0.06 * steps_RC + 2**-7 * np.abs(weights_RC)).all()


@slow
def test_coverage_counts_the_bits_that_lie_there(packed):
    said = {name: report.notes["coverage"]["layers"] for name, (_, report) in packed.items()}
    assert said == {
        "4 bits": {"gptq 4 bits, group 32": 14},
        "8 bits, groups as they come": {"gptq 8 bits, group 32": 14},
        "3 bits": {"gptq 3 bits, group 32": 14},
        "2 bits, rows": {"gptq 2 bits, whole row": 14},
        "4 bits, as they lie": {"gptq 4 bits, group 32": 14},
        "4 bits, group aware": {"gptq 4 bits, group 32": 14},
        "2 bits, zero points": {"gptq 2 bits, group 32": 14},
        "kept": {"gptq 4 bits, group 32": 6},
        "awq": {"awq 4 bits, group 32": 14},
        "awq kept": {"awq 4 bits, group 32": 11},
    }
    # 4 bits, a scale of 16 and a zero point of 4 for 32 weights.
    assert packed["awq"][1].notes["coverage"]["bits_per_quantized_weight"] == 4 + 20 / 32
    report = packed["4 bits"][1]
    assert report.notes["calibration"] == {"text": "corpus", "blocks": 8, "sequence": SEQUENCE, "seed": 0}
    assert report.nominal_bytes == report.notes["coverage"]["bytes"]
    assert report.labels == []


@slow
def test_layers_that_are_kept_are_the_same_bit_for_bit_and_nothing_else_changed(packed, loud16):
    folder, before = packed["kept"][0].path, tensors(loud16.path)
    after = tensors(folder)
    kept = [name for name in before if name in after]
    assert {name for name in before if name.startswith("model.layers.1.")} < set(kept)
    assert "model.layers.0.self_attn.v_proj.weight" in kept
    assert all(torch.equal(before[name], after[name]) for name in kept)
    config, source = (json.loads((path / "config.json").read_text()) for path in (folder, loud16.path))
    config.pop("quantization_config")
    assert config == source
    names = {file.name for file in loud16.path.iterdir()} | {"coverage.json", "quantize_config.json"}
    assert {file.name for file in folder.iterdir()} == names


@slow
def test_an_asymmetric_exception_uses_its_zero_points(packed):
    zeros = {
        part: set(
            words_to_codes(tensors(packed["kept"][0].path, f"model.layers.0.{part}")["qzeros"].numpy(), 4, 128).flat
        )
        for part in ("self_attn.q_proj", "self_attn.o_proj")
    }
    # Stored less 1: 8 is the middle of 16 codes.
    assert zeros["self_attn.q_proj"] == {7}
    assert len(zeros["self_attn.o_proj"]) > 1


@slow
def test_the_order_of_columns_is_that_of_their_inputs(packed, inputs):
    module = FIRST[0]
    index = {name: tensors(packed[name][0].path, module)["g_idx"].tolist() for name in RUNS if "awq" not in name}
    by_place = [column // 32 for column in range(128)]
    assert index["4 bits"] == index["4 bits, as they lie"] == index["4 bits, group aware"] == by_place
    # Groups that follow the order: the first holds the columns with the largest inputs.
    assert index["8 bits, groups as they come"] != by_place
    power_C = (inputs[module] ** 2).sum(axis=0)
    power_G = [power_C[np.array(index["8 bits, groups as they come"]) == group] for group in range(4)]
    assert [len(powers) for powers in power_G] == [32] * 4
    # Inputs in bfloat16 against float32: neighbours at the border may change places.
    assert all(high.min() > 0.98 * low.max() for high, low in pairwise(power_G))
    codes = [tensors(packed[name][0].path, module)["qweight"] for name in ("4 bits", "4 bits, as they lie")]
    assert not torch.equal(*codes)


@slow
@pytest.mark.parametrize("module", FIRST)
def test_gptq_moves_the_output_less_than_plain_rounding_and_as_little_as_the_paper(module, packed, loud16, inputs):
    before = weights_of(loud16.path)[f"{module}.weight"]
    after, _ = decode_gptq(packed["4 bits"][0].path, module, offset=1)
    plain = round_symmetric(before, symmetric_scales(before, 4, 32), 4)
    expected = gptq(before, inputs[module], bits=4, group=32)
    ours, paper, rounding = (output_error(before, weight, inputs[module]) for weight in (after, expected, plain))
    assert ours < 0.7 * rounding
    # bfloat16 inputs and 16-bit scales against float64; a weight between two points moves the rest of its row.
    assert ours == pytest.approx(paper, rel=0.1)


@slow
def test_more_bits_and_smaller_groups_move_the_output_less(packed, loud16, inputs):
    before = weights_of(loud16.path)[f"{DOWN}.weight"]
    names = {"8 bits, groups as they come": 1, "4 bits": 1, "3 bits": 1, "2 bits, zero points": 0, "2 bits, rows": 1}
    errors = [
        output_error(before, decode_gptq(packed[name][0].path, DOWN, offset=offset)[0], inputs[DOWN])
        for name, offset in names.items()
    ]
    assert errors == sorted(errors)


def divergence(reference: Path, other: Path, blocks_NT: np.ndarray) -> float:
    """The mean Kullback-Leibler divergence of the next token, in nats."""
    tokens = torch.from_numpy(blocks_NT)
    with torch.inference_mode():
        first, second = (reopened(path)(tokens).logits.double().log_softmax(dim=-1) for path in (reference, other))
    return float((first.exp() * (first - second)).sum(dim=-1).mean())


@slow
def test_two_libraries_come_as_near_to_the_reference_by_the_same_method(packed, loud16, corpus, tmp_path):
    pytest.importorskip("llmcompressor")
    from harness.stages.quantize.awq import QuantizeAwq
    from harness.stages.quantize.gptq import QuantizeGptq

    others = {"3 bits": QuantizeGptq(bits=3, **READ), "awq": QuantizeAwq(**READ)}
    blocks_NT = blocks_of(loud16, corpus)
    for name, other in others.items():
        folder = pack(other, loud16, tmp_path / name, corpus=corpus)[0].path
        ours, theirs = (divergence(loud16.path, path, blocks_NT) for path in (packed[name][0].path, folder))
        # Inside a decoder layer GPTQModel reads what was rounded so far, llm-compressor what was there before; its AWQ
        # clips, and searches in 16 bits.
        assert 1 / 1.25 < ours / theirs < 1.25, (name, ours, theirs)


def mlp_output(model, arrived_NC) -> np.ndarray:
    """What the first layer's norm and MLP make of what arrives there: scales between them cancel out."""
    layer = model.model.layers[0]
    with torch.inference_mode():
        return layer.mlp(layer.post_attention_layernorm(arrived_NC.to(model.dtype))).double().numpy()


@slow
def test_awq_moves_a_block_less_than_plain_rounding(packed, loud16, corpus):
    true, plain = load(loud16.path), load(loud16.path)
    arrived: list = []
    hook = true.model.layers[0].post_attention_layernorm.register_forward_pre_hook(
        lambda _, args: arrived.append(args[0])
    )
    with torch.inference_mode():
        true(torch.from_numpy(blocks_of(loud16, corpus)))
        for layer in (plain.model.layers[0].mlp.get_submodule(f"{part}_proj") for part in ("gate", "up", "down")):
            layer.weight.copy_(torch.from_numpy(round_asymmetric(layer.weight.double().numpy(), 4, 32)))
    hook.remove()
    expected = mlp_output(true, arrived[0])
    ours, rounding = (
        ((mlp_output(model, arrived[0]) - expected) ** 2).sum() for model in (reopened(packed["awq"][0].path), plain)
    )
    assert ours < 0.7 * rounding


@slow
@pytest.mark.parametrize(
    ("name", "kernel", "writes_out_floats"),
    [("4 bits", "TorchAtenLinear", False), ("3 bits", "TorchLinear", True), ("awq", "TorchAtenAwqLinear", False)],
)
def test_the_kernels_are_named_and_the_one_that_writes_out_floats_is_told(name, kernel, writes_out_floats, packed):
    from harness.runtimes._hf_identity import identify
    from harness.runtimes._hf_load import load_tokenizer

    folder = packed[name][0].path
    found = identify(reopened(folder), load_tokenizer(folder), folder)
    assert kernel in found.kernel.split()
    assert found.unpacked is writes_out_floats
    # Either way less than half of what plain weights of 16 bits take is in memory, the embedding included.
    assert found.weights_memory_bytes < found.parameters


@slow
def test_the_same_seed_gives_the_same_bytes_and_the_model_can_draw_its_own_text(loud16, tmp_path, quiet):
    for number, asked in enumerate((stage(data_free=True), awq_stage(data_free=True))):
        runs = [pack(asked, loud16, tmp_path / f"{number}{name}") for name in ("one", "two")]
        first, second = ((run[0].path / "model.safetensors").read_bytes() for run in runs)
        assert first == second
        assert runs[0][1].notes["calibration"]["text"] == "its own"


@slow
def test_a_fresh_process_agrees_and_a_rounded_type_is_told(wide, corpus, tmp_path):
    pytest.importorskip("gptqmodel")
    _, report = pack(stage(), wide, tmp_path, corpus=corpus)
    assert report.notes["reload_difference"] == pytest.approx(0, abs=1e-3)
    assert report.notes["largest_layer_difference"] < LAYER_TOLERANCE
    assert report.labels == ["rounded from float32 to bfloat16 to quantize"]


@slow
def test_a_layer_that_is_off_by_one_code_does_not_pass(packed, tmp_path, quiet):
    import shutil

    folder = tmp_path / "broken"
    shutil.copytree(packed["8 bits, groups as they come"][0].path, folder)
    names = [name.removesuffix(".qweight") for name in tensors(folder) if name.endswith("qweight")]
    weights = {name: torch.from_numpy(decode_gptq(folder, name, offset=1)[0]) for name in names}
    state = SimpleNamespace(state_dict=lambda: tensors(folder))
    made = Quantized(SimpleNamespace(model=state), weights)
    assert require_layers(reopened(folder), made) < LAYER_TOLERANCE
    # One more in the lowest of four zero points of a word; they are 127 and do not carry.
    rewrite(folder, lambda stored: stored[f"{DOWN}.qzeros"].add_(0x01010101))
    with pytest.raises(ModelError, match="is off by"):
        require_layers(reopened(folder), made)


@slow
def test_weights_of_one_sign_have_no_zero_point_in_the_first_layout(loud16, corpus, tmp_path, quiet):
    folder = tmp_path / "model"
    model = load(loud16.path)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.abs_()
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((loud16.path / name).read_bytes())
    with pytest.raises(Unsupported, match="zero point of 0"):
        pack(stage(symmetric=False), artifact(folder, "hf"), tmp_path / "out", corpus=corpus)


@slow
def test_a_hessian_that_cannot_be_inverted_is_an_error_and_no_plain_rounding(loud16, corpus, tmp_path, quiet):
    folder = tmp_path / "model"
    model = load(loud16.path)
    with torch.no_grad():
        # Inputs near 1e19 overflow when squared: the Hessian is infinite though every input is a number.
        model.model.layers[1].post_attention_layernorm.weight.fill_(1e19)
        model.model.layers[1].mlp.up_proj.weight.zero_()
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((loud16.path / name).read_bytes())
    with pytest.raises(ModelError, match="did not do what it was asked to"):
        pack(stage(ignore=["lm_head", "up_proj"]), artifact(folder, "hf"), tmp_path / "out", corpus=corpus)


@slow
@pytest.mark.parametrize("args", [{"ignore": ["lm_haed"]}, {"overrides": {"model.layers.7.*": "keep"}}])
def test_a_pattern_that_fits_no_layer_is_the_users_mistake(args, loud16, corpus, tmp_path):
    with pytest.raises(SpecError, match="names no linear layer"):
        pack(stage(**({"ignore": ["lm_head"]} | args)), loud16, tmp_path, corpus=corpus)
