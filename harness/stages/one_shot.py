"""A run of llm-compressor's one-shot driver: how it is fed, watched and kept from failing quietly.

llm-compressor goes through the decoder layer by layer: it runs the calibration blocks through a layer, changes the
layer's weights by what arrived at them, and runs the blocks again through the changed layer to feed the next. This
module gives it our blocks instead of a data set it would download, reports progress by counting calls of layers, and
gives back what the library only logs, so that a stage can tell a warning that is a failure from one that is a note.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.errors import ModelError, Unsupported
from harness.interfaces import StageContext

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.sources.corpus import Blocks


@dataclass(frozen=True)
class Warned:
    """A warning of the library: the module that gave it and what it said."""

    module: str
    message: str


def require_device(device: str) -> None:
    """Raises Unsupported when llm-compressor, which takes any accelerator it sees, would not use the cell's device."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    used = accelerator.type if accelerator else "cpu"
    if used != device:
        raise Unsupported(
            f"the cell's device is {device} and llm-compressor would use {used}",
            remedy="name that device in the matrix, or hide the accelerator (CUDA_VISIBLE_DEVICES=)",
        )


def run_one_shot(
    model: PreTrainedModel, recipe: Any, *, tokenizer: PreTrainedTokenizerBase, blocks_NT: Blocks | None
) -> list[Warned]:
    """Changes the model in memory by llm-compressor's modifiers and gives what the library warned of.

    Without blocks nothing is watched, which not every modifier can do.
    """
    import torch
    from llmcompressor.entrypoints.oneshot import oneshot

    loader = None
    if blocks_NT is not None:
        samples: Any = [{"input_ids": torch.from_numpy(block_T)} for block_T in blocks_NT]
        # A ready loader is taken as it is: no data set is looked up, nothing is shuffled or cut.
        loader = torch.utils.data.DataLoader(samples, batch_size=1, shuffle=False)
    with _listening() as warned:
        oneshot(model=model, tokenizer=tokenizer, recipe=recipe, dataset=loader, clear_sparse_session=True)
    return warned


@contextmanager
def _listening() -> Iterator[list[Warned]]:
    """Lets the library log warnings, without its lines per weight, and gives them."""
    from llmcompressor import LoggerConfig, configure_logger
    from loguru import logger

    configure_logger(LoggerConfig(console_log_level=None))
    logger.enable("llmcompressor")  # the environment may have disabled it, and then nothing would be heard
    warned: list[Warned] = []

    def hear(message: Any) -> None:
        if message.record["level"].name != "METRIC":
            warned.append(Warned(message.record["name"], message.record["message"]))

    handles = [
        logger.add(sys.stderr, level="WARNING", filter=lambda record: record["level"].name != "METRIC"),
        logger.add(hear, level="WARNING"),
    ]
    try:
        yield warned
    finally:
        for handle in handles:
            logger.remove(handle)


@contextmanager
def watching(model: PreTrainedModel, layers: Sequence[str], *, calls: int, context: StageContext) -> Iterator[None]:
    """Reports progress at every call of a layer, and raises ModelError when what arrives there is not finite."""
    done = 0

    def hook(name: str) -> Any:
        def see(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            context.progress(min(1.0, done / calls), f"calibrate {name}")
            arrived = args[0] if args else named["input"]
            if not bool(arrived.isfinite().all()):
                raise ModelError(f"{name}: inputs are not finite")

        return see

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
