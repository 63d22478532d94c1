"""Calibrated pruning through llm-compressor: how its one-shot run is fed, watched and kept from failing quietly.

llm-compressor goes through the decoder layer by layer: it runs the calibration blocks through a layer, prunes the
layer's weights from what arrived at them, and runs the blocks again through the pruned layer to feed the next. This
module gives it our blocks instead of a data set it would download, counts forward passes for the progress, and takes
the weights from memory: the library's own checkpoint format and files are not used.

What the library would only log is an error here: a Hessian that cannot be inverted, after which SparseGPT falls back
to magnitudes without saying so in its result.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.errors import ModelError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.sources.corpus import CorpusArgument, corpus_need
from harness.spec import Need
from harness.stages.prune._sparsity import Sparsity, prunable_weights
from harness.stages.prune._zeroing import Tally, write_pruned
from harness.stages.prune.calibration import calibration_blocks

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.sources.corpus import Blocks

# The one module of the library whose warnings mean that the result is not what was asked for.
FALLS_BACK_QUIETLY = "llmcompressor.modifiers.pruning.sparsegpt.sgpt_sparsify"
PASSES = 2  # over every block: one to see what arrives, one to feed the next layer


@dataclass(frozen=True, kw_only=True)
class Calibrated(Sparsity):
    """Arguments of the pruning stages that look at inputs: `tokens` of the corpus in blocks of `sequence`."""

    corpus: CorpusArgument = "docstrings:default"
    tokens: int = 16384
    sequence: int = 512

    @property
    def needs(self) -> tuple[Need, ...]:
        """The calibration text."""
        return (corpus_need(self.corpus),)

    @property
    def settings(self) -> dict[str, Any]:
        """Gives the pattern as llm-compressor's modifiers call it."""
        return {"sparsity": self.sparsity, "mask_structure": self.pattern if self.group else "0:0", "ignore": []}


Modifier = Callable[[list[str]], Any]
"""Makes llm-compressor's modifier for the layers with these names."""


def prune_calibrated(
    source: Artifact, out: Path, modifier: Modifier, *, asked: Calibrated, context: StageContext
) -> None:
    """Prunes the model in `source` with one of llm-compressor's modifiers into the empty folder `out`, and reports."""
    from harness.stages.hf_folder import load_model, load_tokenizer, stored_dtype, using_threads

    names = prunable_weights(source, asked)
    _require_device(context.hardware.device)
    with using_threads(context.hardware):
        tokenizer = load_tokenizer(source)
        blocks_NT = calibration_blocks(source, tokens=asked.tokens, sequence=asked.sequence, context=context)
        model = load_model(source, dtype=stored_dtype(source.path), hardware=context.hardware)
        layers = [name.removesuffix(".weight") for name in names]
        with _watched(model, layers, calls=PASSES * len(layers) * len(blocks_NT), context=context):
            _one_shot(model, modifier(layers), tokenizer, blocks_NT)

        def zero(name: str, _: Tensor) -> Tensor:
            layer: Any = model.get_submodule(name.removesuffix(".weight"))
            return cast("Tensor", layer.weight.detach())

        write_pruned(source, out, zero, tally=Tally(asked, set(names)), context=context)
    context.report.tokens += blocks_NT.size


def _require_device(device: str) -> None:
    """Raises Unsupported when llm-compressor, which takes any accelerator it sees, would not use the cell's device."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    used = accelerator.type if accelerator else "cpu"
    if used != device:
        raise Unsupported(
            f"the cell's device is {device} and llm-compressor would use {used}",
            remedy="name that device in the matrix, or hide the accelerator (CUDA_VISIBLE_DEVICES=)",
        )


def _one_shot(model: PreTrainedModel, modifier: Any, tokenizer: PreTrainedTokenizerBase, blocks_NT: Blocks) -> None:
    import torch
    from llmcompressor.entrypoints.oneshot import oneshot

    samples: Any = [{"input_ids": torch.from_numpy(block_T)} for block_T in blocks_NT]
    # A ready loader is taken as it is: no data set is looked up, nothing is shuffled or cut.
    loader = torch.utils.data.DataLoader(samples, batch_size=1, shuffle=False)
    with _warnings() as warned:
        oneshot(model=model, tokenizer=tokenizer, recipe=modifier, dataset=loader, clear_sparse_session=True)
    if warned:
        raise ModelError(
            f"llm-compressor pruned {len(warned)} weights by magnitude instead, because their Hessians could not be "
            f"inverted: {warned[0]}"
        )


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Lets the library log warnings, without its lines per weight, and gives those that mean another result."""
    from llmcompressor import LoggerConfig, configure_logger
    from loguru import logger

    configure_logger(LoggerConfig(console_log_level=None))
    logger.enable("llmcompressor")  # the environment may have disabled it, and then nothing would be heard
    warned: list[str] = []
    handles = [
        logger.add(sys.stderr, level="WARNING", filter=lambda record: record["level"].name != "METRIC"),
        logger.add(
            lambda message: warned.append(message.record["message"]), level="WARNING", filter=FALLS_BACK_QUIETLY
        ),
    ]
    try:
        yield warned
    finally:
        for handle in handles:
            logger.remove(handle)


@contextmanager
def _watched(model: PreTrainedModel, layers: Sequence[str], *, calls: int, context: StageContext) -> Iterator[None]:
    """Reports progress at every call of a layer, and raises ModelError when what arrives there is not finite."""
    done = 0

    def hook(name: str) -> Any:
        def see(_: Any, args: tuple[Any, ...]) -> None:
            nonlocal done
            done += 1
            context.progress(min(1.0, done / calls), f"calibrate {name}")
            if not bool(args[0].isfinite().all()):
                raise ModelError(f"{name}: inputs are not finite")

        return see

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
