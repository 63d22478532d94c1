"""A quantizer in a package of its own: what its author wrote is this file and one entry-point line."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from harness.interfaces import Artifact, StageContext
from harness.spec import Need


@final
@dataclass(frozen=True)
class Rounding:
    """Does: rounds every weight of a table to `digits` decimal digits.

    Needs: nothing. Why: to show how little a quantizer needs. Known: only tables. Source: ours.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("numpy",)
    extra: ClassVar[str | None] = None
    consumes: ClassVar[frozenset[str]] = frozenset({"fake"})
    produces: ClassVar[str] = "fake"
    emulated: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ()
    digits: int = 0

    def __post_init__(self) -> None:
        if self.digits < 0:
            raise ValueError(f"digits must not be negative, found {self.digits}")

    def apply(self, source: Artifact, out: Path, *, context: StageContext) -> None:
        table = np.load(source.path / "table.npy", allow_pickle=False)
        np.save(out / "table.npy", np.round(table, self.digits), allow_pickle=False)
        context.report.notes["digits"] = self.digits
