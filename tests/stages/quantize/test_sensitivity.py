"""Sensitivities of a tiny model, against the divergence computed by hand with that layer replaced."""

import json

import numpy as np
import pytest

from harness.errors import ModelError
from tests.building import context
from tests.stages.prune.sparse_world import blocks_of, load
from tests.stages.quantize.slow_quantizers import round_asymmetric, round_symmetric, symmetric_scales

torch = pytest.importorskip("torch")

from harness.stages.quantize.grid import Grid  # noqa: E402
from harness.stages.quantize.sensitivity import Reference, Sensitivity, Table, measure, reading_together  # noqa: E402

LAYERS = ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"]


@pytest.fixture(scope="module")
def model(loud):
    return load(loud.path)


@pytest.fixture(scope="module")
def blocks(loud, corpus) -> np.ndarray:
    return blocks_of(loud, corpus)[:2]


@pytest.fixture(scope="module")
def reference(model, blocks) -> Reference:
    return Reference(model, blocks)


def log_probabilities(model, blocks: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits = model(torch.from_numpy(blocks)).logits.double().numpy()
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_sensitivity_is_the_divergence_with_that_layer_replaced(
    layer, symmetric, model, blocks, reference, loud, tmp_path
):
    table = Table(tmp_path / "table.json")
    measure(model, {layer: [Grid(3, 32, symmetric)]}, reference=reference, table=table, context=context(tmp_path))
    changed = load(loud.path)
    weight = changed.get_submodule(layer).weight
    before = weight.detach().double().numpy()
    after = (
        round_symmetric(before, symmetric_scales(before, 3, 32), 3) if symmetric else round_asymmetric(before, 3, 32)
    )
    with torch.no_grad():
        weight.copy_(torch.from_numpy(after))
    log_p, log_q = log_probabilities(model, blocks), log_probabilities(changed, blocks)
    expected = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1).mean()
    found = table.at(layer, 3)
    # float32 against float64: a weight on the edge between two points may go to either.
    assert found.kl == pytest.approx(expected, rel=0.02)
    assert found.squared_error == pytest.approx(((after - before) ** 2).sum(), rel=1e-3)


def test_the_model_is_left_as_it_was_and_more_bits_change_it_less(model, reference, loud, tmp_path):
    table = Table(tmp_path / "table.json")
    grids = {layer: [Grid(bits, 32, True) for bits in (2, 3, 4, 8)] for layer in LAYERS}
    measure(model, grids, reference=reference, table=table, context=context(tmp_path))
    for layer in LAYERS:
        found = [table.at(layer, bits) for bits in (2, 3, 4, 8)]
        for rows in ([row.divergence for row in found], [row.squared_error for row in found]):
            assert rows == sorted(rows, reverse=True)
        assert found[0].divergence > 50 * found[-1].divergence
    untouched = dict(load(loud.path).named_parameters())
    assert all(torch.equal(weight, untouched[name]) for name, weight in model.named_parameters())
    assert reference.divergence(model) == pytest.approx(0, abs=1e-7)


def test_a_search_that_was_killed_goes_on_where_it_was(model, blocks, tmp_path):
    passes = 0

    class Counting(Reference):
        def divergence(self, model):
            nonlocal passes
            passes += 1
            if passes == 3:
                raise KeyboardInterrupt
            return super().divergence(model)

    reference, grids = Counting(model, blocks), {layer: [Grid(3, 32, True), Grid(4, 32, True)] for layer in LAYERS}
    with pytest.raises(KeyboardInterrupt):
        measure(model, grids, reference=reference, table=Table(tmp_path / "t.json"), context=context(tmp_path))
    first = json.loads((tmp_path / "t.json").read_text())
    assert [(row["layer"], row["bits"]) for row in first] == [(LAYERS[0], 3), (LAYERS[0], 4)]
    table = Table(tmp_path / "t.json")
    measure(model, grids, reference=reference, table=table, context=context(tmp_path))
    assert passes == 5  # two that counted, one that was cut off, and the two that were missing
    assert [row.model_dump() for row in table.rows[:2]] == first
    assert len(Table(tmp_path / "t.json").rows) == 4


def test_without_a_reference_the_error_alone_is_measured_and_text_is_added_later(model, reference, tmp_path):
    table, grids = Table(tmp_path / "t.json"), {LAYERS[0]: [Grid(4, 32, True)]}
    measure(model, grids, reference=None, table=table, context=context(tmp_path))
    assert table.at(LAYERS[0], 4).kl is None
    measure(model, grids, reference=reference, table=table, context=context(tmp_path))
    assert table.at(LAYERS[0], 4).divergence > 0
    assert table.get(LAYERS[0], 2) is None


def test_layers_that_are_given_the_same_input_belong_together(model):
    names = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    found = {tuple(name.rsplit(".", 1)[-1] for name in members) for members in reading_together(model, names)}
    assert found == {("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)}
    assert len(reading_together(model, names)) == 8
    assert reading_together(model, ["model.layers.1.mlp.up_proj"]) == [("model.layers.1.mlp.up_proj",)]


def test_a_divergence_that_is_no_number_is_an_error(loud, reference):
    broken = load(loud.path)
    with torch.no_grad():
        broken.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="is nan"):
        reference.divergence(broken)


def test_the_table_is_read_back_as_it_was_written(tmp_path):
    rows = [Sensitivity(layer="a", bits=3, squared_error=0.5, kl=0.25), Sensitivity(layer="b", bits=4, squared_error=1)]
    table = Table(tmp_path / "t.json")
    for row in rows:
        table.add(row)
    assert Table(tmp_path / "t.json").rows == tuple(rows)
    assert not list(tmp_path.glob("*.new"))
