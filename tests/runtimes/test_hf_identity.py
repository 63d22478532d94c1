"""What is counted when weights are packed: bytes as stored, parameters as meant."""

from pathlib import Path

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.runtimes._hf_identity import identify, plain_parts
from tests.tiny import tiny_llama


class Int8Linear(torch.nn.Module):
    """A linear layer that keeps its weight as integers with one scale a row."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__()
        scale = plain.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight_int8", (plain.weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)


def test_a_wrapped_tensor_is_counted_as_the_tensors_inside_it() -> None:
    inner = [torch.zeros(3), torch.ones(3)]
    assert [part.data_ptr() for part in plain_parts(TwoTensor(*inner))] == [part.data_ptr() for part in inner]


@pytest.mark.parametrize("tie", [True, False])
def test_packed_weights_count_as_the_weights_they_stand_for(tmp_path: Path, tie: bool) -> None:
    path = tiny_llama(tmp_path / "model", tie=tie)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    plain = identify(model, tokenizer, path)
    mlp = model.model.layers[0].mlp
    rows, columns = mlp.up_proj.weight.shape
    mlp.up_proj = Int8Linear(mlp.up_proj)
    packed = identify(model, tokenizer, path)
    assert packed.parameters == plain.parameters
    assert packed.tensor_types["int8"] == rows * columns
    # A byte instead of four for every weight, and a float32 scale a row on top.
    assert plain.weights_memory_bytes - packed.weights_memory_bytes == 3 * rows * columns - 4 * rows
    assert packed.kernel == f"{plain.kernel} Int8Linear"
    assert (len(plain.caveats), len(packed.caveats)) == (0, 1)
