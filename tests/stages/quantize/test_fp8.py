"""FP8 as stored, against a decoder of E4M3 and scales from the kinds' definitions."""

import numpy as np
import pytest

from harness.errors import Unsupported
from harness.interfaces import Artifact, BuildReport
from harness.stages.quantize.fp8 import QuantizeFp8
from harness.testing import check_plugin
from tests.stages.prune.sparse_world import SEQUENCE, TOKENS
from tests.stages.quantize.packed_world import decode_bytes, e4m3, pack, reopened, tensors

torch = pytest.importorskip("torch")
pytest.importorskip("llmcompressor")
pytestmark = pytest.mark.usefixtures("reloaded_here")
E4M3 = [e4m3(byte) for byte in range(256)]
KINDS = ("dynamic", "static", "block", "mx")
DOWN, KEY = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj"


@pytest.fixture(scope="module")
def packed(wide, corpus, tmp_path_factory, reloaded_here) -> dict[str, tuple[Artifact, BuildReport]]:
    return {
        kind: pack(
            QuantizeFp8(kind=kind, tokens=TOKENS, sequence=SEQUENCE), wide, tmp_path_factory.mktemp(kind), corpus=corpus
        )
        for kind in KINDS
    }


def steps(kind: str, stored: dict) -> np.ndarray:
    """The scale of every weight (R, C)."""
    rows, columns = stored["weight"].shape
    scale = stored["weight_scale"]
    if kind == "mx":
        return np.repeat(2.0 ** (scale.numpy().astype(int) - 127), 32, axis=1)
    found = scale.double().numpy().reshape(-1, 1) if kind in ("dynamic", "static") else scale.double().numpy()
    if kind == "block":
        return np.repeat(np.repeat(found, 128, axis=0), 128, axis=1)[:rows, :columns]
    return np.broadcast_to(found, (rows, columns))


def test_fp8_is_a_proper_plugin():
    check_plugin("stages", QuantizeFp8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", [DOWN, KEY])
def test_the_runtime_computes_with_what_the_bits_stand_for(kind, module, packed, wide):
    folder = packed[kind][0].path
    stored, found = tensors(folder, module), reopened(folder).get_submodule(module).weight
    expected = decode_bytes(stored["weight"], E4M3) * steps(kind, stored)
    # One rounding of a product to the model's type: float32, or bfloat16 with mx.
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=2**-8 if kind == "mx" else 1e-6)
    # 3 bits of fraction: a weight moves by at most 1/16 of itself, or by half the smallest step of its scale.
    before = tensors(wide.path, module)["weight"].double().numpy()
    assert (np.abs(expected - before) <= np.abs(before) / 15 + 2.0**-10 * steps(kind, stored)).all()


@pytest.mark.parametrize(
    ("kind", "shared", "shape"),
    [("dynamic", "whole row", (128, 1)), ("static", "whole matrix", (1,)), ("block", "block", (1, 4))],
)
def test_scales_are_the_largest_weight_over_448_of_what_shares_them(kind, shared, shape, packed, wide):
    out, report = packed[kind]
    stored, before = tensors(out.path, DOWN), tensors(wide.path, DOWN)["weight"].double().numpy()
    assert tuple(stored["weight_scale"].shape) == shape
    peaks = {
        "dynamic": np.abs(before).max(axis=1, keepdims=True),
        "static": np.abs(before).max().reshape(1),
        "block": np.abs(before.reshape(1, 128, 4, 128)).max(axis=(1, 3)),
    }[kind]
    np.testing.assert_allclose(stored["weight_scale"].double().numpy(), peaks / 448, rtol=1e-6)
    assert f"float-quantized 8 bits, {shared}" in report.notes["coverage"]["layers"]


def test_only_static_reads_text_and_stores_a_scale_for_inputs(packed):
    assert [bool(QuantizeFp8(kind=kind).needs) for kind in KINDS] == [False, True, False, False]
    assert ["input_scale" in tensors(packed[kind][0].path, DOWN) for kind in KINDS] == [False, True, False, False]


def test_blocks_that_do_not_divide_the_columns_are_refused(loud, tmp_path):
    with pytest.raises(Unsupported, match="groups of 128 do not divide"):
        pack(QuantizeFp8(kind="block"), loud, tmp_path)


@pytest.mark.parametrize("args", [{"kind": "e5m2"}, {"overrides": {"down_proj": {"kind": "mx"}}}])
def test_arguments_that_are_out_of_range_are_refused(args):
    with pytest.raises(ValueError, match="allowed"):
        QuantizeFp8(**args)
