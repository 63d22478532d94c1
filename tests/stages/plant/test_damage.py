"""Planted damage: what moves, by how much, what stays, and that every report will say so."""

from pathlib import Path

import pytest

from harness.errors import Unsupported
from harness.interfaces import Artifact
from harness.stages.plant.damage import LABEL, PlantDamage
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
HEADS, LAYERS = 4, 2  # of the tiny model: 64 wide, heads of 16


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("model")), "hf")


def tensors(folder: Path) -> dict:
    from safetensors.torch import load_file

    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def damage(source: Artifact, out: Path, **args):
    out.mkdir(parents=True)
    used = context(out.with_name(out.name + "-scratch"))
    PlantDamage(**args).apply(source, out, context=used)
    return tensors(out), used.report


def is_linear(name: str) -> bool:
    return name.split(".")[-2] in LINEAR


def test_damage_is_a_proper_plugin():
    check_plugin("stages", PlantDamage)


def test_noise_is_as_large_as_asked_and_touches_linear_weights_only(model, tmp_path):
    before = tensors(model.path)
    after, report = damage(model, tmp_path / "out", kind="noise", size=0.1)
    for name, weight in after.items():
        assert weight.dtype == before[name].dtype
        if is_linear(name):
            moved = (weight - before[name]).square().mean().sqrt() / before[name].square().mean().sqrt()
            assert float(moved) == pytest.approx(0.1, rel=0.1)  # an sd from 2,048 draws or more: within 5 % for 3 sd
        else:
            assert torch.equal(weight, before[name])
    assert report.notes["relative_squared_error"] == pytest.approx(0.01, rel=0.05)


def test_every_report_will_say_that_it_was_on_purpose(model, tmp_path):
    _, report = damage(model, tmp_path / "out", kind="noise", size=0.5)
    assert report.labels == [LABEL]
    assert report.notes["damage"] == "noise"


def test_the_seed_decides_the_damage(model, tmp_path):
    def weights(name: str, **args):
        return damage(model, tmp_path / name, kind="noise", size=0.1, **args)[0]["model.layers.0.mlp.up_proj.weight"]

    first = weights("one")
    assert torch.equal(first, weights("two"))
    assert not torch.equal(first, weights("three", seed=1))


@pytest.mark.parametrize("count", [1, 3, HEADS * LAYERS])
def test_silenced_heads_are_blocks_of_columns_of_zeros(model, tmp_path, count):
    before = tensors(model.path)
    after, _ = damage(model, tmp_path / "out", kind="zero_head", size=count)
    silent = 0
    for name, weight in after.items():
        if name.endswith("o_proj.weight"):
            for head in range(HEADS):
                block = slice(16 * head, 16 * (head + 1))
                silent += not weight[:, block].any()
                assert not weight[:, block].any() or torch.equal(weight[:, block], before[name][:, block])
        else:
            assert torch.equal(weight, before[name])
    assert silent == count


def test_a_silenced_head_adds_nothing_to_the_model(model, tmp_path):
    # With every head silenced attention adds nothing: a second word changes nothing of what follows a first one.
    from transformers import AutoModelForCausalLM

    damage(model, tmp_path / "out", kind="zero_head", size=HEADS * LAYERS)
    deaf = AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)
    with torch.no_grad():
        one, other = (deaf(torch.tensor([[first, 7]])).logits[0, -1] for first in (5, 9))
    assert torch.equal(one, other)


def test_groups_read_back_too_long_take_the_scales_of_others(model, tmp_path):
    before = tensors(model.path)
    after, _ = damage(model, tmp_path / "out", kind="wrong_group", size=16)
    name = "model.layers.0.self_attn.q_proj.weight"
    row, wrong = before[name][0].tolist(), after[name][0].tolist()
    for column in range(64):
        low, high = _ends(row, column // 16)
        scale = (high - low) / 15
        code = max(0, min(15, round(row[column] / scale) + round(-low / scale)))
        # The reader takes 32 columns for a group, so columns 0-31 get group 0's scale and columns 32-63 group 1's.
        low, high = _ends(row, column // 32)
        scale = (high - low) / 15
        assert wrong[column] == pytest.approx((code - round(-low / scale)) * scale, abs=1e-5)


def _ends(row: list[float], group: int) -> tuple[float, float]:
    inside = row[16 * group : 16 * (group + 1)]
    return min(0.0, *inside), max(0.0, *inside)


def test_shifted_scales_hit_as_many_groups_as_asked(model, tmp_path):
    before = tensors(model.path)
    after, _ = damage(model, tmp_path / "out", kind="scale_shift", size=0.25)
    hit, groups = 0, 0
    for name in filter(is_linear, before):
        old, new = before[name].reshape(-1, 32), after[name].reshape(-1, 32)
        # Rounding to 8 bits moves a weight by half a step at most; a neighbour's scale moves the largest by more.
        step = (old.amax(1).clamp(min=0) - old.amin(1).clamp(max=0)) / 255
        hit += int(((new - old).abs().amax(1) > 0.51 * step).sum())
        groups += len(old)
    assert hit / groups == pytest.approx(0.25, abs=0.02)  # 4 sd of 5,000 groups


@pytest.mark.parametrize(
    ("kind", "size"),
    [("noise", 0), ("noise", float("nan")), ("zero_head", 1.5), ("wrong_group", 0), ("scale_shift", 1.1), ("rot", 1)],
)
def test_what_cannot_be_is_refused(kind, size):
    with pytest.raises(ValueError, match="allowed"):
        PlantDamage(kind=kind, size=size)


def test_damage_that_would_change_nothing_is_refused(model, tmp_path):
    with pytest.raises(Unsupported, match="cannot be silenced"):
        damage(model, tmp_path / "one", kind="zero_head", size=9)
