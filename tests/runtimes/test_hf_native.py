"""Folders that transformers cannot read: what every reader asks of the files, shown on a model that nobody packed."""

import json

import pytest

from harness.errors import CorruptArtifact
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("plain"))


def opened(path, change=lambda tensors: None, *, dtype="auto", packed=()):
    """The model built empty and filled from the folder's tensors after a change."""
    from harness.runtimes._hf_native_model import Folder, build_empty, fill, read_tensors

    asked = Folder(path, {"quant_method": "nobody's"}, dtype, "sdpa")
    model, tensors = build_empty(asked), read_tensors(path)
    change(tensors)
    fill(model, tensors, packed=packed)
    return model.eval()


def logits(model):
    tokens = torch.randint(384, (2, 16), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return model(tokens).logits


def test_a_filled_model_is_the_one_that_transformers_reads(folder):
    from transformers import AutoModelForCausalLM

    read = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()
    model = opened(folder)
    assert torch.equal(logits(model), logits(read))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.to_dict()["quantization_config"] == {"quant_method": "nobody's"}
    assert model.generation_config.eos_token_id == read.generation_config.eos_token_id


def test_the_type_that_is_asked_for_counts(folder):
    assert opened(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_a_missing_a_superfluous_and_a_misshapen_tensor_are_refused(folder):
    norm = "model.norm.weight"
    for change, said in (
        (lambda tensors: tensors.pop(norm), f"missing: {norm}"),
        (lambda tensors: tensors.update({"model.more": torch.ones(1)}), "unexpected: model.more"),
        (lambda tensors: tensors.update({norm: torch.ones(63)}), f"another shape: {norm}"),
    ):
        with pytest.raises(CorruptArtifact, match=said):
            opened(folder, change)


def test_tensors_of_a_packed_module_that_its_reader_left_are_superfluous(folder):
    with pytest.raises(CorruptArtifact, match=r"unexpected: model\.norm\.weight"):
        opened(folder, packed={"model.norm"})


def test_tensors_are_taken_out_of_the_mapped_file(folder):
    from harness.runtimes._hf_native_model import read_tensors, take

    tensors = read_tensors(folder)
    before = tensors["model.norm.weight"]
    taken = take(tensors, "model.norm")
    assert torch.equal(taken["weight"], before)
    assert taken["weight"].data_ptr() != before.data_ptr()
    assert taken["weight"].data_ptr() % 64 == 0
    assert "model.norm.weight" not in tensors


def test_a_tensor_that_lies_in_two_files_is_refused(tmp_path):
    from safetensors.torch import save_file

    from harness.runtimes._hf_native_model import read_tensors

    for name in ("a", "b"):
        save_file({"same": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CorruptArtifact, match="same is stored twice"):
        read_tensors(tmp_path)


def test_folders_of_other_methods_are_left_to_transformers(folder, tmp_path):
    from harness.runtimes._hf_native import read_native

    assert read_native(folder, dtype="auto", attention="sdpa") is None
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))
    assert read_native(tmp_path, dtype="auto", attention="sdpa") is None
    assert read_native(tmp_path / "nowhere", dtype="auto", attention="sdpa") is None


@pytest.mark.parametrize("method", ["hqq", "quanto"])
def test_a_folder_that_is_not_complete_is_an_error_of_its_own(method, folder, tmp_path):
    from harness.runtimes._hf_native import read_native

    config = json.loads((folder / "config.json").read_text())
    said = {"quant_method": method, "layers": {"model.layers.0.self_attn.q_proj": {}}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    with pytest.raises(CorruptArtifact):
        read_native(tmp_path, dtype="auto", attention="sdpa")
