"""The report as pictures: two frontiers and a heat map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from harness.interfaces import Results
from harness.reporters import canvas, heatmap, pareto
from harness.reporters.summary import summarize


@final
@dataclass(frozen=True)
class Figures:
    """Writes `pareto_size`, `pareto_speed` and `heatmap`, each as PNG (150 dpi) and SVG.

    Does:   Plots retention with its 95 % interval against size and against decode speed-up, a panel a family, marks the
            reference and what nothing beats, and colours retention by task and pipeline around 1.
    Needs:  Records with tasks of the family's reference; a figure with nothing to show is not written.
    Why:    Choosing a compressed model is a trade: what is given up against what is gained, and how sure that is.
    Known:  The frontier goes by point estimates. Emulated rows are hollow, stand at the size they would have if packed,
            and take no part in frontiers or speed.
    Source: Colours of Okabe and Ito 2008.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("matplotlib", "scipy")
    extra: ClassVar[str | None] = "analysis"

    def render(self, results: Results, out: Path) -> Iterable[Path]:
        summary = summarize(results)
        written: list[Path] = []
        with canvas.style():
            for name, drawn in (
                ("pareto_size", pareto.draw(summary, pareto.SIZE)),
                ("pareto_speed", pareto.draw(summary, pareto.SPEED)),
                ("heatmap", heatmap.draw(summary)),
            ):
                if drawn is not None:
                    written += canvas.save(drawn, out, name)
        return written
