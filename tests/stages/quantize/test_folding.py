"""Folded weights against the formats' definitions: what lies on a format passes, and what does not fails."""

import numpy as np
import pytest

from harness.errors import ModelError
from tests.stages.quantize.packed_world import E2M1, e4m3

torch = pytest.importorskip("torch")

from harness.stages.quantize.folding import Folded, most_levels, nearest_e2m1  # noqa: E402


def weights(rows: int = 8, columns: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)


def integers(bits: int, group: int, *, scale=None) -> Folded:
    """Random weights on a symmetric grid of 2^bits - 1 levels, written out in NumPy."""
    weight = weights()
    top = 2 ** (bits - 1) - 1
    amax = np.abs(weight.reshape(8, -1, group)).max(axis=2)
    step = np.repeat(amax / top, group, axis=1)
    folded = (np.round(weight / step) * step).astype(np.float32)
    return Folded("integers", bits, group, torch.from_numpy(amax).reshape(-1, 1), torch.from_numpy(folded), scale)


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 64), (8, 64), (3, 32)])
def test_weights_on_their_grid_stay_and_have_no_more_levels_than_codes(bits, group):
    folded = integers(bits, group)
    np.testing.assert_allclose(folded.settled().numpy(), folded.weight_RC.numpy(), rtol=3e-7)
    assert folded.most_levels <= min(group, 2**bits - 1)
    assert folded.grid is not None
    scales, zeros = folded.ranges()
    codes = folded.weight_RC.unflatten(1, (-1, group)) / scales[..., None] + zeros[..., None]
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.round().min() >= 1  # the lowest code, 0, is unused
    assert codes.round().max() == 2**bits - 1


def test_weights_that_were_not_rounded_fail():
    for folded in (integers(4, 16), integers(8, 64)):
        whole = Folded(folded.kind, folded.bits, folded.group, folded.amax, torch.from_numpy(weights()))
        with pytest.raises(ModelError, match="they were not rounded"):
            whole.settled()
    for kind, group in (("fp8", None), ("e2m1", 16)):
        with pytest.raises(ModelError, match="they were not rounded"):
            Folded(kind, 8, group, torch.tensor(4.0), torch.from_numpy(weights())).settled()
    with pytest.raises(ModelError, match="never calibrated"):
        Folded("integers", 4, 16, None, torch.from_numpy(weights())).settled()


def test_a_single_weight_off_its_grid_fails():
    folded = integers(8, 64)
    folded.weight_RC[3, 5] += 0.3 * folded.ranges()[0][3, 0]
    with pytest.raises(ModelError, match=r"0\.2%"):  # one of 512
        folded.settled()


def test_scaled_inputs_go_into_the_weights_and_leave_no_grid():
    factors = torch.linspace(0.5, 2, 64)
    folded = integers(4, 16, scale=factors)
    inputs = torch.from_numpy(weights(3, 64, seed=1))
    expected = (inputs * factors) @ folded.weight_RC.T
    torch.testing.assert_close(inputs @ folded.plain().T, expected)
    assert folded.grid is None


def test_floats_of_eight_bits_lie_on_every_value_of_the_format():
    table = np.array([e4m3(byte) for byte in range(256) if byte & 0x7F != 0x7F], dtype=np.float32)
    matrix = np.resize(table, (8, 64)) * np.float32(3.0 / 448)
    folded = Folded("fp8", 8, None, torch.tensor(3.0), torch.from_numpy(matrix))
    np.testing.assert_allclose(folded.settled().numpy(), matrix, rtol=3e-7)
    assert folded.most_levels == 253  # 254 codes are numbers, and +0 and -0 are one value


@pytest.mark.parametrize("top", [6.0, 4.0])
def test_blocks_of_four_bit_floats_are_found_whatever_their_scale(top):
    drawing = np.random.default_rng(2)
    codes = drawing.choice([value for value in E2M1 if value <= top], size=(8, 64)) * drawing.choice([-1, 1], (8, 64))
    codes[:, ::16] = top
    steps = np.repeat(drawing.uniform(0.01, 2, (8, 4)), 16, axis=1)
    matrix = torch.from_numpy((codes * steps).astype(np.float32))
    torch.testing.assert_close(nearest_e2m1(matrix, 16), matrix, rtol=3e-7, atol=0)


def test_levels_are_counted_where_there_are_most():
    matrix = torch.tensor([[0.0, 0.0, 1.0, 1.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    assert (most_levels(matrix, 2), most_levels(matrix, 4), most_levels(matrix, 5)) == (2, 4, 5)
    assert most_levels(matrix[:1], 5) == 3


def test_facts_count_codes_scales_and_factors():
    # 8 x 64 weights: 256 bytes of codes at 4 bits, 32 scales of 2 bytes; AWQ's 64 factors take 2 bytes each.
    plain, scaled = integers(4, 16).as_packed("m", "x"), integers(4, 16, scale=torch.ones(64)).as_packed("m", "x")
    assert (plain.bytes, scaled.bytes) == (256 + 64, 256 + 64 + 128)
    fp8 = Folded("fp8", 8, None, torch.tensor(1.0), torch.zeros(8, 64)).as_packed("m", "x")
    assert (fp8.bytes, fp8.sharing) == (512 + 4, "whole matrix")
