"""One look for all figures, and files whose bytes depend on nothing but what is drawn.

Colours are those of M. Okabe and K. Ito (Color Universal Design, 2008), which colour-blind readers can tell apart;
marks differ in shape as well. Dates, versions and random identifiers are kept out of the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT, GRID = "#222222", "#6b6b6b", "#e3e3e3"
DPI = 150

_STYLE: dict[str, object] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "compression-harness",
}


@contextmanager
def style() -> Iterator[None]:
    """Draws in the house style inside the block, whatever the user's own settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]  # its stub lists keys, ours are checked as it runs
        yield


def figure(width: float, height: float) -> Figure:
    """Gives an empty figure of that many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(made)
    return made


def save(drawn: Figure, out: Path, name: str) -> list[Path]:
    """Writes a PNG and an SVG."""
    png, svg = out / f"{name}.png", out / f"{name}.svg"
    drawn.savefig(png, dpi=DPI, metadata={"Software": None})
    drawn.savefig(svg, metadata={"Date": None, "Creator": None})
    return [png, svg]
