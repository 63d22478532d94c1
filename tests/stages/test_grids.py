"""Weights on a quantization grid stay on it, frozen or trained through the rounding, and what leaves says so."""

from dataclasses import replace

import pytest

from harness.errors import CorruptArtifact, Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.sources.corpus import write_documents
from harness.stages.distill.logits import DistillLogits
from harness.stages.quantize.rtn import QuantizeRtn
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama

torch = pytest.importorskip("torch")

from harness.stages.grids import FILE, Gridded, StraightThrough, read_grids, report_grids, write_grids  # noqa: E402
from harness.stages.quantize.grid import Grid, group_ranges  # noqa: E402

FAST = {"tokens": 512, "batch": 2, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 64}


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("plain")), "hf")


@pytest.fixture(scope="module")
def rounded(plain, tmp_path_factory) -> Artifact:
    out = tmp_path_factory.mktemp("rounded")
    QuantizeRtn(bits=3, group=32).apply(plain, out, context=context(tmp_path_factory.mktemp("scratch")))
    return artifact(out, "grid")


@pytest.fixture
def used(tmp_path, plain):
    folder = tmp_path / "corpus"
    folder.mkdir()
    numbered = [f"{n}. {sentence}" for n in range(3) for sentence in TEXT.splitlines()]
    write_documents(folder, train=numbered, heldout=TEXT.splitlines())
    return context(tmp_path / "scratch", teacher=plain, corpus=artifact(folder, "text"))


def trained(source: Artifact, out, used, **args):
    out.mkdir()
    DistillLogits(**{**FAST, **args}).apply(source, out, context=used)
    return weights(out)


def codes_a_group(weight, group: int) -> int:
    """The most different values in any group of a row."""
    return max(len(part.unique()) for row in weight for part in row.split(group))


def test_a_quantizer_writes_the_grid_of_every_weight_it_rounded(rounded, plain):
    grids, before, after = read_grids(rounded), weights(plain.path), weights(rounded.path)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert set(grids) == changed
    assert len(grids) == 2 * 7  # q, k, v, o, gate, up, down in each of two layers
    for name, gridded in grids.items():
        assert gridded.grid == Grid(3, 32, symmetric=False)
        torch.testing.assert_close(gridded.snap(after[name]), after[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [{"kd_weight": 1.0}, {"kd_weight": 0.0, "ce_weight": 1.0}], ids=["QAD", "QAT"])
def test_training_through_the_rounding_moves_codes_and_stays_on_the_same_grid(loss, rounded, used, tmp_path):
    out = trained(rounded, tmp_path / "out", used, quantized="straight_through", **loss)
    before, grids = weights(rounded.path), read_grids(rounded)
    left = read_grids(artifact(tmp_path / "out", "grid"))
    assert set(left) == set(grids)
    for name, gridded in grids.items():
        assert codes_a_group(out[name], 32) <= 8
        torch.testing.assert_close(left[name].scales_RG, gridded.scales_RG, rtol=0, atol=0)
        torch.testing.assert_close(gridded.snap(out[name]), out[name], rtol=0, atol=1e-6)
    assert any(not torch.allclose(out[name], before[name], atol=1e-6) for name in grids)


def test_training_through_the_rounding_starts_from_the_weights_before_it_and_leaves_them_for_the_next_stage(
    rounded, plain, used, tmp_path
):
    before, grids = weights(plain.path), read_grids(rounded)
    assert all(torch.equal(grids[name].unrounded_RC, before[name]) for name in grids)
    trained(rounded, tmp_path / "out", used, tokens=64)  # one step
    left = read_grids(artifact(tmp_path / "out", "grid"))
    for name, gridded in left.items():
        moved = (gridded.unrounded_RC - before[name]).abs().max()
        # Adam's first step moves a weight by the learning rate, or not at all where the gradient is 0.
        assert 0 < moved <= 3e-3 * 1.01


def test_frozen_weights_do_not_move_and_the_others_do(rounded, used, tmp_path):
    out = trained(rounded, tmp_path / "out", used, quantized="frozen")
    before, grids = weights(rounded.path), read_grids(rounded)
    assert all(torch.equal(out[name], before[name]) for name in grids)
    assert all(not torch.equal(out[name], before[name]) for name in set(before) - set(grids))


def test_distillation_through_the_rounding_repairs_what_rounding_broke(rounded, used, tmp_path):
    trained(rounded, tmp_path / "out", used, tokens=960, learning_rate=1e-3, autocast=False)
    notes = used.report.notes
    assert notes["heldout_kl_after"] < notes["heldout_kl_before"]


def test_the_nominal_size_counts_codes_and_scales_of_gridded_weights_and_bytes_of_the_others(rounded, used, tmp_path):
    out = trained(rounded, tmp_path / "out", used)
    grids, expected = read_grids(rounded), 0
    for name, weight in out.items():
        if name in grids:  # 3 bits a weight; a 16-bit scale and a 3-bit zero point for each 32 columns
            rows, columns = weight.shape
            expected += (rows * columns * 3 + rows * (columns // 32) * 19 + 7) // 8
        else:
            expected += weight.nbytes
    assert used.report.nominal_bytes == expected


def test_a_killed_run_on_a_grid_continues_to_the_same_bits(rounded, used, tmp_path):
    class Killed(Exception):
        pass

    def kill(_, message):
        if message.startswith("step 5 "):
            raise Killed

    whole = trained(rounded, tmp_path / "whole", used, checkpoint_every=3)
    scratch = tmp_path / "second"
    scratch.mkdir()
    with pytest.raises(Killed):
        trained(rounded, tmp_path / "cut", replace(used, scratch=scratch, progress=kill), checkpoint_every=3)
    again = replace(used, scratch=scratch, report=BuildReport())
    resumed = trained(rounded, tmp_path / "resumed", again, checkpoint_every=3)
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_adapters_on_a_grid_are_refused(rounded, used, tmp_path):
    with pytest.raises(Unsupported, match="adapters cannot be merged"):
        trained(rounded, tmp_path / "out", used, lora=4)


def test_the_gradient_passes_inside_the_range_and_stops_outside():
    grid = Grid(2, None, symmetric=False)  # codes 0..3
    # Scale 1, zero point 1: the grid is -1, 0, 1, 2; half a step beyond its ends is -1.5 and 2.5.
    gridded = Gridded(grid, torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1, 5))
    weight = torch.tensor([[-1.6, -1.4, 0.3, 2.4, 2.6]], requires_grad=True)
    rounded = StraightThrough(gridded)(weight)
    torch.testing.assert_close(rounded.detach(), torch.tensor([[-1.0, -1.0, 0.0, 2.0, 2.0]]))
    rounded.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    torch.testing.assert_close(weight.grad, torch.tensor([[0.0, 2.0, 3.0, 4.0, 0.0]]))


def test_weights_off_their_grid_are_not_called_quantized(tmp_path, plain):
    from shutil import copytree

    folder = copytree(plain.path, tmp_path / "off")
    name, weight = next((n, w) for n, w in weights(folder).items() if n.endswith("q_proj.weight"))
    grid = Grid(4, None, symmetric=False)
    scales, zeros = group_ranges(weight, grid)
    with pytest.raises(CorruptArtifact, match="off their grid"):
        report_grids(folder, {name: Gridded(grid, scales, zeros, weight)}, report=BuildReport())


def test_a_grid_folder_without_its_grids_is_corrupt(tmp_path, plain):
    with pytest.raises(CorruptArtifact, match="must hold grid"):
        read_grids(artifact(plain.path, "grid"))


def test_grids_survive_the_disk(tmp_path):
    grid = Gridded(Grid(4, 2, symmetric=True), torch.rand(3, 2), torch.full((3, 2), 8.0), torch.rand(3, 4))
    write_grids(tmp_path, {"a.weight": grid})
    (found,) = read_grids(artifact(tmp_path, "grid")).values()
    assert found.grid == grid.grid
    assert torch.equal(found.scales_RG, grid.scales_RG)
    assert torch.equal(found.zeros_RG, grid.zeros_RG)
    assert torch.equal(found.unrounded_RC, grid.unrounded_RC)
    assert (tmp_path / FILE).exists()
