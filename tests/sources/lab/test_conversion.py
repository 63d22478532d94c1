"""A lab model converts to GGUF: llama.cpp cuts text as transformers does and computes the same distribution."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from harness.runtimes.llama_cpp import LlamaCpp
from harness.runtimes.transformers import Transformers
from harness.sources.lab.pretraining import new_model
from harness.sources.lab.sizes import SIZES
from harness.sources.lab.tokenizer import train_tokenizer
from harness.spec import Hardware
from tests.building import artifact, convert
from tests.sources.lab.plain_english import plain_english

TEXTS = [
    "27+15=42\n31-8=23\n",
    "lookup: sun=47 box=12; box=12\n\n  two  spaces, 3.14159 and 0x1F\t\r\n",
    "user: what do 3 cups cost?\ncall: price(cup)\nresult: 7\n",
    "naïve Ελληνικά нещо 你好 한국어 عربي ½ ² Ⅻ ٣ 🚀",
    "don't we'll I'VE x2y33z !!!???<|endoftext|>next",
]


def test_llama_cpp_reads_a_lab_model_as_transformers_does(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(plain_english(100_000)["train"])
    folder = tmp_path / "hf"
    new_model(SIZES["smoke-teacher"], end_token=tokenizer.eos_token_id, seed=0, hardware=Hardware()).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    file, report = convert(folder, tmp_path / "gguf")
    assert report.notes["pre_tokenizer"] == "smollm"
    with ExitStack() as stack:
        ours = stack.enter_context(Transformers(dtype="float32").open(artifact(folder, "hf"), hardware=Hardware()))
        gguf = artifact(file.parent, "gguf")
        theirs = stack.enter_context(LlamaCpp(kv="f32", context=512).open(gguf, hardware=Hardware()))
        assert theirs.prefix_token == ours.prefix_token == tokenizer.eos_token_id
        assert theirs.end_tokens == ours.end_tokens
        for text in TEXTS:
            tokens = ours.encode(text)
            assert theirs.encode(text) == tokens == tokenizer.encode(text)
            assert theirs.decode(tokens) == ours.decode(tokens)
            expected, found = (log_softmax(s.logits(tokens).astype(np.float64), axis=1) for s in (ours, theirs))
            # Three layers and logits of the size of 1: a hundred float32 roundings of 6e-8 each.
            np.testing.assert_allclose(found, expected, atol=3e-5, rtol=0)
            assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9
