"""One forward pass over rows of different lengths, on top of what the rows have seen before.

Everything the transformers runtime does is one operation: append new tokens to rows whose keys and values are cached.
New tokens are padded on the right. In a first pass padding is harmless, because attention is causal and nothing real
comes after it; in a later pass the padding lies in the middle of the cache, so an attention mask hides it and
explicit positions count only real tokens. That holds for full attention. With a sliding window it holds while the
whole row fits into the window; models that keep a recurrent state never see padding before a real token, one row at a
time.

Only the positions that are asked for go through the output projection. A hook on that projection narrows its input,
so what the model does afterwards (soft-capping, scaling) applies to those positions as it would to all.

Shapes: B rows, T new tokens, S columns in the cache, N picked positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, QuantizedLayer

Pick = tuple[int, int]
"""A row and one of its new tokens."""


@dataclass(frozen=True)
class Past:
    """What rows have seen: their keys and values, and which columns of the cache are real tokens of which row."""

    cache: Cache
    seen_BS: torch.Tensor

    @property
    def columns(self) -> int:
        """Columns of the cache, padding included."""
        return self.seen_BS.shape[1]

    def select(self, rows: Sequence[int]) -> Past:
        """Gives the named rows, in that order and as often as they are named; this past stays as it is."""
        rows_B = torch.tensor(rows, device=self.seen_BS.device)
        return Past(_cache((k[rows_B], v[rows_B]) for k, v in _states(self.cache)), self.seen_BS[rows_B])

    def compact(self) -> Past:
        """Moves every row's real tokens to the left, in their order, and drops the columns that are left over."""
        width = int(self.seen_BS.sum(1).max())
        order_BS = torch.argsort((~self.seen_BS).to(torch.uint8), dim=1, stable=True)[:, :width]

        def moved(states_BHSD: torch.Tensor) -> torch.Tensor:
            index = order_BS[:, None, :, None].expand(-1, states_BHSD.shape[1], -1, states_BHSD.shape[3])
            return states_BHSD.gather(2, index)

        return Past(_cache((moved(k), moved(v)) for k, v in _states(self.cache)), self.seen_BS.gather(1, order_BS))

    def join(self, other: Past) -> Past:
        """Gives the rows of both, padded on the right to the same number of columns."""
        width = max(self.columns, other.columns)

        def widened(states_BHSD: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.pad(states_BHSD, (0, 0, 0, width - states_BHSD.shape[2]))

        pairs = zip(_states(self.cache), _states(other.cache), strict=True)
        seen = [torch.nn.functional.pad(past.seen_BS, (0, width - past.columns)) for past in (self, other)]
        states = ((torch.cat([widened(a), widened(b)]) for a, b in zip(one, two, strict=True)) for one, two in pairs)
        return Past(_cache((k, v) for k, v in states), torch.cat(seen))


class Forward:
    """A loaded model, as the operation described above.

    `new_cache` makes caches that round what they keep (`rounds`), for one row at a time.
    """

    def __init__(self, model: Any, *, new_cache: Callable[[], Cache] | None = None) -> None:
        self._model, self._new_cache = model, new_cache
        self.rounds = new_cache is not None
        parameters = inspect.signature(model.forward).parameters
        # Recurrent models take the same kind of cache under another name.
        self.cache_name = next((name for name in ("past_key_values", "cache_params") if name in parameters), None)
        batches = new_cache is None and {"position_ids", "past_key_values"} <= set(parameters)
        self.columns = _exact_columns(model.config) if batches else 0

    def empty(self, rows: int, *, exact: bool = False) -> Past | None:
        """Gives the past of rows that have seen nothing; None when the model keeps no cache of this kind.

        An `exact` cache is the model's own, with its windows and states: for one row at a time.
        """
        if self.cache_name is None:
            return None
        cache: Cache
        if self._new_cache is not None:
            assert rows == 1, "caches that round are for one row at a time"
            cache = self._new_cache()
        else:
            cache = DynamicCache(config=self._model.config) if exact else DynamicCache()
        return Past(cache, torch.zeros(rows, 0, dtype=torch.bool, device=self._model.device))

    @torch.inference_mode()
    def extend(
        self, rows: Sequence[Sequence[int]], *, picks: Sequence[Pick], past: Past | None = None
    ) -> tuple[torch.Tensor, Past | None]:
        """Appends new tokens to every row; gives logits (N, V) after the picked ones and the longer past.

        The cache of `past` is used up: select from it first to keep it. Without a past nothing is kept.
        """
        lengths_B = torch.tensor([len(row) for row in rows], device=self._model.device)
        steps_T = torch.arange(max(len(row) for row in rows), device=self._model.device)
        new_BT = steps_T < lengths_B[:, None]
        inputs: dict[str, Any] = {"input_ids": self._padded(rows), "use_cache": False}
        if past is not None and self.cache_name is not None:
            inputs |= {self.cache_name: past.cache, "use_cache": True}
            if not bool(past.seen_BS.all()):
                # Positions of padding repeat the last real one: they must exist in a table of learned positions.
                steps_BT = torch.minimum(steps_T, lengths_B[:, None] - 1)
                inputs["position_ids"] = past.seen_BS.sum(1, keepdim=True) + steps_BT
                inputs["attention_mask"] = torch.cat([past.seen_BS, new_BT], dim=1).long()
        rows_N, steps_N = (torch.tensor(side, device=self._model.device) for side in zip(*picks, strict=True))
        with _narrowed(self._model.get_output_embeddings(), rows_N, steps_N) as narrowed:
            logits = self._model(**inputs).logits
        logits_NV = logits[0] if narrowed else logits[rows_N, steps_N]
        return logits_NV, None if past is None else Past(past.cache, torch.cat([past.seen_BS, new_BT], dim=1))

    def _padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        width = max(len(row) for row in rows)
        # Any token serves as padding, since nothing looks at it: token 0 exists in every vocabulary.
        return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=self._model.device)


def _exact_columns(config: Any) -> int:
    """Gives how long a padded row may be: no limit for full attention, the window when it slides, 0 for recurrence."""
    layers = DynamicCache(config=config).layers
    if not {type(layer) for layer in layers} <= {DynamicLayer, DynamicSlidingWindowLayer}:
        return 0
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return min(windows, default=sys.maxsize)


@contextmanager
def _narrowed(head: torch.nn.Module | None, rows_N: torch.Tensor, steps_N: torch.Tensor) -> Iterator[list[bool]]:
    """Lets the output projection see only the picked positions, as (1, N, D); gives a list that is filled if it did."""
    done: list[bool] = []
    if head is None:
        yield done
        return

    def narrow(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        done.append(True)
        return (inputs[0][rows_N, steps_N].unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield done
    finally:
        handle.remove()


def _states(cache: Cache) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer), "rows are only moved in caches of full attention"
        assert not isinstance(layer, QuantizedLayer), "what is quantized is not in keys and values"
        assert layer.keys is not None, "a cache that is moved has been filled"
        assert layer.values is not None, "a cache that is moved has been filled"
        yield layer.keys, layer.values


def _cache(states: Iterator[tuple[torch.Tensor, torch.Tensor]]) -> DynamicCache:
    return DynamicCache(list(states))
