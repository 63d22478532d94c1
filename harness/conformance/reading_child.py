"""The fresh process of a reading.

Started as `python -m harness.conformance.reading_child` with `Orders` on its standard input.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from harness.conformance.reading import Orders, read_all, write


def main() -> None:
    """Reads what is ordered and writes the answers beside each other."""
    orders = Orders.model_validate_json(sys.stdin.read())
    torch.set_num_threads(orders.hardware.threads)
    write(read_all(orders), Path(orders.answers))


if __name__ == "__main__":
    main()
