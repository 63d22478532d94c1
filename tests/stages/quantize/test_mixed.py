"""Mixed precision: arguments, prices, and on a model with one planted sensitive layer that the search pays."""

import json
import math

import pytest

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.mixed import QuantizeMixed
from harness.stages.quantize.prices import Prices
from harness.testing import check_plugin
from tests.building import artifact
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS, load
from tests.stages.quantize.packed_world import pack, tensors, unpack_integers
from tests.stages.quantize.slow_quantizers import round_symmetric, symmetric_scales
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
SENSITIVE = "model.layers.0.self_attn.o_proj"
WEIGHTS = 2 * (3 * 64 * 256 + 2 * 64 * 64 + 2 * 32 * 64)


def stage(**args) -> QuantizeMixed:
    shared = {"average_bits": 4.6, "group": 64, "tokens": TOKENS, "sequence": SEQUENCE, "search_tokens": 64}
    return QuantizeMixed(**shared | {"method": "rtn"} | args)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Artifact:
    """A tiny model in which one layer's groups hold a weight so large that 4 bits round the other 63 to nothing."""
    source = artifact(tiny_llama(tmp_path_factory.mktemp("planted")), "hf")
    model = load(source.path)
    with torch.no_grad():
        model.get_submodule(SENSITIVE).weight[:, ::64] *= 40
    model.save_pretrained(source.path)
    return source


def said(report: BuildReport) -> dict:
    return report.notes["mixed"]


def test_mixed_is_a_proper_plugin():
    check_plugin("stages", QuantizeMixed)


@pytest.mark.parametrize(
    "args",
    [
        {"average_bits": 2.4},
        {"average_bits": 8.1},
        {"choices": [5]},
        {"choices": []},
        {"choices": "4"},
        {"group": 0},
        {"method": "awq"},
        {"search": "best"},
        {"search_tokens": 8},
        {"overrides": {"down_proj": {"bits": 8}}},
        {"overrides": {"down_proj": {"choices": [7]}}},
    ],
)
def test_arguments_that_contradict_or_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        stage(**args)


def test_prices_are_those_of_the_packed_layout():
    # 96 rows of 192 columns in groups of 64: at 3 bits a row is 576 bits, 18 words; 3 scales a row; zero points of 96
    # rows at 3 bits are 9 words for each group; the shape is two 64-bit integers.
    shapes = {"a": (96, 192), "b": (10, 30)}
    plain, shifted = (Prices(shapes, 16, 64, symmetric) for symmetric in (True, False))
    assert plain.bits("a", 3) == 96 * 18 * 32 + 96 * 3 * 16 + 128
    assert shifted.bits("a", 3) == plain.bits("a", 3) + 3 * 9 * 32
    assert plain.bits("a", 16) == 96 * 192 * 16
    # 30 columns at 3 bits are 90 bits, which fill three words.
    assert Prices(shapes, 32, None, True).bits("b", 3) == 10 * 3 * 32 + 10 * 32 + 128
    assert plain.weights(["a", "b"]) == 96 * 192 + 300


def test_a_budget_below_the_fewest_bits_is_refused_with_what_they_are(planted, corpus, tmp_path):
    with pytest.raises(Unsupported, match=r"fewest bits of `choices` are 4\.5"):
        pack(stage(average_bits=4.4, choices=[4, 8], search="uniform"), planted, tmp_path, corpus=corpus)


def test_layers_that_share_a_choice_must_have_one_in_common(planted, corpus, tmp_path):
    narrowed = {"q_proj": {"choices": [2]}, "k_proj": {"choices": [8]}}
    with pytest.raises(SpecError, match="none in common"):
        pack(stage(overrides=narrowed, search="uniform"), planted, tmp_path / "one", corpus=corpus)
    with pytest.raises(Unsupported, match="64 columns, which groups of 48 do not divide"):
        pack(stage(group=48), planted, tmp_path / "two", corpus=corpus)


def test_text_is_needed_whatever_the_method():
    assert [need.name for need in stage(method="rtn", search="uniform").needs] == ["corpus"]
    assert stage(data_free=True).needs == ()


@pytest.fixture(scope="module")
def packed(planted, corpus, tmp_path_factory) -> dict[str, tuple[Artifact, BuildReport]]:
    """The same budget spent in several ways: that of 4 bits everywhere, to the bit."""
    from tests.stages.quantize.packed_world import reading_here

    with reading_here():
        folder = tmp_path_factory.mktemp("packed")
        done = {"uniform": pack(stage(search="uniform"), planted, folder / "uniform", corpus=corpus)}
        bits = said(done["uniform"][1])["average_bits_reached"]
        for search in ("kl", "error", "random"):
            asked = stage(search=search, average_bits=bits)
            done[search] = pack(asked, planted, folder / search, corpus=corpus)
        return done


@pytest.mark.slow
def test_uniform_is_the_most_bits_that_fit(packed):
    found = said(packed["uniform"][1])
    assert set(found["bits"].values()) == {4}
    # 4 bits, a 32-bit scale for 64 columns, and the shape of each of 14 layers.
    assert found["average_bits_reached"] == pytest.approx(4.5 + 14 * 128 / WEIGHTS)
    assert "summed_kl" not in found


@pytest.mark.slow
def test_the_search_beats_the_same_bits_everywhere_and_at_random(packed):
    measured = {search: said(report)["measured_kl"] for search, (_, report) in packed.items()}
    assert measured["kl"] < measured["uniform"]
    assert measured["kl"] < measured["random"]
    assert measured["kl"] <= measured["error"] * 1.05
    for _, report in packed.values():
        assert said(report)["average_bits_reached"] <= said(packed["uniform"][1])["average_bits_reached"]
    assert said(packed["kl"][1])["bits"][SENSITIVE] == max(said(packed["kl"][1])["bits"].values()) > 4


@pytest.mark.slow
@pytest.mark.parametrize("search", ["kl", "error", "random", "uniform"])
def test_the_chosen_bits_are_those_in_the_files_and_cost_what_the_search_paid(search, packed, planted):
    out, report = packed[search]
    found = said(report)
    prices = Prices({name: tuple(w.shape) for name, w in _linear(planted).items()}, 32, 64, True)
    for layer, bits in found["bits"].items():
        stored = tensors(out.path, layer)
        if bits == 16:
            assert torch.equal(stored["weight"], _linear(planted)[layer])
            continue
        columns = prices.shapes[layer][1]
        assert stored["weight_packed"].shape[1] == math.ceil(columns * bits / 32)
        assert sum(8 * tensor.nbytes for tensor in stored.values()) == prices.bits(layer, bits)
    paid = sum(prices.bits(layer, bits) for layer, bits in found["bits"].items())
    assert found["average_bits_reached"] == pytest.approx(paid / WEIGHTS)


@pytest.mark.slow
def test_fused_layers_share_and_the_files_hold_the_grid_that_was_measured(packed, planted):
    out, report = packed["kl"]
    bits = said(report)["bits"]
    for layer in (0, 1):
        for fused in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            assert len({bits[f"model.layers.{layer}.{name}"] for name in fused}) == 1
    for layer, chosen in bits.items():
        if chosen != 16:
            before = _linear(planted)[layer].double().numpy()
            expected = round_symmetric(before, symmetric_scales(before, chosen, 64), chosen)
            # A group's largest weight lies half a step outside when it is positive, and exactly between two points when
            # it is negative: there float32 and float64 may differ, for one of 64 weights at most.
            assert (abs(unpack_integers(out.path, layer) - expected) < 1e-5).mean() > 63 / 64


@pytest.mark.slow
def test_the_whole_table_is_in_the_folder_and_its_sum_in_the_notes(packed):
    out, report = packed["kl"]
    document = json.loads((out.path / "sensitivity.json").read_text())
    rows = {(row["layer"], row["bits"]): row["kl"] for row in document["sensitivities"]}
    assert len(rows) == 14 * 4
    found = said(report)
    chosen = [rows[layer, bits] for layer, bits in found["bits"].items() if bits != 16]
    assert found["predicted_kl"] == pytest.approx(sum(chosen)) == pytest.approx(found["summed_kl"])
    assert found["bound"] <= found["summed_kl"]
    assert found["exact"]
    # What layers do to each other is left out; the sum is of the same size all the same.
    assert found["predicted_kl"] / 3 < found["measured_kl"] < 3 * found["predicted_kl"]
    assert max((one for one in rows if one[1] == 4), key=rows.__getitem__) == (SENSITIVE, 4)
    errors = json.loads((packed["error"][0].path / "sensitivity.json").read_text())["sensitivities"]
    assert {row["kl"] for row in errors} == {None}


@pytest.mark.slow
def test_gptq_with_exceptions_zero_points_and_unfused_layers(planted, corpus, tmp_path, reloaded_here):
    asked = stage(
        method="gptq",
        symmetric=False,
        fused=False,
        average_bits=5,
        ignore=["lm_head", "model.layers.1.self_attn.o_proj"],
        overrides={"model.layers.1.mlp.*": {"choices": [3]}, "v_proj": "keep"},
    )
    runs = [pack(asked, planted, tmp_path / name, corpus=corpus) for name in ("one", "two")]
    out, report = runs[0]
    found = said(report)
    assert len(found["bits"]) == 14 - 3
    assert {found["bits"][f"model.layers.1.mlp.{name}_proj"] for name in ("gate", "up", "down")} == {3}
    for layer in ("model.layers.1.self_attn.o_proj", "model.layers.0.self_attn.v_proj"):
        assert torch.equal(tensors(out.path, layer)["weight"], _linear(planted)[layer])
    prices = Prices({name: tuple(w.shape) for name, w in _linear(planted).items()}, 32, 64, False)
    paid = sum(prices.bits(layer, bits) for layer, bits in found["bits"].items())
    assert found["average_bits_reached"] == pytest.approx(paid / prices.weights(found["bits"]))
    assert found["average_bits_reached"] <= 5
    first, second = ((run[0].path / "model.safetensors").read_bytes() for run in runs)
    assert first == second
    assert report.notes["calibration"]["blocks"] == TOKENS // SEQUENCE
    assert report.notes["search_text"]["blocks"] == 2


def _linear(source: Artifact) -> dict:
    return {name.removesuffix(".weight"): weight for name, weight in tensors(source.path).items() if "_proj" in name}
