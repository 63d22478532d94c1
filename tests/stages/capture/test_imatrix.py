"""Mean squares of layer inputs, against a forward pass written out in numpy."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.errors import ModelError, SourceError
from harness.interfaces import BuildReport
from harness.sources.corpus import write_documents
from harness.stages.capture.imatrix import CaptureImatrix
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama

HEADS, KEY_HEADS, SIZE, THETA, EPSILON = 4, 2, 16, 10000.0, 1e-6  # tiny_llama's, and the defaults of LlamaConfig


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_documents(folder, train=[TEXT], heldout=["unused"])
    return folder


def captured(model: Path, corpus: Path, out: Path, *, tokens: int = 96) -> tuple[dict[str, np.ndarray], BuildReport]:
    out.mkdir()
    used = context(out.with_name(out.name + "-scratch"), corpus=artifact(corpus, "text"))
    stage = CaptureImatrix(corpus="docstrings:default", tokens=tokens, sequence=48)
    stage.apply(artifact(model, "hf"), out, context=used)
    with np.load(out / "imatrix.npz", allow_pickle=False) as stored:
        return dict(stored), used.report


def rms(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * weight


def rotate(x_THD: np.ndarray) -> np.ndarray:
    half = SIZE // 2
    angle_TD = np.arange(len(x_THD))[:, None] * THETA ** (-np.arange(half) / half)
    cos, sin = np.cos(angle_TD)[:, None], np.sin(angle_TD)[:, None]
    a, b = x_THD[..., :half], x_THD[..., half:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def inputs_of_layers(w: dict[str, np.ndarray], ids: list[int], layers: int) -> dict[str, np.ndarray]:
    """Llama's forward pass on one sequence in float64; gives the input (T, C) of every linear layer."""
    seen: dict[str, np.ndarray] = {}
    h = w["model.embed_tokens.weight"][ids]
    for layer in range(layers):
        p = f"model.layers.{layer}."

        def linear(x: np.ndarray, name: str, p: str = p) -> np.ndarray:
            seen[p + name] = x
            return x @ w[f"{p}{name}.weight"].T

        x = rms(h, w[p + "input_layernorm.weight"])
        q = rotate(linear(x, "self_attn.q_proj").reshape(len(ids), HEADS, SIZE))
        k = rotate(linear(x, "self_attn.k_proj").reshape(len(ids), KEY_HEADS, SIZE))
        v = linear(x, "self_attn.v_proj").reshape(len(ids), KEY_HEADS, SIZE)
        mixed = np.zeros((len(ids), HEADS, SIZE))
        for head in range(HEADS):
            key_head = head * KEY_HEADS // HEADS
            for t in range(len(ids)):
                score = k[: t + 1, key_head] @ q[t, head] / np.sqrt(SIZE)
                share = np.exp(score - score.max())
                mixed[t, head] = share / share.sum() @ v[: t + 1, key_head]
        h = h + linear(mixed.reshape(len(ids), -1), "self_attn.o_proj")
        x = rms(h, w[p + "post_attention_layernorm.weight"])
        gate = linear(x, "mlp.gate_proj")
        h = h + linear(gate / (1 + np.exp(-gate)) * linear(x, "mlp.up_proj"), "mlp.down_proj")
    return seen


def test_every_linear_layers_mean_squares_are_those_of_a_forward_pass_written_out(
    model: Path, corpus: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    found, report = captured(model, corpus, tmp_path / "out")
    weights = {name: value.astype(np.float64) for name, value in load_file(model / "model.safetensors").items()}
    ids = AutoTokenizer.from_pretrained(model).encode(TEXT)[:96]
    blocks = [inputs_of_layers(weights, ids[start : start + 48], layers=2) for start in (0, 48)]
    expected = {name: np.concatenate([b[name] for b in blocks]) ** 2 for name in blocks[0]}
    assert found.pop("tokens") == 96
    assert found.keys() == expected.keys()
    for name, squares_TC in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], squares_TC.mean(axis=0), rtol=2e-4, err_msg=name)
    assert report.tokens == 96


def test_too_little_text_is_an_error_and_not_repeated(model: Path, corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="tokens"):
        captured(model, corpus, tmp_path / "out", tokens=48 * 1000)


def test_a_model_whose_activations_are_not_finite_is_refused(model: Path, corpus: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    broken = tmp_path / "broken"
    broken.mkdir()
    for file in model.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0] = np.inf
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="not finite"):
        captured(broken, corpus, tmp_path / "out")


@pytest.mark.parametrize("args", [{"tokens": 100, "sequence": 48}, {"sequence": 1}, {"tokens": 0}])
def test_counts_that_do_not_fit_are_refused(args: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"sequence"):
        CaptureImatrix(corpus="docstrings:default", **args)


def test_the_corpus_is_a_need() -> None:
    (need,) = CaptureImatrix(corpus="docstrings:default").needs
    assert (need.name, need.source) == ("corpus", "docstrings:default")
