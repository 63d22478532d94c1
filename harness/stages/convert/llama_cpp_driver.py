"""Runs llama.cpp's own converter in a process of its own, with two additions that need no edited file.

The converter recognises a BPE pre-tokenizer (how text is cut before merges apply) by the hash of one encoded sentence,
which depends on the vocabulary too, so a tokenizer trained anywhere else is unknown to it however ordinary its rules
are. Here an unknown one is compared, cut by cut on a probe text, with rules that llama.cpp implements; where all cuts
are the same the name of those rules is written, and said. Where none are, the converter's refusal stands. And a model
without a `tokenizer.model` does not need the package that reads one.

Started by `harness.stages.convert.gguf` as `python -P llama_cpp_driver.py TOOL FINDINGS ARGUMENT...`: the folder with
the converter, a JSON file for what was found, and the converter's own arguments. Nothing of the harness is imported.
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

PROBE: Final = (
    "In 1492, 3 of 12 ships' crews hadn't  slept;   they'll\tsay \"we've 3.14159 reasons\"...\n\n  x =  7\n\ty=-0x1F"
    "\r\nCamelCase snake_case don'T I'M ===>> !!!?? (a)[b]{c} naïve Über straße Ελληνικά нещо 你好\uff0c世界 "
    "かな 한국어 عربي हिन्दी ½ ² Ⅻ ٣ \uff14 🚀🚀 \u200d \u00a0 end   "
)


def main() -> None:
    """Runs the converter with the additions."""
    tool, findings, *arguments = sys.argv[1:]
    # The converter needs the gguf package of its own commit, not the one that may be installed.
    sys.path[:0] = [str(Path(tool) / "gguf-py"), tool]
    text_model = importlib.import_module("conversion.base").TextModel
    text_model.get_vocab_base_pre = recognising(text_model.get_vocab_base_pre, findings=Path(findings))
    text_model._create_vocab_sentencepiece = looking_first(text_model._create_vocab_sentencepiece)
    script = str(Path(tool) / "convert_hf_to_gguf.py")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def recognising(original: Callable[[Any, Any], str], *, findings: Path) -> Callable[[Any, Any], str]:
    """Wraps the converter's method: what it does not know is compared with known rules, and the choice written down."""

    def get_vocab_base_pre(model: Any, tokenizer: Any) -> str:
        try:
            return original(model, tokenizer)
        except NotImplementedError:
            name = equal_rules(tokenizer.backend_tokenizer.pre_tokenizer)
            if name is None:
                raise
            findings.write_text(json.dumps({"pre_tokenizer": name}), encoding="utf-8")
            return name

    return get_vocab_base_pre


def looking_first(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wraps the converter's method so that it misses a missing `tokenizer.model` before it imports the reader."""

    def create_vocab(model: Any) -> Any:
        if not (model.dir_model / "tokenizer.model").is_file():
            raise FileNotFoundError(model.dir_model / "tokenizer.model")
        return original(model)

    return create_vocab


def equal_rules(pre_tokenizer: Any) -> str | None:
    """Gives llama.cpp's name for rules that cut the probe text exactly as this pre-tokenizer does, or None."""
    if pre_tokenizer is None:
        return None
    found = pre_tokenizer.pre_tokenize_str(PROBE)
    return next((name for name, rules in known_rules().items() if rules.pre_tokenize_str(PROBE) == found), None)


def known_rules() -> dict[str, Any]:
    """Gives rules under llama.cpp's names. Source: the expressions of `llm_tokenizer_bpe` in llama-vocab.cpp."""
    from tokenizers import pre_tokenizers

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {"gpt-2": gpt2, "smollm": pre_tokenizers.Sequence([digits, gpt2])}


if __name__ == "__main__":
    main()
