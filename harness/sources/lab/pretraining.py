"""Pre-training: the next token of packed text, once over, in the arithmetic of bfloat16.

The weights stay float32; autocast does the matrix products in bfloat16. The layers' matrices follow Muon, embeddings
and norms AdamW, at one learning rate; weight decay is 0.1 and a twentieth of the steps warm up. There is no dropout, so
after the first weights are drawn nothing is random: the same seed gives the same model on the same machine and number
of threads.

Shapes: N blocks, B blocks a step, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch.nn.functional import cross_entropy

from harness.interfaces import StageContext
from harness.sources.lab.sizes import Size
from harness.spec import Hardware
from harness.training.loop import train
from harness.training.pace import Pace

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from harness.sources.corpus import Blocks

WEIGHT_DECAY = 0.1
WARMUP = 0.05


def new_model(size: Size, *, end_token: int, seed: int, hardware: Hardware) -> LlamaForCausalLM:
    """Gives a model with random float32 weights, which depend on the size and the seed alone, on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**size.config(end_token=end_token)))
    return cast("LlamaForCausalLM", cast("torch.nn.Module", model).to(hardware.device))


@dataclass(frozen=True)
class Pretrained:
    """The loss of every step in nats a token, and the speed of this attempt."""

    losses: list[float]
    tokens_per_s: float


def pretrain(
    model: LlamaForCausalLM, blocks_NT: Blocks, *, batch: int, learning_rate: float, context: StageContext
) -> Pretrained:
    """Trains the model in place, once over the blocks in their order.

    Goes on from a checkpoint in the context's scratch folder. Raises ModelError when it diverges.
    """
    tokens_NT = torch.from_numpy(blocks_NT).to(model.device)
    tokens = batch * blocks_NT.shape[1]
    pace = Pace(
        steps=len(blocks_NT) // batch,
        tokens=tokens,
        learning_rate=learning_rate,
        warmup=WARMUP,
        weight_decay=WEIGHT_DECAY,
        optimizer="muon",
    )
    begun: list[float] = []

    def backward(step: int) -> float:
        begun.append(time.perf_counter())
        loss = _loss(model, tokens_NT[step * batch : (step + 1) * batch])
        torch.autograd.backward(loss)
        return float(loss.detach())

    losses = train(model, backward, pace=pace, context=context)
    return Pretrained(losses, len(begun) * tokens / (time.perf_counter() - begun[0]))


def perplexity(model: LlamaForCausalLM, blocks_NT: Blocks) -> float:
    """Gives the perplexity of the blocks: e to the mean loss of every token after the first of its block."""
    with torch.no_grad():
        losses = [float(_loss(model, torch.from_numpy(block_T)[None].to(model.device))) for block_T in blocks_NT]
    return math.exp(math.fsum(losses) / len(losses))


def _loss(model: LlamaForCausalLM, tokens_BT: torch.Tensor) -> torch.Tensor:
    with torch.autocast(tokens_BT.device.type, dtype=torch.bfloat16):
        logits_BTV = model(tokens_BT, use_cache=False).logits
    return cross_entropy(logits_BTV[:, :-1].float().flatten(0, 1), tokens_BT[:, 1:].flatten())
