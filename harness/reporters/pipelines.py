"""The report on pipelines: what each stage did, what distilling closed, what it all cost, and whether order matters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from harness.interfaces import Results
from harness.reporters import (
    attribution,
    by_suite,
    canvas,
    costs,
    footprints,
    gaps,
    iso_figure,
    isobytes,
    orderings,
    teaching,
)
from harness.reporters.export import Flat, write_csv
from harness.reporters.variants import Names, Variant, variants

TITLE = "# What each stage of a pipeline did, gained and cost"
FIGURE = ("## What is left against bytes", "![What is left at equal size, by way of compressing](iso_bytes.png)")


@final
@dataclass(frozen=True)
class Pipelines:
    """Writes `pipelines.md`, `attribution.csv`, `costs.csv`, `orderings.csv` and the figure `iso_bytes`.

    Does:   Gives the effect of each stage given the others, interactions of two stages, the share of the gap to its
            teacher that a student closed, bytes, FLOPs, tokens and seconds, what is best at equal bytes, and an
            analysis of variance over orders of the same stages, retention by suite where there are several, and whose
            pupil a model is taken for where that was asked. Seeds
            are averaged item by item.
            `extrapolate_to` (parameters of a larger reference, such as 8e9) adds a column of extrapolated seconds.
    Needs:  Records of pipelines that differ by a stage, on the same runtime and device; several seeds for orders. A
            section without data is left out. Nothing is written unless something was distilled or has two stages:
            what a single stage kept of its reference is in the report of `tables`.
    Why:    "Prune, distil, quantize kept 97 %" does not say which stage lost what, whether two stages harm each other,
            or whether another order or one stage alone would have done as well.
    Known:  Items are taken as independent. Intervals are for one comparison at a time. An order that quantizes before
            it trains frozen weights is handicapped by the freezing, so frozen and trainable stand side by side.
            Extrapolated seconds assume the same tokens, shape and FLOP/s.
    Source: Montgomery 2013 section 4.1, Tukey and Friedman for orders; Fieller 1954 for gaps; arXiv 2001.08361 for
            FLOPs; arXiv 2511.19495 for the orders.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("matplotlib", "pandas", "scipy", "tabulate")
    extra: ClassVar[str | None] = "analysis"

    extrapolate_to: float | None = None

    def __post_init__(self) -> None:
        if self.extrapolate_to is not None and not 0 < self.extrapolate_to < float("inf"):
            raise ValueError(f"extrapolate_to is {self.extrapolate_to!r}; allowed: a number of parameters, or null")

    def render(self, results: Results, out: Path) -> Iterable[Path]:
        found = variants(results)
        if not any(len(variant.stages) > 1 or "distill" in variant.kinds for variant in found):
            return []
        names = Names(found)
        sections = list(self._sections(found, names))
        figures = _figure(found, names, out)
        page = out / "pipelines.md"
        told = [TITLE, *(part for section in sections for part in section), *(FIGURE if figures else ())]
        page.write_text("\n\n".join(told) + "\n", encoding="utf-8", newline="\n")
        return [page, *self._files(found, out), *figures]

    def _sections(self, found: Sequence[Variant], names: Names) -> Iterator[list[str]]:
        """Yields the sections that have something to say, each with its heading."""
        for title, paragraphs in (
            ("Does the order matter?", orderings.order_section(found, names)),
            ("What each stage did", attribution.effect_section(found, names)),
            ("What two stages do together", attribution.interaction_section(found, names)),
            ("What the teacher gave", teaching.teaching_section(found, names)),
            ("What is kept of each suite", by_suite.suite_section(found, names)),
            ("Whose pupil it is taken for", footprints.footprint_section(found, names)),
            ("Gap to the teacher closed", gaps.gap_section(found, names)),
            ("Size and cost", costs.cost_section(found, names, extrapolate_to=self.extrapolate_to)),
            ("What is best at equal size", isobytes.iso_section(found, names)),
        ):
            told = list(paragraphs)
            if told:
                yield [f"## {title}", *told]

    def _files(self, found: Sequence[Variant], out: Path) -> Iterator[Path]:
        parts: dict[str, list[Flat]] = {
            "attribution.csv": [
                *attribution.attribution_rows(found),
                *gaps.gap_rows(found),
                *isobytes.iso_rows(found),
                *teaching.teaching_rows(found),
            ],
            "costs.csv": costs.cost_rows(found, extrapolate_to=self.extrapolate_to),
            "orderings.csv": orderings.order_rows(found),
        }
        for name, rows in parts.items():
            if rows:
                yield write_csv(rows, out / name)


def _figure(found: Sequence[Variant], names: Names, out: Path) -> list[Path]:
    with canvas.style():
        drawn = iso_figure.draw(found, names)
        return canvas.save(drawn, out, "iso_bytes") if drawn else []
