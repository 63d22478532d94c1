"""NVFP4 and MXFP4 as stored, against decoders and scales from the formats' definitions."""

import numpy as np
import pytest

from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.fp4 import QuantizeFp4
from harness.testing import check_plugin
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS
from tests.stages.quantize.packed_world import decode_bytes, e2m1, e4m3, pack, reopened, tensors

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
pytestmark = pytest.mark.usefixtures("reloaded_here")
E4M3 = [e4m3(byte) for byte in range(256)]
MODULES = [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("self_attn.k_proj", "mlp.down_proj")]
STAGES = {
    "nvfp4": QuantizeFp4(),
    "nvfp4 both": QuantizeFp4(activations=True, tokens=TOKENS, sequence=SEQUENCE),
    "mxfp4": QuantizeFp4(kind="mxfp4"),
    "nvfp4 gptq": QuantizeFp4(rounding="gptq", tokens=TOKENS, sequence=SEQUENCE),
}


@pytest.fixture(scope="module")
def packed(loud, corpus, tmp_path_factory, reloaded_here) -> dict[str, tuple[Artifact, BuildReport]]:
    return {
        name: pack(stage, loud, tmp_path_factory.mktemp(name.replace(" ", "-")), corpus=corpus)
        for name, stage in STAGES.items()
    }


def scales(kind: str, stored: dict) -> np.ndarray:
    """The scale of every group (R, G) in float32."""
    if kind == "mxfp4":
        return (2.0 ** (stored["weight_scale"].numpy().astype(int) - 127)).astype(np.float32)
    small = decode_bytes(stored["weight_scale"], E4M3).astype(np.float32)
    return small / stored["weight_global_scale"].numpy()


def decoded(kind: str, folder, module: str):
    """The weights (R, C) in bfloat16 that the codes stand for."""
    stored = tensors(folder, module)
    width = 32 if kind == "mxfp4" else 16
    values = e2m1(stored["weight_packed"].numpy()).astype(np.float32)
    return torch.from_numpy(values * np.repeat(scales(kind, stored), width, axis=1)).to(torch.bfloat16)


def test_fp4_is_a_proper_plugin():
    check_plugin("stages", QuantizeFp4)


@pytest.mark.parametrize("name", STAGES)
def test_the_runtime_computes_with_exactly_what_the_bits_stand_for(name, packed):
    folder = packed[name][0].path
    model = reopened(folder)
    for module in MODULES:
        assert torch.equal(model.get_submodule(module).weight, decoded(name.split()[0], folder, module))


def test_nvfp4_scales_are_those_of_the_definition(packed, loud):
    for module in MODULES:
        stored = tensors(packed["nvfp4"][0].path, module)
        weight = tensors(loud.path, module)["weight"].to(torch.bfloat16).float().numpy()
        # s2 = max|w| / (6 * 448), of all layers that kernels compute as one; the library stores 1 / s2.
        together = [module.replace("k_proj", f"{part}_proj") for part in "qkv"] if "k_proj" in module else [module]
        largest = max(float(tensors(loud.path, name)["weight"].abs().max()) for name in together)
        assert stored["weight_global_scale"].item() == pytest.approx(6 * 448 / largest, rel=1e-2)
        peaks = np.abs(weight.reshape(len(weight), -1, 16)).max(axis=2)
        # E4M3 has 3 bits of fraction: a scale is within 1/16 of what it should be; bfloat16 on the way adds 1/256.
        np.testing.assert_allclose(scales("nvfp4", stored), peaks / 6, rtol=1 / 16 + 1 / 128)


def test_mxfp4_scales_are_powers_of_two_that_let_the_largest_weight_fit(packed, loud):
    for module in MODULES:
        weight = tensors(loud.path, module)["weight"].to(torch.bfloat16).float().numpy()
        peaks = np.abs(weight.reshape(len(weight), -1, 32)).max(axis=2)
        floor = 2.0 ** (np.floor(np.log2(peaks)) - 2)
        # The standard's exponent, or one more where the largest weight would be 7 of its steps or more.
        expected = np.where(peaks / floor >= 7, 2 * floor, floor)
        np.testing.assert_array_equal(scales("mxfp4", tensors(packed["mxfp4"][0].path, module)), expected)


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_every_weight_goes_to_the_nearest_value_of_its_scale(kind, packed, loud):
    for module in MODULES:
        stored = tensors(packed[kind][0].path, module)
        weight = tensors(loud.path, module)["weight"].to(torch.bfloat16).double().numpy()
        steps = np.repeat(scales(kind, stored), 32 if kind == "mxfp4" else 16, axis=1).astype(float)
        grid = np.array([sign * value for value in (0, 0.5, 1, 1.5, 2, 3, 4, 6) for sign in (-1, 1)])
        best = np.abs(weight[..., None] / steps[..., None] - grid).min(axis=-1)
        found = np.abs(weight / steps - e2m1(stored["weight_packed"].numpy()))
        # The library divides in bfloat16, 2^-8 a rounding of values up to 6, so a near tie may go the other way.
        assert (found <= best + 0.05).all()
        assert np.isclose(found, best, atol=1e-9).mean() > 0.98


def test_nvfp4_is_nearer_to_the_weights_than_mxfp4(packed, loud):
    errors = []
    for kind in ("nvfp4", "mxfp4"):
        moved = [decoded(kind, packed[kind][0].path, m).double() - tensors(loud.path, m)["weight"] for m in MODULES]
        errors.append(sum(float(one.square().sum()) for one in moved))
    assert errors[0] < errors[1]


def test_bits_are_those_of_the_formats(packed):
    # 4 bits and 8 for 16 weights; 4 bits and 8 for 32 weights; a float32 for a whole matrix on top for nvfp4.
    for name, bits in (("nvfp4", 4.5), ("mxfp4", 4.25)):
        proof = packed[name][1].notes["coverage"]
        assert proof["bits_per_quantized_weight"] == pytest.approx(bits, abs=0.01)
    assert packed["nvfp4 both"][1].notes["coverage"]["activations"] == ["4-bit float per tensor_group, local"]
    assert packed["nvfp4"][1].labels == ["rounded from float32 to bfloat16 before quantizing"]


def test_rounding_activations_changes_what_is_computed(packed):
    tokens = torch.arange(3, 40)[None]
    weights_alone, both = (reopened(packed[name][0].path)(tokens).logits for name in ("nvfp4", "nvfp4 both"))
    assert not torch.equal(weights_alone, both)


def test_only_what_looks_at_activations_asks_for_text():
    assert [bool(QuantizeFp4(**args).needs) for args in ({}, {"activations": True}, {"rounding": "gptq"})] == [
        False,
        True,
        True,
    ]
    assert not QuantizeFp4(kind="mxfp4", activations=True).needs


@pytest.mark.parametrize(
    "args", [{"kind": "fp4"}, {"rounding": "awq"}, {"overrides": {"down_proj": {"kind": "mxfp4"}}}]
)
def test_arguments_that_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeFp4(**args)
