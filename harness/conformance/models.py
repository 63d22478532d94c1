"""The models on which a quantizer is tried: small, made on the spot, and awkward where real ones are.

    plain     256 columns (512 in the down projection), its own head, float32, and trained for a few seconds, so that
              its answers are worth keeping
    tied      the same size in bfloat16, head and embedding being one tensor
    odd       184 and 328 columns, which no group of 16 or more divides
    nan, inf  `plain` with one weight that is no finite number

Real weights are not drawn evenly: rows and stretches of rows differ in size, a few weights lie far out, and one input
column is large. So are these, or a grid that is shifted by one group could pass for a right one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from harness.conformance.llama import EOS, TEXT, Shape, make_tokenizer, write_llama
from harness.sources.corpus import write_documents

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PLAIN, TIED, ODD, NAN, INF = "plain", "tied", "odd", "nan", "inf"
NAMES: Final = (PLAIN, TIED, ODD, NAN, INF)
SHAPE: Final = Shape(hidden=256, intermediate=512, heads=4, positions=2048, spread=0.06)
SHAPES: Final = {PLAIN: SHAPE, TIED: replace(SHAPE, tied=True), ODD: replace(SHAPE, hidden=184, intermediate=328)}
KEPT: Final = "model.layers.0.self_attn.o_proj"
"""A layer to be left alone when asked: no method has a reason to fold anything into it in these models."""
OTHER: Final = "model.layers.1.self_attn.o_proj"
BROKEN: Final = "model.layers.1.mlp.up_proj"
STRETCH: Final = 8
OUTLIER: Final = 7
STEPS: Final = 40
DOCUMENTS: Final = 3000
SENTENCES: Final = 24


def write_models(folder: Path) -> dict[str, Path]:
    """Writes all models into `folder` and gives each one's folder by its name."""
    import torch

    def prepare(model: torch.nn.Module) -> None:
        _roughen(model)

    def settle(model: torch.nn.Module) -> None:
        _roughen(model)
        _train(model)

    def halve(model: torch.nn.Module) -> None:
        _roughen(model)
        model.to(torch.bfloat16)

    preparations = {PLAIN: settle, TIED: halve, ODD: prepare}
    made = {
        name: write_llama(folder / name, shape, seed=number, prepare=preparations[name])
        for number, (name, shape) in enumerate(SHAPES.items())
    }
    for name, value in ((NAN, float("nan")), (INF, float("inf"))):
        made[name] = _broken(made[PLAIN], folder / name, value)
    return made


def write_corpus(out: Path) -> Path:
    """Writes text to calibrate on, some two million characters of it, into the new folder `out`."""
    out.mkdir(parents=True)
    write_documents(out, train=_documents(DOCUMENTS, seed=0), heldout=_documents(DOCUMENTS // 30, seed=1))
    return out


def probe_tokens(count: int = 4, length: int = 64) -> Tensor:
    """Gives held-out text as tokens (B, T) of the models' tokenizer."""
    import torch

    tokenizer = make_tokenizer(SHAPE.vocabulary)
    tokens = tokenizer("\n".join(_documents(count, seed=1)), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(tokens[: count * length]).reshape(count, length)


def _documents(count: int, *, seed: int) -> Iterator[str]:
    """Yields documents whose words follow each other as they do in a short text, a word in four drawn afresh."""
    drawing = random.Random(seed)
    words = TEXT.split()
    after: dict[str, list[str]] = {}
    for word, following in zip(words, [*words[1:], words[0]], strict=True):
        after.setdefault(word, []).append(following)
    for _ in range(count):
        said = [drawing.choice(words)]
        while len(said) < 5 * SENTENCES:
            said.append(drawing.choice(words if drawing.random() < 0.25 else after[said[-1]]))
        yield " ".join(said)


def _roughen(model: torch.nn.Module) -> None:
    """Makes every linear weight heavy-tailed, uneven along its rows, and large in one column."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear):
                weight_RC = module.weight
                rows, columns = weight_RC.shape
                rough_RC = torch.distributions.StudentT(6.0).sample((rows, columns))
                stretches_RS = (0.4 * torch.randn(rows, columns // STRETCH)).exp()
                rough_RC *= stretches_RS.repeat_interleave(STRETCH, dim=1) * (0.3 * torch.randn(rows, 1)).exp()
                rough_RC[:, OUTLIER] *= 3
                weight_RC.copy_(rough_RC / rough_RC.square().mean().sqrt() * 0.8 * columns**-0.5)


def _train(model: torch.nn.Module) -> None:
    """Trains a model a little on the corpus: seconds on one thread."""
    import torch

    tokenizer = make_tokenizer(SHAPE.vocabulary)
    text = EOS.join(_documents(STEPS * 4, seed=0))
    tokens = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    batches_SBT = tokens[: STEPS * 8 * 64].reshape(STEPS, 8, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    model.train()
    for batch_BT in batches_SBT:
        optimizer.zero_grad()
        model(input_ids=batch_BT, labels=batch_BT).loss.backward()
        optimizer.step()
    model.eval()


def _broken(source: Path, out: Path, value: float) -> Path:
    """Copies a model's folder and puts one number into one of its weights."""
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(source, out)
    tensors = load_file(out / "model.safetensors")
    tensors[f"{BROKEN}.weight"][3, 5] = value
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out
