"""Hugging Face model folders as stages read and write them: weights in the stored type, everything else untouched.

A stage that changes weights must change nothing else by accident: the tokenizer, the chat template, the licence and the
generation settings are copied byte for byte, and the weights are written in the type in which they were stored. Loading
refuses what transformers only warns about, a file that names other weights than the model has.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from harness.errors import CorruptArtifact, ModelError, SpecError, Unsupported
from harness.interfaces import Artifact, StageContext
from harness.spec import Hardware

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHT_SUFFIXES = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".gguf", ".h5")


def require_unpacked(artifact: Artifact) -> None:
    """Raises SpecError when the artifact is no Hugging Face folder, Unsupported when its weights are already packed."""
    if artifact.format not in ("hf", "grid"):
        raise SpecError(
            "this stage works on a Hugging Face model folder", found=artifact.format, allowed=["hf", "grid"]
        )
    config = json.loads((artifact.path / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise Unsupported(
            "the weights are already packed by a quantizer", remedy="put this stage before the one that quantizes"
        )
    if not any(artifact.path.glob("*.safetensors")):
        raise Unsupported("the folder has no safetensors files", remedy="save the model with `save_pretrained` first")


def stored_dtype(folder: Path) -> torch.dtype:
    """Gives the type of the largest tensor in the weight files, which is the type to write back."""
    from safetensors import safe_open

    largest, found = 0, None
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            sizes = {name: math.prod(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
            name = max(sorted(sizes), key=sizes.__getitem__)
            if sizes[name] > largest:
                largest, found = sizes[name], weights.get_tensor(name).dtype
    if found is None:
        raise CorruptArtifact(f"{folder}: the safetensors files hold no tensor")
    return found


def load_model(artifact: Artifact, *, dtype: torch.dtype, hardware: Hardware) -> PreTrainedModel:
    """Gives the model in evaluation mode on the device.

    Raises CorruptArtifact when the files do not fit the model, and ModelError when a weight is no finite number.
    """
    from transformers import AutoModelForCausalLM

    require_unpacked(artifact)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        artifact.path, dtype=dtype, local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    model, info = loaded
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        raise CorruptArtifact(f"{artifact.path}: the weights do not fit the model: {wrong}")
    require_finite(model)
    return cast("PreTrainedModel", model.to(hardware.device).eval())


def require_finite(model: PreTrainedModel) -> None:
    """Raises ModelError when a weight is NaN or infinite: a quantizer would turn it into a code like any other."""
    for name, weight in model.named_parameters():
        require_numbers(name, weight)


def require_numbers(name: str, weight: torch.Tensor) -> None:
    """Raises ModelError when one tensor holds NaN or infinities."""
    if not weight.isfinite().all():
        raise ModelError(f"{name} holds numbers that are not finite, so there is nothing to compress")


def load_tokenizer(artifact: Artifact) -> PreTrainedTokenizerBase:
    """Gives the artifact's own tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(artifact.path, local_files_only=True, trust_remote_code=False)


def save_model(model: PreTrainedModel, out: Path, *, like: Artifact) -> None:
    """Writes the model into `out` in the type in which `like` is stored, with the other files of `like` as they are."""
    cast("torch.nn.Module", model).to(stored_dtype(like.path))
    model.save_pretrained(out)
    copy_companions(like.path, out)


def copy_companions(source: Path, out: Path) -> None:
    """Copies every file that holds no weights (tokenizer, chat template, generation settings, licence) as it is.

    A `config.json` that is already in `out` stays, since a stage may have changed it.
    """
    for file in sorted(source.iterdir()):
        is_changed = file.name == "config.json" and (out / file.name).exists()
        if file.is_file() and not file.name.endswith(WEIGHT_SUFFIXES) and not is_changed:
            shutil.copyfile(file, out / file.name)


def separator_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Gives the token that stands between documents: end of text, else beginning. Raises Unsupported without either."""
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise Unsupported(
        "the tokenizer has neither an end nor a beginning token", remedy="set one in tokenizer_config.json"
    )


def encoder(tokenizer: PreTrainedTokenizerBase) -> Any:
    """Gives a function from text to tokens that adds no special ones."""
    # verbose=False: a document longer than the model's context is cut into blocks later, so the warning is wrong here.
    return lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False)


@contextmanager
def reproducible(context: StageContext) -> Iterator[None]:
    """Lets torch, NumPy and Python draw from the build's seed inside, on its threads, and gives back what they had."""
    import random

    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state()
    with using_threads(context.hardware), torch.random.fork_rng():
        torch.manual_seed(context.seed)
        np.random.seed(context.seed % 2**32)
        random.seed(context.seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def using_threads(hardware: Hardware) -> Iterator[None]:
    """Lets torch use the cell's threads inside, and gives back the number it had."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(hardware.threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
