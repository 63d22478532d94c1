"""`capture.imatrix`: how strongly a model uses each input column of its linear layers.

A rounding error in a weight matters by the size of what it is multiplied with: the expected squared error of an output
is the sum over columns of (error in the weight)² × (mean square of the input). Quantizers that know these mean squares
spend their bits where the input is large. llama.cpp calls the table an importance matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

from harness.errors import ModelError
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need, pack_blocks, read_documents
from harness.spec import Need
from harness.stages import hf_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@final
@dataclass(frozen=True)
class CaptureImatrix:
    """Mean squares of the inputs of every linear layer, on the training split of a corpus.

    Does: runs `tokens` tokens of `corpus` through the model in blocks of `sequence` and writes `imatrix.npz`: an array
    (columns,) of float32 under the name of every `Linear` module but the output layer, and `tokens`.
    Needs: a Hugging Face directory, a text corpus with that many tokens.
    Why: at four bits and below, weighing the error by what the inputs look like buys more than most other tricks.
    Known: names are those of the Hugging Face modules; `quantize.gguf` maps them to the architecture of its file.
    Layers that are no `Linear` (fused experts, GPT-2's transposed matrices) are not seen, and then `quantize.gguf`
    refuses the matrix. Blocks start anywhere in a text and no beginning token is added, where llama.cpp's tool adds one
    if the model wants it. The output layer is left out, as that tool does by default.
    Source: imatrix.cpp of llama.cpp (ggml-org/llama.cpp#4861).
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("torch", "transformers", "safetensors")
    extra: ClassVar[str | None] = "torch"
    consumes: ClassVar[frozenset[str]] = frozenset({"hf"})
    produces: ClassVar[str] = "files"
    emulated: ClassVar[bool] = False

    corpus: CorpusArgument
    tokens: int = 8192
    sequence: int = 512

    def __post_init__(self) -> None:
        corpus_need(self.corpus)
        if self.sequence < 2:
            raise ValueError(f"sequence must be at least 2 tokens, not {self.sequence}")
        if self.tokens < self.sequence or self.tokens % self.sequence:
            raise ValueError(f"tokens must be a multiple of sequence ({self.sequence}), not {self.tokens}")

    @property
    def needs(self) -> tuple[Need, ...]:
        return (corpus_need(self.corpus),)

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        import numpy as np

        tokenizer = hf_folder.load_tokenizer(source)
        blocks_NT = pack_blocks(
            read_documents(context.artifacts["corpus"], "train"),
            encode=hf_folder.encoder(tokenizer),
            shape=(self.tokens // self.sequence, self.sequence),
            separator=hf_folder.separator_token(tokenizer),
            seed=context.seed,
        )
        with hf_folder.using_threads(context.hardware):
            model = hf_folder.load_model(source, dtype=hf_folder.stored_dtype(source.path), hardware=context.hardware)
            with summing_squares(model) as sums:
                _run(model, blocks_NT, context=context)
        columns = {name: (sum_C / self.tokens).float().numpy() for name, sum_C in sums.items()}
        if not all(np.isfinite(values_C).all() for values_C in columns.values()):
            raise ModelError("the inputs of the model's linear layers are not finite on the calibration text")
        arrays: Any = columns | {"tokens": np.int64(self.tokens)}
        np.savez(out / "imatrix.npz", **arrays)
        context.report.tokens = self.tokens
        context.report.notes |= {"modules": len(columns), "tokens": self.tokens}


@contextmanager
def summing_squares(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """Gives, by module name, the sum of x² per input column (C,) in float64 over all that runs through inside."""
    import torch

    sums: dict[str, torch.Tensor] = {}
    output = model.get_output_embeddings()

    def hook(name: str) -> Any:
        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            columns_C = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().square().sum(dim=0).cpu()
            sums[name] = sums[name] + columns_C if name in sums else columns_C

        return add

    named = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in named if module is not output]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _run(model: PreTrainedModel, blocks_NT: Any, *, context: StageContext) -> None:
    """Runs block after block through all layers but the output layer."""
    import torch

    with torch.inference_mode():
        for done, block_T in enumerate(blocks_NT, start=1):
            ids_BT = torch.as_tensor(block_T, device=model.device)[None]
            model.base_model(input_ids=ids_BT, use_cache=False)
            context.progress(done / len(blocks_NT), f"importance matrix: block {done} of {len(blocks_NT)}")
