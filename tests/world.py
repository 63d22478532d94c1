"""A tiny world to run: a matrix of fakes, its cache and its store below one folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness import plan
from harness.cache import Cache
from harness.display import Plain
from harness.executors.local import Local
from harness.matrix import Matrix
from harness.record import Record
from harness.spec import Model, Pipeline, Suite, Use
from harness.store import Store

PLAIN = Use(use="fake.greedy", args={"items": 20})


def blur(noise: float = 1.0, **args: object) -> Use:
    return Use(use="fake.blur", args={"noise": noise, **args})


def matrix(
    *pipelines: Sequence[Use],
    model: Model | None = None,
    runtime: Use | None = None,
    evaluations: Sequence[Use] = (PLAIN,),
    **limits: float,
) -> Matrix:
    """A reference pipeline and the ones given, named by their place."""
    named = [Pipeline(name="reference"), *(Pipeline(name=f"p{i}", stages=tuple(p)) for i, p in enumerate(pipelines, 1))]
    return Matrix(
        name="world",
        models=(model or Model(family="fake", source="fake:table"),),
        pipelines=tuple(named),
        runtimes=(runtime or Use(use="fake"),),
        suites=(Suite(name="s", version="1", evaluations=tuple(evaluations)),),
        **limits,
    )


@dataclass(frozen=True)
class World:
    folder: Path

    @property
    def cache(self) -> Cache:
        return Cache(self.folder / "home")

    @property
    def store(self) -> Store:
        return Store(self.folder / "results")

    def plan(self, given: Matrix) -> plan.Plan:
        return plan.make(given, cache=self.cache, store=self.store, home=self.cache.root)

    def run(self, given: Matrix) -> list[Record]:
        display = Plain(Console(quiet=True))
        return list(Local(self.cache, self.store, display).map(self.plan(given)))
