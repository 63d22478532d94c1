"""Conversion loses nothing, keeps the tokenizer, and says what it assumed."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harness.errors import Unsupported
from harness.stages.convert import llama_cpp_driver
from harness.stages.convert.gguf import ConvertGguf, stored_type
from tests.building import convert
from tests.tiny import TEXT, tiny_llama, tiny_tokenizer

HEADS, KEY_HEADS = 4, 2  # tiny_llama with hidden 64: heads 16 wide, two query heads share a key head


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("model"), tie=False)


@pytest.fixture(scope="module")
def converted(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    return convert(model, tmp_path_factory.mktemp("gguf") / "out")


def to_rotary_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Row 2i of a head is row i of its first half and row 2i+1 is row i of its second half, written as a loop.

    Hugging Face rotates element i of a head with element i + half, llama.cpp rotates neighbours.
    """
    size = len(weight) // heads
    rows = []
    for head in range(heads):
        for i in range(size // 2):
            rows += [weight[head * size + i], weight[head * size + size // 2 + i]]
    return np.stack(rows)


def test_every_tensor_of_an_f32_checkpoint_arrives_bit_for_bit(model: Path, converted: tuple[Path, object]) -> None:
    import gguf

    kept = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(converted[0]).tensors}
    expected = {}
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, weight in load_file(model / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module in whole:
            expected[f"{whole[module]}.weight"] = weight
            continue
        _, _, layer, rest = module.split(".", 3)
        permuted = {"self_attn.q_proj": HEADS, "self_attn.k_proj": KEY_HEADS}
        value = to_rotary_pairs(weight, permuted[rest]) if rest in permuted else weight
        expected[f"blk.{layer}.{names[rest]}.weight"] = value
    assert kept.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)


def test_a_tokenizer_trained_here_gives_the_same_tokens_in_llama_cpp_and_the_choice_is_said(
    model: Path, converted: tuple[Path, object]
) -> None:
    import llama_cpp
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    with_special = TEXT + "<|turn|>user\n3 33 333  x\n\n  don't<|eos|>"
    engine = llama_cpp.Llama(str(converted[0]), vocab_only=True, verbose=False)
    try:
        assert engine.tokenize(with_special.encode(), add_bos=False, special=True) == tokenizer.encode(with_special)
        assert (engine.token_bos(), engine.token_eos()) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert engine.metadata["tokenizer.chat_template"] == tokenizer.chat_template
    finally:
        engine.close()
    report = converted[1]
    assert report.notes["pre_tokenizer"] == "gpt-2"
    assert any("'gpt-2'" in label for label in report.labels)


def test_equal_weights_in_another_folder_give_equal_bytes(
    model: Path, converted: tuple[Path, object], tmp_path: Path
) -> None:
    other = tmp_path / "another-name"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert convert(other, tmp_path / "out")[0].read_bytes() == converted[0].read_bytes()


def test_auto_keeps_the_type_of_the_checkpoint_and_stores_vectors_in_f32(model: Path, tmp_path: Path) -> None:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(tmp_path / "hf")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "hf")
    file, report = convert(tmp_path / "hf", tmp_path / "out")
    types = {(len(t.shape) > 1, t.tensor_type.name) for t in gguf.GGUFReader(file).tensors}
    assert types == {(True, "BF16"), (False, "F32")}
    assert report.notes["outtype"] == "bf16"


def test_a_checkpoint_of_mixed_types_is_stored_in_f32_so_that_nothing_is_lost(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 2), np.float32), "b": np.ones(2, np.float16)}, tmp_path / "m.safetensors")
    assert stored_type(tmp_path) == "f32"
    save_file({"a": np.ones((2, 2), np.float16), "b": np.ones((2, 2), np.float32)}, tmp_path / "m.safetensors")
    assert stored_type(tmp_path) == "f32"
    save_file({"a": np.ones((2, 2), np.float16), "b": np.ones(2, np.float32)}, tmp_path / "m.safetensors")
    assert stored_type(tmp_path) == "f16"


def test_an_unknown_architecture_is_unsupported_with_the_converters_own_words(model: Path, tmp_path: Path) -> None:
    for file in model.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NobodyForCausalLM"]}))
    with pytest.raises(Unsupported, match="NobodyForCausalLM is not supported"):
        convert(tmp_path, tmp_path.with_name("never"))


def test_a_pre_tokenizer_with_rules_of_its_own_is_not_passed_off_as_a_known_one() -> None:
    from tokenizers import pre_tokenizers

    gpt2 = tiny_tokenizer().backend_tokenizer.pre_tokenizer
    assert llama_cpp_driver.equal_rules(gpt2) == "gpt-2"
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    assert llama_cpp_driver.equal_rules(digits) == "smollm"
    in_threes = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), gpt2])
    assert llama_cpp_driver.equal_rules(in_threes) is None
    assert llama_cpp_driver.equal_rules(pre_tokenizers.Whitespace()) is None
    assert llama_cpp_driver.equal_rules(None) is None


def test_a_wrong_outtype_is_refused() -> None:
    with pytest.raises(ValueError, match="outtype must be one of auto, f32, f16, bf16"):
        ConvertGguf(outtype="q8_0")  # type: ignore[arg-type]
