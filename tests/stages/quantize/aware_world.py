"""A tiny model fitted for a moment, and a look at what training hands to the packer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from harness.interfaces import Artifact
from harness.sources.corpus import write_documents
from tests.building import artifact, context
from tests.stages.quantize.packed_world import decode_bytes, e2m1, e4m3, tensors, unpack_integers
from tests.tiny import TEXT, tiny_llama

FAST = {"tokens": 512, "batch": 2, "sequence": 32, "learning_rate": 1e-3, "heldout_tokens": 128}  # 8 steps
LONG = {"tokens": 8192, "batch": 8, "sequence": 32, "learning_rate": 1e-3, "heldout_tokens": 256}  # 32 steps
E4M3 = [e4m3(byte) for byte in range(256)]


def long_text(folder: Path) -> Artifact:
    """Numbered sentences, some 20,000 tokens; held out are the same ones under other numbers."""
    sentences = TEXT.splitlines()
    written = [
        [f"{n}. {sentence}" for n in numbers for sentence in sentences] for numbers in (range(60), range(60, 64))
    ]
    write_documents(folder, train=written[0], heldout=written[1])
    return artifact(folder, "text")


def fitted(folder: Path, corpus: Artifact) -> Artifact:
    """A tiny Llama that has read a corpus a few times, so that it has something to lose."""
    from harness.stages.distill.logits import DistillLogits

    start, out = tiny_llama(folder / "start"), folder / "fitted"
    out.mkdir()
    asked = {"tokens": 64 * 256, "batch": 8, "sequence": 32, "learning_rate": 3e-3, "heldout_tokens": 0}
    stage = DistillLogits(**asked, kd_weight=0, ce_weight=1)
    stage.apply(artifact(start, "hf"), out, context=context(folder / "scratch", corpus=corpus))
    return artifact(out, "hf")


@dataclass
class Trained:
    """The rounded weights and what was handed over with them, by layer."""

    weights: dict = field(default_factory=dict)
    parameters: dict = field(default_factory=dict)


@contextmanager
def watching_hands() -> Iterator[Trained]:
    """Notes, inside, the weights of the trained model in memory at the moment it is handed to be packed."""
    from harness.stages.quantize import handing

    seen, write = Trained(), handing.write_trained

    def note(model, out, packing, *, source, context):
        for layer in packing.assignment.layers:
            seen.weights[layer] = model.get_submodule(layer).weight.detach().clone()
        seen.parameters |= packing.parameters
        write(model, out, packing, source=source, context=context)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handing, "write_trained", note)
        yield seen


def decoded(folder: Path, module: str):
    """The weights (R, C) that the codes of a module stand for, in the type of its scales, by decoders of our own."""
    import torch

    stored = tensors(folder, module)
    if "weight_global_scale" in stored:
        scales = decode_bytes(stored["weight_scale"], E4M3).astype(np.float32) / stored["weight_global_scale"].numpy()
        values = e2m1(stored["weight_packed"].numpy()).astype(np.float32) * np.repeat(scales, 16, axis=1)
        return torch.from_numpy(values).to(torch.bfloat16)
    if "_weight_qdata" in stored:  # torchao: a byte for every code
        scales = stored["_weight_scale"]
        codes = stored["_weight_qdata"].double().unflatten(1, (scales.shape[1], -1))
        return (codes * scales.double()[..., None]).flatten(1).to(scales.dtype)
    if "weight" in stored:
        return (stored["weight"].double() * stored["weight_scale"].double()).to(stored["weight_scale"].dtype)
    return torch.from_numpy(unpack_integers(folder, module)).to(stored["weight_scale"].dtype)


def require_the_grid_of_training(out: Artifact, trained: Trained) -> None:
    """Asserts that the files hold, bit for bit, the weights and scales that the model was trained with."""
    import torch

    assert trained.weights
    for module, weight in trained.weights.items():
        assert torch.equal(decoded(out.path, module), weight), module
        stored = tensors(out.path, module)
        for name, value in trained.parameters[module].items():
            found = stored[name] if name in stored else stored[f"_{name}"]
            assert torch.equal(found.float().flatten(), value.float().flatten()), (module, name)


def divergence(reference: Path, folder: Path, corpus: Artifact) -> float:
    """KL(reference || folder) in nats a token on held-out text, from the two folders as the runtime opens them."""
    import torch
    from torch.distributions import Categorical, kl_divergence
    from transformers import AutoTokenizer

    from harness.sources.corpus import pack_blocks, read_documents
    from tests.stages.quantize.packed_world import reopened

    tokenizer = AutoTokenizer.from_pretrained(reference)
    tokens = pack_blocks(
        read_documents(corpus, "heldout"), encode=tokenizer.encode, shape=(8, 32), separator=tokenizer.eos_token_id
    )
    with torch.inference_mode():
        left, right = (
            Categorical(logits=reopened(path)(torch.from_numpy(tokens)).logits.double()) for path in (reference, folder)
        )
    return float(kl_divergence(left, right).mean())
