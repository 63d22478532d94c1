"""Turning a GGUF file back into a Hugging Face directory, and saying what that cost.

A GGUF file keeps the weights, the vocabulary, the chat template and the special tokens, but names its pre-tokenizer
(how text is cut before merges apply) by a word that only llama.cpp knows. A reader that ignores the word gives other
tokens around digits and spaces. So the tokenizer is rebuilt here for the words whose rules we know, and labelled
otherwise. Weights stored in blocks are decoded: the result is an ordinary model with weights on those blocks' grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness.errors import SourceError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FLOATS: Final = frozenset({"F64", "F32", "F16", "BF16"})
_CONTROL, _USER_DEFINED = 3, 4  # kinds of token in a GGUF: special, and added but plain


def metadata(file: Path) -> dict[str, Any]:
    """Gives the key-value part of a GGUF file as plain Python values."""
    import gguf

    return {key: field.contents() for key, field in gguf.GGUFReader(file).fields.items()}


def weights_by_type(file: Path) -> Counter[str]:
    """Counts weights by the type they are stored in, read from the tensors and not from the file's label."""
    import gguf

    counts: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(file).tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return counts


def quantization_label(file: Path) -> str | None:
    """Gives the sentence that reports repeat for weights decoded from a quantized file, or None for a float file."""
    counts = weights_by_type(file)
    packed = {name: count for name, count in counts.items() if name not in _FLOATS}
    if not packed:
        return None
    total = counts.total()
    parts = [f"{count / total:.0%} {name}" for name, count in sorted(packed.items(), key=lambda item: -item[1])]
    return (
        f"dequantized from {' + '.join(parts)}: "
        "quantizing it again to a similar grid is nearly free and flatters quantization"
    )


def tokenizer(facts: dict[str, Any]) -> PreTrainedTokenizerBase | None:
    """Builds the tokenizer that a GGUF's metadata describes; None where its rules are not known here.

    Known are byte-level BPE vocabularies (`gpt2`) with the pre-tokenizers `gpt-2` and `smollm`.
    """
    cut = _pre_tokenizer(facts.get("tokenizer.ggml.pre", ""))
    if facts.get("tokenizer.ggml.model") != "gpt2" or cut is None:
        return None
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    tokens: Sequence[str] = facts["tokenizer.ggml.tokens"]
    kinds: Sequence[int] = facts["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer, backend.decoder = cut, decoders.ByteLevel()
    added = [
        AddedToken(token, special=kind == _CONTROL, normalized=False)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    backend.add_tokens(added)
    special = {name: tokens[index] for name, index in special_ids(facts).items()}
    length = facts[f"{facts['general.architecture']}.context_length"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=facts.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        model_max_length=int(length),
        **special,
    )


def special_ids(facts: dict[str, Any]) -> dict[str, int]:
    """Gives the special tokens a GGUF names, by the names that transformers uses (`eos_token`, ...)."""
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    keys = {f"{short}_token": f"tokenizer.ggml.{long}_token_id" for short, long in names.items()}
    return {name: int(facts[key]) for name, key in keys.items() if key in facts}


def _pre_tokenizer(word: str) -> Any:
    """Gives the splitting rules behind llama.cpp's word, or None.

    Source: `llama_vocab` of llama.cpp, where `smollm` is one digit at a time before the rules of GPT-2.
    """
    from tokenizers import pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if word == "gpt-2":
        return gpt2
    if word == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    return None


def only_gguf(folder: Path) -> Path:
    """Gives the one `*.gguf` below a folder; raises SourceError when there are none or several."""
    found = sorted(folder.rglob("*.gguf"))
    if len(found) != 1:
        raise SourceError(
            "expected exactly one GGUF file", found=[path.name for path in found], remedy="name the one that is meant"
        )
    return found[0]
