"""Fake quantization: what is rounded to, and which gradient passes, from definitions written out here."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from harness.stages.quantize.straight_through import (  # noqa: E402
    IntegerWeight,
    LearnedStep,
    Nvfp4Weight,
    int8_inputs,
    lsq,
    nearest_e2m1,
    nvfp4_inputs,
    pass_through,
    round_inputs,
    round_weights,
    settle_weights,
)
from tests.stages.quantize.packed_world import E2M1, e4m3  # noqa: E402

E4M3 = np.array([e4m3(byte) for byte in range(0x7F)])  # the positive ones; 0x7f is no number


def gradient(rounding, weight):
    """The gradient of a weighted sum of the rounded weights, with the weights of that sum."""
    weight = weight.clone().requires_grad_()
    factors = torch.arange(1.0, weight.numel() + 1).reshape(weight.shape)
    (rounding(weight) * factors).sum().backward()
    return weight.grad, factors


def test_the_value_is_exactly_the_rounded_one_and_the_gradient_goes_where_it_is_inside():
    # 1e8 + (1e-3 - 1e8) is not 1e-3 in float32, so a sum of value and difference would not do.
    value = torch.tensor([1e8, 2.0, 3.0], requires_grad=True)
    rounded = torch.tensor([1e-3, 7.0, 9.0])
    given = pass_through(value, rounded, torch.tensor([True, False, True]))
    assert torch.equal(given, rounded)
    given.sum().backward()
    assert value.grad.tolist() == [1, 0, 1]


def test_e2m1_is_the_nearest_value_with_ties_to_the_even_code():
    points = torch.linspace(-8, 8, 16 * 64 + 1)  # every tie among them
    for point, found in zip(points.tolist(), nearest_e2m1(points).tolist(), strict=True):
        distances = [abs(min(abs(point), 6.0) - value) for value in E2M1]
        nearest = [code for code in range(8) if distances[code] == min(distances)]
        even = nearest[0] if len(nearest) == 1 else next(code for code in nearest if code % 2 == 0)
        assert found == math.copysign(E2M1[even], point)


def test_integers_pass_gradients_up_to_half_a_step_beyond_the_last_codes():
    # Steps of 1, 3 bits: codes -4 to 3.
    weight = torch.tensor([[-4.6, -4.4, -0.2, 0.0, 1.6, 3.4, 3.6, 9.0]])
    rounding = IntegerWeight(3, None, stored=torch.float32, steps_RG=torch.ones(1, 1))
    assert rounding(weight).tolist() == [[-4, -4, 0, 0, 2, 3, 3, 3]]
    found, factors = gradient(rounding, weight)
    assert torch.equal(found, factors * torch.tensor([[0, 1, 1, 1, 1, 1, 0, 0]]))


def test_nvfp4_passes_gradients_up_to_half_a_step_beyond_six():
    weight = torch.zeros(1, 16)
    weight[0, :6] = torch.tensor([-7.2, -6.9, 0.3, 2.4, 6.0, 7.1])
    rounding = Nvfp4Weight(torch.ones(1), scales_RG=torch.ones(1, 1))
    assert rounding(weight)[0, :6].tolist() == [-6, -6, 0.5, 2, 6, 6]
    found, factors = gradient(rounding, weight)
    expected = torch.ones(1, 16)
    expected[0, [0, 5]] = 0
    assert torch.equal(found, factors * expected)


@pytest.mark.parametrize("group", [8, None])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_following_integers_span_the_largest_weight_and_lie_on_their_grid(group, stored):
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    rounding = IntegerWeight(4, group, stored=stored)
    steps = rounding.parameters_stored(weight)["weight_scale"]
    peaks = weight.to(stored).reshape(5, -1, group or 32).abs().amax(-1).double()
    # One division in the stored type: within half a unit in its last place.
    assert steps.double().numpy() == pytest.approx((peaks / 7.5).numpy(), rel=torch.finfo(stored).eps)
    assert torch.equal(steps.to(stored).float(), steps)
    wide = steps.repeat_interleave(group or 32, dim=1)
    rounded = rounding(weight)
    codes = (rounded / wide).round()
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert torch.equal((codes * wide).to(stored).float(), rounded)
    inside = (weight / wide).abs() <= 7
    slack = 0.5 + 8 * torch.finfo(stored).eps
    assert bool(((rounded - weight).abs() / wide)[inside].max() <= slack)


def test_fixed_integers_move_nothing_that_is_on_the_grid():
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    rounding = IntegerWeight(3, 16, stored=torch.float32, steps_RG=torch.full((5, 2), 0.37))
    once = rounding(weight)
    assert torch.equal(rounding(once), once)


def nvfp4_slowly(values, largest_of_matrix):
    """NVFP4 in float64 from the format's definition: scales, steps and values for groups of 16."""
    second = largest_of_matrix / (6 * 448)
    grouped = values.reshape(*values.shape[:-1], -1, 16)
    wanted = np.abs(grouped).max(-1) / (6 * second)
    scales = E4M3[np.abs(wanted[..., None] - E4M3).argmin(-1)]
    steps = scales[..., None] * second
    grid = np.array([sign * value for value in E2M1 for sign in (-1, 1)])
    codes = np.abs((grouped / steps)[..., None] - grid).argmin(-1)
    return scales, (grid[codes] * steps).reshape(values.shape)


def test_nvfp4_is_what_the_format_says():
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).float()
    largest = float(weight.abs().max())
    rounding = Nvfp4Weight(torch.tensor([6 * 448 / largest]))
    scales, expected = nvfp4_slowly(weight.double().numpy(), largest)
    found = rounding.parameters_stored(weight)["weight_scale"].numpy()
    # A group's largest weight over 6 is rounded to bfloat16 on the way, which may tip a scale to its neighbour.
    assert np.isclose(found, scales, rtol=1e-6).mean() > 0.9
    np.testing.assert_allclose(found, scales, rtol=1 / 8)
    same = np.repeat(np.isclose(found, scales, rtol=1e-6), 16, axis=1)
    # Products are kept in bfloat16: half of 2^-7 of them.
    np.testing.assert_allclose(rounding(weight).numpy()[same], expected[same], rtol=2**-8)


def test_a_group_of_zeros_stays_zero():
    weight = torch.zeros(2, 32)
    weight[1] = 1.0
    for rounding in (Nvfp4Weight(torch.ones(1)), IntegerWeight(4, 16, stored=torch.float32)):
        assert not rounding(weight)[0].any()
        assert bool(rounding(weight).isfinite().all())
    learned = LearnedStep(weight, bits=4, group=16, stored=torch.float32)
    assert not learned(weight)[0].any()


def test_rounded_inputs_are_near_and_pass_gradients():
    inputs = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    by_token = int8_inputs(inputs)
    steps = inputs.detach().abs().amax(-1, keepdim=True) / 127.5
    assert bool(((by_token - inputs).abs() <= steps * 0.501).all())
    small = nvfp4_inputs(inputs, torch.tensor([6 * 448 / float(inputs.detach().abs().max())]))
    _, expected = nvfp4_slowly(inputs.detach().double().numpy(), float(inputs.detach().abs().max()))
    assert np.isclose(small.detach().numpy(), expected, rtol=1e-5).mean() > 0.97
    for rounded in (by_token, small):
        (slope,) = torch.autograd.grad(rounded.sum(), inputs)
        assert torch.equal(slope, torch.ones_like(slope))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_lsq_gradients_are_those_of_the_paper(bits):
    # arXiv 1902.08153, equations 3 and 5, one weight at a time.
    low, high, step = 2 ** (bits - 1), 2 ** (bits - 1) - 1, 0.3
    for steps in (-1e3, -low - 0.1, -low + 0.3, -0.6, -0.2, 0.0, 0.4, 0.7, high - 0.3, high + 0.1, 1e3):
        value = torch.tensor(steps * step, dtype=torch.float64, requires_grad=True)
        size = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        found = lsq(value, size, bits=bits)
        to_value, to_size = torch.autograd.grad(found, (value, size))
        inside = -low < steps < high
        assert float(found.detach()) == pytest.approx(min(max(round(steps), -low), high) * step)
        assert float(to_value) == pytest.approx(float(inside))
        assert float(to_size) == pytest.approx(round(steps) - steps if inside else (-low if steps < 0 else high))


def test_lsq_gradients_are_finite_differences_of_what_is_smooth():
    step, tiny = 0.3, 1e-6

    def smooth(steps: float, size: float, *, code: float) -> float:
        """Inside, rounding adds code - v / s to v / s; that much is held, as straight through means. Outside: a cut."""
        value = steps * step
        return (value / size + (code - steps)) * size if -4 < steps < 3 else code * size

    for steps, code in ((-5.2, -4), (-2.7, -3), (0.1, 0), (1.4, 1), (2.6, 3), (3.7, 3), (80.0, 3)):
        value = torch.tensor(steps * step, dtype=torch.float64)
        size = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        (found,) = torch.autograd.grad(lsq(value, size, bits=3), size)
        slope = (smooth(steps, step + tiny, code=code) - smooth(steps, step - tiny, code=code)) / (2 * tiny)
        assert float(found) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("group", [8, None])
def test_a_learned_step_starts_and_is_scaled_as_in_the_paper(group):
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    rounding = LearnedStep(weight, bits=3, group=group, stored=torch.float32)
    count, highest = group or 16, 3
    values = weight.reshape(3, -1, count)
    expected = 2 * values.abs().mean(-1) / math.sqrt(highest)
    assert rounding.parameters_stored(weight)["weight_scale"].numpy() == pytest.approx(expected.numpy(), rel=1e-6)
    rounding(weight).sum().backward()
    steps = expected[..., None]
    inside = (values / steps > -4) & (values / steps < 3)
    slopes = torch.where(inside, (values / steps).round() - values / steps, (values / steps).clamp(-4, 3))
    by_step = slopes.sum(-1) / math.sqrt(count * highest)
    # What is trained is the weights' root mean square m in s = m * (s0 / m0), so its gradient is s0 / m0 of that.
    by_size = by_step * expected / values.square().mean(-1).sqrt()
    assert rounding.size_RG1.grad[..., 0].numpy() == pytest.approx(by_size.numpy(), rel=1e-4, abs=1e-6)


def test_steps_are_used_as_they_will_be_stored_and_still_learned():
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    rounding = LearnedStep(weight, bits=4, group=8, stored=torch.bfloat16)
    steps = rounding.steps()
    assert torch.equal(steps, steps.to(torch.bfloat16).float())
    rounding(weight).square().sum().backward()
    assert bool((rounding.size_RG1.grad != 0).all())


def test_a_layer_computes_with_rounded_weights_and_inputs_and_settles_on_them():
    layer = torch.nn.Sequential(torch.nn.Linear(16, 4, bias=False))
    before = layer[0].weight.detach().clone()
    seen = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0))
    rounding = IntegerWeight(3, 16, stored=torch.float32, steps_RG=torch.full((4, 1), 0.05))
    round_weights(layer, {"0": rounding})
    round_inputs(layer, {"0": int8_inputs})
    expected = int8_inputs(seen) @ rounding(before).T
    torch.testing.assert_close(layer(seen), expected)
    assert torch.equal(layer[0].parametrizations.weight.original, before)
    handed = settle_weights(layer, ["0"])
    assert torch.equal(handed["0"]["weight_scale"], torch.full((4, 1), 0.05))
    assert torch.equal(layer[0].weight, rounding(before))
    torch.testing.assert_close(layer(seen), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("reloaded_here")
def test_nvfp4_is_bit_for_bit_what_llm_compressor_packs(loud, tmp_path):
    pytest.importorskip("llmcompressor")
    from harness.stages.quantize.fp4 import QuantizeFp4
    from tests.stages.quantize.packed_world import decode_bytes, e2m1, pack, tensors

    out, _ = pack(QuantizeFp4(), loud, tmp_path)
    table = [e4m3(byte) for byte in range(256)]
    for module in (f"model.layers.{n}.{part}" for n in (0, 1) for part in ("self_attn.k_proj", "mlp.down_proj")):
        stored = tensors(out.path, module)
        weight = tensors(loud.path, module)["weight"].to(torch.bfloat16).float()
        scales = decode_bytes(stored["weight_scale"], table).astype(np.float32)
        steps = np.repeat(scales / stored["weight_global_scale"].numpy(), 16, axis=1)
        decoded = torch.from_numpy(e2m1(stored["weight_packed"].numpy()).astype(np.float32) * steps).to(torch.bfloat16)
        following = Nvfp4Weight(stored["weight_global_scale"])
        fixed = Nvfp4Weight(stored["weight_global_scale"], scales_RG=torch.from_numpy(scales))
        assert torch.equal(following.parameters_stored(weight)["weight_scale"], torch.from_numpy(scales))
        assert torch.equal(following(weight), decoded.float())
        assert torch.equal(fixed(weight), decoded.float())
