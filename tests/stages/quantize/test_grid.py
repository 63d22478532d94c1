"""The arithmetic of integer grids, against a slow reference that knows one number at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from harness.stages.quantize.grid import Grid, dequantize, encode, group_ranges, quantize_groups  # noqa: E402

F = np.float32
grids = st.builds(
    Grid,
    bits=st.sampled_from([2, 3, 4, 8]),
    group=st.one_of(st.none(), st.integers(1, 9)),
    symmetric=st.booleans(),
)
# Either zero or large enough that a scale is a normal float32 number; subnormal weights do not occur.
numbers = st.one_of(st.just(0.0), st.floats(2.0**-60, 2.0**60, width=32), st.floats(-(2.0**60), -(2.0**-60), width=32))
matrices = st.tuples(st.integers(1, 4), st.integers(1, 20)).flatmap(lambda shape: arrays(F, shape, elements=numbers))


def slow_reference(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """Dequantized weights by the definition: one row, one group, one weight at a time, in float32."""
    result = np.zeros_like(weight)
    rows, columns = weight.shape
    for row in range(rows):
        for start in range(0, columns, grid.group or columns):
            members = range(start, min(start + (grid.group or columns), columns))
            low = min(F(0), *(weight[row, c] for c in members), F(0))
            high = max(F(0), *(weight[row, c] for c in members), F(0))
            top = 2**grid.bits - 1
            scale = F(max(high, -low) / F(top / 2)) if grid.symmetric else F(F(high - low) / F(top))
            scale = scale if scale else F(1)
            zero = 2 ** (grid.bits - 1) if grid.symmetric else min(max(round(float(F(-low / scale))), 0), top)
            for c in members:
                code = min(max(round(float(F(weight[row, c] / scale))) + zero, 0), top)  # Python rounds ties to even
                result[row, c] = F(F(code - zero) * scale)
    return result


def quantized(weight: np.ndarray, grid: Grid) -> np.ndarray:
    return dequantize(quantize_groups(torch.from_numpy(weight), grid), grid).numpy()


@settings(max_examples=200, deadline=None)
@given(weight=matrices, grid=grids)
def test_the_fast_path_equals_the_definition_bit_for_bit(weight, grid):
    np.testing.assert_array_equal(quantized(weight, grid), slow_reference(weight, grid))


@settings(max_examples=200, deadline=None)
@given(weight=matrices, grid=grids)
def test_no_weight_moves_by_more_than_half_a_step(weight, grid):
    scales, _ = group_ranges(torch.from_numpy(weight), grid)
    steps = np.repeat(scales.numpy(), grid.group or weight.shape[1], axis=1)[:, : weight.shape[1]]
    # Float32 rounding of codes up to 255 adds a few units in the last place: 255 * 2^-23 = 3e-5 of a step.
    assert (np.abs(weight - quantized(weight, grid)) <= steps * (0.5 + 1e-4)).all()


@settings(max_examples=200, deadline=None)
@given(weight=matrices, grid=grids)
def test_on_its_own_grid_a_quantized_weight_stays_where_it_is(weight, grid):
    first = quantize_groups(torch.from_numpy(weight), grid)
    second = encode(dequantize(first, grid), first.scales, first.zeros, grid)
    assert torch.equal(first.codes, second.codes)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.sampled_from([2, 3, 4, 8]))
def test_quantizing_twice_is_quantizing_once_when_asymmetric(seed, bits):
    # Lowest and highest weight land on the first and last code (but for exact ties, which random weights do not make),
    # so the range, and with it the grid, is found again up to rounding.
    grid = Grid(bits, group=8, symmetric=False)
    once = quantized(np.random.default_rng(seed).normal(size=(4, 32)).astype(F), grid)
    np.testing.assert_allclose(quantized(once, grid), once, rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(weight=matrices, grid=grids, power=st.integers(-8, 8))
def test_scaling_the_weights_scales_the_result(weight, grid, power):
    factor = F(2.0**power)  # a power of two is exact
    np.testing.assert_array_equal(quantized(weight * factor, grid), quantized(weight, grid) * factor)


@settings(max_examples=50, deadline=None)
@given(weight=matrices, grid=grids, seed=st.integers(0, 99))
def test_rows_do_not_know_each_other(weight, grid, seed):
    order = np.random.default_rng(seed).permutation(len(weight))
    np.testing.assert_array_equal(quantized(weight[order], grid), quantized(weight, grid)[order])


@pytest.mark.parametrize("symmetric", [False, True])
def test_each_bit_quarters_the_squared_error_of_gaussian_weights(symmetric):
    # Errors are uniform in +-scale/2, so their mean square is mean(scale^2) / 12 (Bennett 1948), closely at 8 bits.
    weight = np.random.default_rng(0).normal(size=(256, 128)).astype(F)
    grid = Grid(8, group=128, symmetric=symmetric)
    scales, _ = group_ranges(torch.from_numpy(weight), grid)
    expected = float(scales.double().square().mean()) / 12
    assert np.mean((weight - quantized(weight, grid)) ** 2) == pytest.approx(expected, rel=0.03)
    scales_4, _ = group_ranges(torch.from_numpy(weight), Grid(4, group=128, symmetric=symmetric))
    assert torch.allclose(scales_4 / scales, torch.tensor(255 / 15))  # the step: (2^8 - 1) / (2^4 - 1)


def test_the_asymmetric_grid_of_a_worked_example():
    # Range -1 to 2 in 3 steps of 1, zero point 1: every weight is a grid point.
    codes = quantize_groups(torch.tensor([[-1.0, 0.0, 1.0, 2.0]]), Grid(2, None, symmetric=False))
    assert (codes.codes.tolist(), codes.scales.tolist(), codes.zeros.tolist()) == ([[0, 1, 2, 3]], [[1.0]], [[1.0]])


def test_the_symmetric_grid_of_a_worked_example():
    # 7.5 / 7.5 = 1 a step. -7.5 ties to -8, code 0. 7.5 ties to 8, code 16, cut to 15, which stands for 7.
    grid = Grid(4, None, symmetric=True)
    codes = quantize_groups(torch.tensor([[-7.5, 7.5, 0.4, -3.6]]), grid)
    assert codes.codes.tolist() == [[0, 15, 8, 4]]
    assert dequantize(codes, grid).tolist() == [[-8.0, 7.0, 0.0, -4.0]]


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_stays_zero_even_alone(symmetric):
    assert not quantized(np.zeros((2, 5), F), Grid(3, 2, symmetric)).any()


def test_a_group_of_one_value_is_kept_exactly_when_asymmetric():
    # Its range is 0 to the value, so it is the last code.
    np.testing.assert_allclose(quantized(np.full((1, 4), 0.37, F), Grid(2, None, symmetric=False)), F(0.37), rtol=1e-6)


@given(columns=st.integers(1, 20), group=st.integers(1, 9), symmetric=st.booleans())
def test_a_last_group_that_is_shorter_is_a_group_of_its_own(columns, group, symmetric):
    weight = np.random.default_rng(columns).normal(size=(2, columns)).astype(F)
    whole = Grid(4, None, symmetric)
    pieces = [quantized(np.ascontiguousarray(weight[:, a : a + group]), whole) for a in range(0, columns, group)]
    np.testing.assert_array_equal(quantized(weight, Grid(4, group, symmetric)), np.concatenate(pieces, axis=1))


def test_packed_bytes_count_codes_scales_and_zero_points():
    # 8 x 300 weights at 4 bits are 1200 bytes; 3 groups a row make 24 scales of 2 bytes and 24 zero points of 4 bits.
    assert Grid(4, 128, symmetric=False).packed_bytes(8, 300) == 1200 + 48 + 12
    assert Grid(4, 128, symmetric=True).packed_bytes(8, 300) == 1200 + 48
    # 3 bits: 2400 * 3 / 8 = 900 bytes, one group a row.
    assert Grid(3, None, symmetric=True).packed_bytes(8, 300) == 900 + 16
