"""A quantizer: rounds every row of the decoder's linear weights to evenly spaced values."""

from dataclasses import dataclass
from typing import final

from harness.stages.quantize.emulated import EmulatedQuantizer


@final
@dataclass(frozen=True, kw_only=True)
class MyQuantizer(EmulatedQuantizer):
    """Does: rounds to 2^bits - 1 steps around zero, one scale a row. Needs: the model alone. Why: an example.
    Known: a row with one large weight loses the small ones. Source: ours."""

    bits: int = 4

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise ValueError(f"bits is {self.bits!r}; allowed: 2 to 8")

    def rounded(self, weight_RC):
        scale_R1 = weight_RC.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / (2 ** (self.bits - 1) - 1)
        return (weight_RC / scale_R1).round() * scale_R1
