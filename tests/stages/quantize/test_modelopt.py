"""ModelOpt's formats and its search: what is written, against the formats' definitions and the library's folding."""

import contextlib
import copy
import io

import numpy as np
import pytest

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.modelopt import QuantizeModelopt
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, blocks_of, load
from tests.stages.quantize.packed_world import e4m3, reading_here, tensors

torch = pytest.importorskip("torch")
DOWN, QUERY = "model.layers.0.mlp.down_proj", "model.layers.0.self_attn.q_proj"
MIXED = {"down_proj": {"format": "int8"}, "model.layers.1.self_attn.*": "keep"}
FORMATS = {
    "int4": {"format": "int4"},
    "int8": {"format": "int8"},
    "int4_awq": {"format": "int4_awq"},
    "fp8": {"format": "fp8"},
    "mixed": {"format": "int4", "overrides": MIXED},
    "gradient": {"average_bits": 6, "search": "gradient"},
    "kl_div": {"average_bits": 6, "search": "kl_div"},
    "with awq": {"average_bits": 5.5, "formats": ["int4_awq", "fp8"]},
}


def stage(**args) -> QuantizeModelopt:
    return QuantizeModelopt(**{"group": 32, "tokens": TOKENS, "sequence": SEQUENCE} | args)


def emulate(asked: QuantizeModelopt, source: Artifact, folder, **needs: Artifact) -> tuple[Artifact, BuildReport]:
    out = folder / "out"
    out.mkdir(parents=True)
    used = context(folder / "scratch", **needs)
    with contextlib.redirect_stdout(io.StringIO()):
        asked.apply(source, out, context=used)
    return artifact(out, asked.produces), used.report


def test_modelopt_is_a_proper_plugin():
    check_plugin("stages", QuantizeModelopt)


@pytest.mark.parametrize(
    "args",
    [
        {"format": "int3"},
        {"group": 0},
        {"search": "kl"},
        {"formats": "int4", "average_bits": 5},
        {"formats": ["int4", "nvfp4"], "average_bits": 5},
        {"formats": [], "average_bits": 5},
        {"average_bits": 3.9},
        {"average_bits": 16},
        {"average_bits": 5, "overrides": {"down_proj": {"format": "int8"}}},
        {"format": "int4_awq", "overrides": {"down_proj": {"format": "int8"}}},
        {"overrides": {"down_proj": {"bits": 8}}},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        stage(**args)


def test_the_format_of_the_folder_is_known_before_it_is_built():
    made = {name: stage(**args).produces for name, args in FORMATS.items()}
    on_grids = {"int4", "int8", "mixed", "gradient", "kl_div"}
    assert made == {name: "grid" if name in on_grids else "hf" for name in FORMATS}
    assert stage(format="int4").needs == ()
    assert [need.name for need in stage(format="int4_awq").needs] == ["corpus"]
    assert [need.name for need in stage(average_bits=5).needs] == ["corpus"]


@pytest.fixture(scope="module")
def built(loud, corpus, tmp_path_factory) -> dict[str, tuple[Artifact, BuildReport]]:
    pytest.importorskip("modelopt")
    folder = tmp_path_factory.mktemp("modelopt")
    with reading_here():
        return {name: emulate(stage(**args), loud, folder / name, corpus=corpus) for name, args in FORMATS.items()}


def logits(folder, blocks) -> np.ndarray:
    with torch.no_grad():
        return load(folder)(torch.from_numpy(blocks)).logits.numpy()


def integers(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """ModelOpt's rounding by its definition: the largest magnitude of a group is the code 2^(bits-1) - 1."""
    grouped = weight.reshape(len(weight), -1, group).astype(np.float64)
    step = np.abs(grouped).max(axis=2, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.round(grouped / step) * step).reshape(weight.shape)


def linear(folder) -> dict:
    return {name: weight for name, weight in tensors(folder).items() if "_proj" in name}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bits", "group"), [("int4", 4, 32), ("int8", 8, None)])
def test_integers_are_those_of_the_definition(name, bits, group, built, loud):
    before, after = tensors(loud.path), linear(built[name][0].path)
    for layer, weight in after.items():
        expected = integers(before[layer].numpy(), bits, group or weight.shape[1])
        # float32 against float64: a weight on the edge between two codes may go to either.
        assert np.isclose(weight.numpy(), expected, rtol=1e-5, atol=1e-8).mean() > 0.999
        pieces = weight.reshape(len(weight), -1, group or weight.shape[1])
        assert max(len(piece.unique()) for row in pieces for piece in row) <= 2**bits - 1
    untouched = {layer: weight for layer, weight in tensors(built[name][0].path).items() if layer not in after}
    assert all(torch.equal(weight, before[layer]) for layer, weight in untouched.items())


@pytest.mark.slow
def test_the_step_is_coarser_than_that_of_our_own_symmetric_grid(built, loud):
    # max|w| / 7 against max|w| / 7.5, with no clipping of the largest: Gaussian-like errors grow by (7.5 / 7)^2.
    from harness.stages.grids import read_grids
    from harness.stages.quantize.grid import Grid, group_ranges

    before = tensors(loud.path)
    for name, gridded in read_grids(built["int4"][0]).items():
        ours, middle = group_ranges(before[name], Grid(4, 32, symmetric=True))
        torch.testing.assert_close(gridded.scales_RG / ours, torch.full_like(ours, 7.5 / 7))
        assert torch.equal(gridded.zeros_RG, middle)
        assert torch.equal(gridded.unrounded_RC, before[name])


@pytest.mark.slow
def test_the_weights_are_those_of_the_librarys_own_folding(built, loud):
    import modelopt.torch.quantization as mtq

    config = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    for entry in config["quant_cfg"]:
        if entry["quantizer_name"] == "*weight_quantizer":
            entry["cfg"]["block_sizes"][-1] = 32
    with contextlib.redirect_stdout(io.StringIO()):
        model = mtq.quantize(load(loud.path), config)
    mtq.fold_weight(model)
    for name, weight in linear(built["int4"][0].path).items():
        torch.testing.assert_close(model.get_parameter(name).detach(), weight, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_fp8_weights_are_eight_bit_floats_times_one_scale(built, loud):
    table = np.array([e4m3(byte) for byte in range(256) if byte & 0x7F != 0x7F])
    for name, weight in linear(built["fp8"][0].path).items():
        scale = float(tensors(loud.path)[name].abs().max()) / 448
        codes = weight.double().numpy() / scale
        nearest = table[np.abs(codes[..., None] - table).argmin(axis=-1)]
        np.testing.assert_allclose(codes, nearest, rtol=1e-5, atol=1e-9)
        before = tensors(loud.path)[name].double().numpy() / scale
        assert (
            np.abs(codes - before) <= np.abs(before) / 16 + 2.0**-10 + 1e-6
        ).all()  # half a step: 3 bits of fraction


@pytest.mark.slow
def test_more_bits_and_awq_come_closer_to_the_original(built, loud, corpus):
    blocks = blocks_of(loud, corpus)
    expected = logits(loud.path, blocks)
    errors = {name: np.square(logits(out.path, blocks) - expected).mean() for name, (out, _) in built.items()}
    assert errors["int8"] < errors["int4_awq"] < errors["int4"]
    assert errors["int8"] < errors["fp8"] < errors["int4"]
    assert errors["int8"] < errors["gradient"] < errors["int4"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_the_notes_prove_what_the_folded_weights_are(name, built):
    out, report = built[name]
    notes = report.notes["modelopt"]
    bits = notes["bits"]
    levels = {int(kind.split()[1]): most for kind, most in notes["most_levels"].items()}
    assert set(levels) == set(bits.values()) - {16}
    for width, most in levels.items():
        assert 4 < most <= 2**width
    weights = {layer: tensors(out.path)[f"{layer}.weight"].numel() for layer in bits}
    average = sum(bits[layer] * weights[layer] for layer in bits) / sum(weights.values())
    assert notes["average_bits_without_scales"] == pytest.approx(average)
    assert report.notes["reload_difference"] < 1e-6
    assert report.notes["fold_difference"] < 1e-4
    assert report.nominal_bytes < sum(tensor.nbytes for tensor in tensors(out.path).values()) / 1.5
    assert report.notes["coverage"]["share_of_linear"] == pytest.approx(
        sum(weights[layer] for layer in bits if bits[layer] != 16) / (2 * 61440)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradient", "kl_div", "with awq"])
def test_the_search_keeps_its_budget_and_fused_layers_together(name, built):
    notes, asked = built[name][1].notes["modelopt"], FORMATS[name]["average_bits"]
    bits = notes["bits"]
    assert len(bits) == 14
    assert 4 < notes["average_bits_without_scales"] <= asked
    assert len(set(bits.values())) > 1
    for layer in (0, 1):
        for fused in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            assert len({bits[f"model.layers.{layer}.{part}"] for part in fused}) == 1
    # ModelOpt counts the tied head too, at 16 bits: 24576 of 147456 weights.
    counted = (notes["average_bits_without_scales"] * 122880 + 16 * 24576) / 147456
    assert notes["effective_bits_of_modelopt"] == pytest.approx(counted)


@pytest.mark.slow
def test_overrides_change_the_format_and_keep_layers_bit_for_bit(built, loud):
    out, report = built["mixed"]
    bits = report.notes["modelopt"]["bits"]
    assert {layer for layer, width in bits.items() if width == 8} == {f"model.layers.{n}.mlp.down_proj" for n in (0, 1)}
    assert len(bits) == 10
    for part in "qkvo":
        name = f"model.layers.1.self_attn.{part}_proj.weight"
        assert torch.equal(tensors(out.path)[name], tensors(loud.path)[name])
    assert "grid 8 bits, whole row" in report.notes["coverage"]["layers"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(built, loud, corpus, tmp_path, reloaded_here):
    again, _ = emulate(stage(**FORMATS["int4_awq"]), loud, tmp_path, corpus=corpus)
    first = built["int4_awq"][0].path
    assert (again.path / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "why"), [("nvfp4", "must be a CUDA tensor"), ("mxfp4", "CUDA is not available")])
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_formats_that_need_cuda_say_so(form, why, built, loud, tmp_path):
    with pytest.raises(Unsupported, match=why):
        emulate(stage(format=form), loud, tmp_path)


@pytest.mark.slow
def test_a_library_that_did_nothing_fails_the_cell(built, loud, tmp_path, monkeypatch):
    import modelopt.torch.quantization as mtq

    done = mtq.quantize

    def disabled(model, config, forward_loop=None):
        model = done(model, config, forward_loop)
        mtq.disable_quantizer(model, f"*{DOWN}*")
        return model

    monkeypatch.setattr(mtq, "quantize", disabled)
    with pytest.raises(ModelError, match=f"{DOWN}: modelopt left it as it was"):
        emulate(stage(), loud, tmp_path / "disabled")

    def untrue(model, config, forward_loop=None):
        model = done(model, config, forward_loop)
        # The quantizer says that it is on, and gives weights back as they come.
        monkeypatch.setattr(type(model.get_submodule(DOWN).weight_quantizer), "forward", lambda _, weight: weight)
        return model

    monkeypatch.setattr(mtq, "quantize", untrue)
    with pytest.raises(ModelError, match="they were not rounded"):
        emulate(stage(), loud, tmp_path / "untrue")


@pytest.mark.slow
def test_sixteen_bit_models_are_folded_from_what_they_store(built, loud, corpus, tmp_path, reloaded_here):
    model = load(loud.path).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    for file in loud.path.iterdir():
        if not (tmp_path / "model" / file.name).exists():
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    source = artifact(tmp_path / "model", "hf")
    for form in ("int4", "int4_awq"):
        out, report = emulate(stage(format=form), source, tmp_path / form, corpus=corpus)
        assert {weight.dtype for weight in tensors(out.path).values()} == {torch.bfloat16}
        assert report.notes["reload_difference"] < 1e-6
        assert report.notes["fold_difference"] < 1e-4
