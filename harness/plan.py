"""What will run, what is cached, what is refused and why: all decided before the first cell runs.

The plan builds every plug-in of a matrix (constructors are cheap), so a misspelt name or argument costs nothing
measured. It puts the conversions between formats in, resolves what stages and evaluations need into builds, gives
each build the key of what makes it, and compares needs with capabilities, devices and environments. A cell that
cannot run is refused with a reason and a remedy; it stays in the table.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from harness import environments, plugins
from harness.cache import Cache
from harness.environments import Environment
from harness.errors import CorruptArtifact, Unsupported
from harness.interfaces import SAME, Stage
from harness.matrix import Matrix
from harness.spec import REFERENCE, Cell, Model, Need, Use, digest
from harness.store import Store

Status = Literal["run", "done", "refused", "excluded"]


@dataclass(frozen=True)
class Build:
    """One artifact to make: a source to fetch, or a stage on the artifact `parent`."""

    key: str
    origin: Model | Need
    stage: Use | None
    parent: str | None
    needs: Mapping[str, str]
    format: str
    emulated: bool
    environment: Environment

    @property
    def label(self) -> str:
        return str(self.stage) if self.stage else f"fetch {Use(use=self.origin.source, args=self.origin.args)}"


@dataclass(frozen=True)
class Item:
    """One combination of the matrix and what becomes of it."""

    cell: Cell
    status: Status
    reason: str = ""
    remedy: str = ""
    artifact: str | None = None
    needs: tuple[Mapping[str, str], ...] = ()
    environment: Environment | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Items in running order and every build by key, each after those it stands on."""

    matrix: Matrix
    items: tuple[Item, ...]
    builds: Mapping[str, Build]
    cached: frozenset[str]

    def with_status(self, status: Status) -> list[Item]:
        """Gives the items of one status."""
        return [item for item in self.items if item.status == status]

    def builds_for(self, item: Item) -> list[Build]:
        """Gives the builds an item needs, in order, cached or not."""
        wanted: dict[str, None] = {}

        def visit(key: str) -> None:
            build = self.builds[key]
            for before in (build.parent, *build.needs.values()):
                if before:
                    visit(before)
            wanted[key] = None

        for key in (item.artifact, *(key for needs in item.needs for key in needs.values())):
            if key:
                visit(key)
        return [self.builds[key] for key in wanted]


def make(matrix: Matrix, *, cache: Cache, store: Store, home: Path) -> Plan:
    """Plans a matrix. Raises UserError for what the user must fix before anything can run."""
    planner = _Planner(matrix, environments.found(home))
    items = []
    for cell, exclusion in matrix.combinations():
        if exclusion:
            items.append(Item(cell, "excluded", exclusion.reason))
            continue
        item = planner.item(cell)
        if item.status == "run" and store.done(cell, item.versions, item.artifacts):
            item = replace(item, status="done")
        items.append(item)
    cached = frozenset(key for key in planner.builds if _is_cached(cache, key))
    return Plan(matrix, tuple(items), planner.builds, cached)


def _is_cached(cache: Cache, key: str) -> bool:
    try:
        return cache.get(key) is not None
    except CorruptArtifact:
        return False


@dataclass
class _Planner:
    """Turns cells into items, collecting builds; every build is made once."""

    matrix: Matrix
    environments: Sequence[Environment]
    builds: dict[str, Build] = field(default_factory=dict)

    def item(self, cell: Cell) -> Item:
        runtime = plugins.runtime(cell.runtime)
        evaluations = [(use, plugins.evaluation(use)) for use in cell.suite.evaluations]
        stages = [plugins.stage(use) for use in cell.pipeline.stages]
        plugins.source(cell.model)
        versions = {
            cell.runtime.use: runtime.version,
            **{use.use: evaluation.version for use, evaluation in evaluations},
            **{use.use: stage.version for use, stage in zip(cell.pipeline.stages, stages, strict=True)},
        }
        try:
            device_or_refuse(cell.hardware.device, runtime.devices, cell.runtime.use)
            environment = self._environment("runtimes", cell.runtime)
            for use, evaluation in evaluations:
                if lacking := sorted(evaluation.requires - runtime.capabilities):
                    raise Unsupported(f"{cell.runtime.use} cannot {', '.join(lacking)}, which {use.use} asks for")
                self._served(environment, use)
            built = self._pipeline(cell.model, cell.pipeline.stages, cell)
            built = self._converted(built, runtime.formats, (cell.runtime.use, cell))
            needs = tuple(self._needs(evaluation.needs, cell) for _, evaluation in evaluations)
        except Unsupported as error:
            return Item(cell, "refused", error.reason, error.remedy, versions=versions)
        return Item(
            cell,
            "run",
            artifact=built.key,
            needs=needs,
            environment=environment,
            versions=versions,
            artifacts={"model": built.key, **{name: key for each in needs for name, key in each.items()}},
        )

    def _pipeline(self, origin: Model | Need, stages: Sequence[Use], cell: Cell) -> Build:
        built = self._fetched(origin)
        for use in stages:
            built = self._staged(built, use, cell)
        return built

    def _fetched(self, origin: Model | Need) -> Build:
        source = plugins.source(origin)
        scheme = origin.source.partition(":")[0]
        environment = self._environment("sources", Use(use=scheme))
        said = {"source": origin.source, "revision": origin.revision, "args": origin.args}
        key = digest([said, source.version, source.fingerprint])
        return self._add(Build(key, origin, None, None, {}, source.format, False, environment))

    def _staged(self, before: Build, use: Use, cell: Cell) -> Build:
        stage = plugins.stage(use)
        accepted = dict.fromkeys(stage.consumes, ()) | self._adapters(before.format, stage.consumes)
        before = self._converted(before, accepted, (use.use, cell))
        needs = self._needs(stage.needs, cell)
        said = [before.key, use.canonical(), stage.version, sorted(needs.items()), *([cell.seed] if cell.seed else [])]
        produces = before.format if stage.produces == SAME else stage.produces
        _keeps_grid_or_refuse(use, stage, before)
        kept = use.use.startswith("convert.") or stage.produces == SAME
        emulated = stage.emulated or (kept and before.emulated)
        environment = self._environment("stages", use)
        return self._add(Build(digest(said), before.origin, use, before.key, needs, produces, emulated, environment))

    def _converted(self, before: Build, accepted: Mapping[str, Sequence[Use]], wanted: tuple[str, Cell]) -> Build:
        who, cell = wanted
        if before.format not in accepted:
            raise _unopenable(who, before, accepted, is_runtime=who == cell.runtime.use)
        for use in accepted[before.format]:
            before = self._staged(before, use, cell)
        return before

    @staticmethod
    def _adapters(given: str, consumes: frozenset[str]) -> dict[str, tuple[Use, ...]]:
        """Gives the conversion that brings a format to one that is consumed, where a `convert.*` stage exists."""
        for name in plugins.installed("stages"):
            converter = plugins.load("stages", name) if name.startswith("convert.") else None
            if converter and given in converter.consumes and converter.produces in consumes and given not in consumes:
                return {given: (Use(use=name),)}
        return {}

    def _needs(self, needs: Sequence[Need], cell: Cell) -> dict[str, str]:
        resolved = {}
        for need in needs:
            origin = self.matrix.reference_of(cell.model) if need.source == REFERENCE else need
            resolved[need.name] = self._pipeline(origin, need.stages, cell).key
        return resolved

    def _environment(self, kind: plugins.Kind, use: Use) -> Environment:
        found = environments.choose(kind, use.use, self.environments)
        if found is None:
            raise missing(kind, use.use)
        return found

    def _served(self, environment: Environment, use: Use) -> None:
        if ("evaluations", use.use) not in environment.serves:
            raise missing("evaluations", use.use, where=environment.name)

    def _add(self, build: Build) -> Build:
        return self.builds.setdefault(build.key, build)


def _keeps_grid_or_refuse(use: Use, stage: Stage, before: Build) -> None:
    """Raises Unsupported when a stage would move quantized weights that nobody declared off their grid."""
    moves_weights = stage.produces in (SAME, before.format) and not stage.emulated
    if before.emulated and before.format == "hf" and moves_weights:
        raise Unsupported(
            f"{use.use} would change weights that {before.label} rounded, and that quantizer does not say onto which "
            f"grid: the result would be called quantized and not be",
            remedy=f"put {use.use} before the quantizer, or use one that writes the format grid (quantize.rtn)",
        )


WHY = {
    "gguf": "its weights are packed in blocks, which have no gradient and no neurons to remove",
    "grid": "its weights lie on a quantization grid, which this stage would leave",
    "packed": "its weights are packed into codes and scales, which nothing but a runtime reads",
}
"""Why a stage that needs plain weights cannot work on a format; put into refusals."""


def _unopenable(who: str, before: Build, accepted: Mapping[str, Sequence[Use]], *, is_runtime: bool) -> Unsupported:
    """Gives the refusal of a stage or runtime for the format before it."""
    reason = f"{who} opens {', '.join(sorted(accepted))}, and {before.label} gives {before.format}"
    if is_runtime:
        remedy = f"choose a runtime that opens {before.format}, or leave the combination out with an exclusion"
        return Unsupported(reason, remedy=remedy)
    if before.format in WHY and "hf" in accepted:
        maker = before.label.partition("(")[0]
        return Unsupported(f"{reason}: {WHY[before.format]}", remedy=f"put {who} before {maker} in the pipeline")
    return Unsupported(reason, remedy="leave the combination out with an exclusion")


def missing(kind: plugins.Kind, name: str, *, where: str = "this") -> Unsupported:
    """Gives the refusal of a plug-in whose requirements are not installed, with the command that installs them."""
    plugin = plugins.load(kind, name)
    modules = ", ".join(plugins.missing_modules(plugin)) or "its modules"
    remedy = f"pip install '{environments.DISTRIBUTION}[{plugin.extra}]'" if plugin.extra else f"install {modules}"
    if plugin.extra and where == "this":
        remedy += f", or: harness env create {plugin.extra}"
    return Unsupported(f"{name} needs {modules}, which the environment {where!r} has not", remedy=remedy)


def device_or_refuse(device: str, devices: frozenset[str], runtime: str) -> None:
    """Raises Unsupported when a runtime cannot use a device or this machine has none."""
    if device not in devices:
        raise Unsupported(f"{runtime} does not run on {device}", remedy=f"it runs on {', '.join(sorted(devices))}")
    if not DEVICES[device]():
        raise Unsupported(f"this machine has no {device} device", remedy="run this matrix on a machine that has one")


def _has_cuda() -> bool:
    return Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None


def _has_mps() -> bool:
    return platform.system() == "Darwin" and platform.machine() == "arm64"


DEVICES: Mapping[str, Callable[[], bool]] = {"cpu": lambda: True, "cuda": _has_cuda, "mps": _has_mps}
"""How to tell, without importing anything heavy, whether this machine has a device."""
