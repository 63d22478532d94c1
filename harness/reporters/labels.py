"""Puts names next to points so that they can be read: a small search for places where nothing is covered.

Every label tries places around its point, nearer ones first, and pays for what it would cover there: other labels most,
then points and lines, then distance. A few rounds over all labels settle them. Pure and in pixels, so the same points
always get the same places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ROUNDS = 4
DISTANCES = (7.0, 14.0, 24.0, 36.0, 52.0, 70.0)
DIRECTIONS = 16


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Gives the area that two boxes share."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return width * height if width > 0 and height > 0 else 0.0

    def outside(self, bounds: Box) -> float:
        """Gives how far the box leaves its bounds, in pixels."""
        return sum(
            max(0.0, beyond)
            for beyond in (
                bounds.left - self.left,
                self.right - bounds.right,
                bounds.bottom - self.bottom,
                self.top - bounds.top,
            )
        )


@dataclass(frozen=True)
class Label:
    """A point's place and the size of its name."""

    x: float
    y: float
    width: float
    height: float

    def boxes(self) -> Iterator[Box]:
        """Yields places around the point, nearest first."""
        for distance in DISTANCES:
            for step in range(DIRECTIONS):
                angle = 2 * math.pi * step / DIRECTIONS
                across, up = math.cos(angle), math.sin(angle)
                x = self.x + distance * across + self.width / 2 * across
                y = self.y + distance * up + self.height / 2 * up
                yield Box(x - self.width / 2, y - self.height / 2, x + self.width / 2, y + self.height / 2)


@dataclass(frozen=True)
class Scene:
    """What labels must not cover, and the frame they must stay in."""

    obstacles: tuple[Box, ...]
    bounds: Box

    def cost(self, box: Box, label: Label, others: Sequence[Box]) -> float:
        """Gives what a place costs: pixels of other labels, of points and lines, outside the frame, and of distance."""
        covered = sum(box.overlap(other) for other in others)
        hidden = sum(box.overlap(obstacle) for obstacle in self.obstacles)
        away = math.hypot((box.left + box.right) / 2 - label.x, (box.bottom + box.top) / 2 - label.y)
        return 20 * covered + 12 * hidden + 500 * box.outside(self.bounds) + away

    def place(self, labels: Sequence[Label]) -> list[Box]:
        """Gives every label's box."""
        chosen = [next(label.boxes()) for label in labels]
        for _ in range(ROUNDS):
            before = list(chosen)
            for index, label in enumerate(labels):
                others = chosen[:index] + chosen[index + 1 :]
                costs = [(self.cost(box, label, others), order) for order, box in enumerate(label.boxes())]
                chosen[index] = list(label.boxes())[min(costs)[1]]
            if chosen == before:
                break
        return chosen
