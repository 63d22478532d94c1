"""The fresh process of the reload proof: opens a folder as the `transformers` runtime does and writes down its logits.

Started as `python -m harness.stages.quantize.proof.reloading_child` with an `Order` on its standard input. It has seen
nothing of the quantizer: no patched method, no module in memory, only the files.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from harness.errors import HarnessError
from harness.runtimes._hf_load import load_model
from harness.stages.quantize.proof.reloading import Order, read


def main() -> None:
    """Answers the order. The last line on standard error says why, when it cannot."""
    order = Order.model_validate_json(sys.stdin.read())
    torch.set_num_threads(order.hardware.threads)
    try:
        model = load_model(Path(order.folder), dtype=order.dtype, attention=order.attention, hardware=order.hardware)
    except HarnessError as error:
        sys.exit(" ".join(str(error).split()))
    save_file({"logits": read(model, load_file(order.probe)["tokens"])}, order.answer)


if __name__ == "__main__":
    main()
