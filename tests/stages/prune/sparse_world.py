"""Models, a corpus and one call to run a sparse pruning stage on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from harness.interfaces import Artifact, BuildReport
from harness.sources.corpus import pack_blocks, read_documents, write_documents
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama

TOKENS, SEQUENCE = 256, 32
LOUD = (3, 17, 40)  # channels of the residual stream made thirty times as large before every projection


def load(folder: Path):
    import torch
    from transformers import AutoModelForCausalLM

    # llm-compressor calibrates with eager attention.
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def loud_llama(out: Path, *, seed: int = 0) -> Artifact:
    """A tiny Llama some of whose channels are far larger than the others, as in trained language models."""
    import torch

    tiny_llama(out, seed=seed)
    model = load(out)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight[list(LOUD)] *= 30
    model.save_pretrained(out)
    return artifact(out, "hf")


def small_corpus(folder: Path) -> Artifact:
    folder.mkdir(parents=True, exist_ok=True)
    write_documents(folder, train=TEXT.splitlines(), heldout=["never looked at"])
    return artifact(folder, "text")


def blocks_of(source: Artifact, corpus: Artifact) -> np.ndarray:
    """The blocks that a stage with the seed 0 reads, packed here by hand."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.path)
    documents = read_documents(corpus, "train")
    shape = (TOKENS // SEQUENCE, SEQUENCE)
    return pack_blocks(documents, encode=tokenizer.encode, shape=shape, separator=tokenizer.eos_token_id, seed=0)


def prune(stage, source: Artifact, tmp_path: Path, **needs: Artifact) -> tuple[Path, BuildReport]:
    out = tmp_path / "out"
    out.mkdir(parents=True)
    used = context(tmp_path / "scratch", **needs)
    stage.apply(source, out, context=used)
    return out, used.report
