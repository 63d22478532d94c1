"""The bench on which a stage is tried: it is built on every model once, watched while it works, and read afterwards.

Builds and readings are made when a check first asks for them and are kept, so a stage runs as seldom as can be. What a
stage asks for beside its input it is given: text that was made here in place of a corpus, the model itself in place of
a teacher, and anything else from its source.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from harness import plugins
from harness.cache import file_digest
from harness.conformance import models
from harness.conformance.reading import Order, Orders, Reading
from harness.errors import ModelError
from harness.interfaces import SAME, Artifact, BuildReport, Progress, Stage, StageContext
from harness.job import Answer
from harness.record import ArtifactFacts, Outcome
from harness.spec import REFERENCE, Hardware, Need, Use
from harness.worker import attempt

if TYPE_CHECKING:
    from harness.conformance.grids import Grids

Read = Callable[[Orders], list[Reading]]
AGAIN: Final = "again"
KEEPING: Final = "keeping"
OWN: Final = {"out", "scratch", "around", "needs"}
READ: Final = (models.PLAIN, models.TIED, models.ODD)
"""Models whose quantized versions are read."""
COMPARED: Final = (models.PLAIN, models.TIED)
"""Models whose quantized versions are held against the source."""


@dataclass(frozen=True)
class Built:
    """What one build left behind: the answer, the folder, and what changed that it should not have touched."""

    answer: Answer
    artifact: Artifact
    report: BuildReport
    trespasses: tuple[str, ...] = ()
    leftovers: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return self.artifact.path

    @property
    def error(self) -> str:
        """Why there is nothing; empty when the build succeeded."""
        return self.answer.error.reason if self.answer.error else ""

    @property
    def is_refused(self) -> bool:
        """True when the stage said that it does not support this."""
        return self.answer.outcome is Outcome.UNSUPPORTED


@dataclass(frozen=True)
class World:
    """What is made once, however many stages are tried: the models by name, the corpus and the probe's tokens."""

    sources: Mapping[str, Artifact]
    corpus: Artifact
    probe: Path


def make_world(folder: Path) -> World:
    """Makes models, corpus and probe in the empty folder `folder`."""
    from safetensors.torch import save_file

    made = models.write_models(folder)
    probe = folder / "probe.safetensors"
    save_file({"tokens": models.probe_tokens()}, probe)
    sources = {name: _artifact(path, "hf") for name, path in made.items()}
    return World(sources, _artifact(models.write_corpus(folder / "corpus"), "text"), probe)


@dataclass
class Bench:
    """One stage on the bench. `folder` is empty; `read` reads what was built, in a process of its own."""

    use: Use
    world: World
    folder: Path
    read: Read
    progress: Progress
    hardware: Hardware = field(default_factory=Hardware)
    builds: dict[str, Built] = field(default_factory=dict)

    @cached_property
    def stage(self) -> Stage:
        """The stage, built as the plan builds it."""
        return plugins.stage(self.use)

    @property
    def format(self) -> str:
        """The format that the stage writes."""
        return "hf" if self.stage.produces == SAME else self.stage.produces

    def argument(self, *names: str) -> tuple[str, Any] | None:
        """Gives the first of these arguments that the stage has, with its value."""
        given = vars(self.stage)
        return next(((name, given[name]) for name in names if name in given), None)

    def build(self, model: str, *, label: str = "", **args: Any) -> Built:
        """Gives what the stage makes of a model, made when first asked for; `label` tells builds of one model apart."""
        key = f"{model}-{label}" if label else model
        if key not in self.builds:
            use = self.use.model_copy(update={"args": self.use.args | args})
            self.builds[key] = self._built(key, plugins.stage(use), self.world.sources[model])
        return self.builds[key]

    def require(self, model: str) -> Built:
        """Gives what the stage made of a model. Raises ModelError when it made nothing."""
        built = self.build(model)
        if built.error:
            raise ModelError(f"it fails on the {model} model: {built.error}")
        return built

    @cached_property
    def grids(self) -> Grids:
        """What was rounded onto which grid, from the tensors of the plain model's folder."""
        from harness.conformance.grids import find_grids

        return find_grids(self)

    def reading(self, model: str, *, what: str = "built") -> Reading:
        """Gives a reading of a model: as it was `built`, its `source`, or the source `rounded` (or `coarse`ly so)."""
        return self._readings[f"{model} {what}"]

    @cached_property
    def again(self) -> Reading:
        """A reading of the plain model by yet another process."""
        self.progress(None, "read back once more")
        return self.read(self._orders([Order(folder=str(self.require(models.PLAIN).path))], AGAIN))[0]

    @cached_property
    def _readings(self) -> dict[str, Reading]:
        found = self.grids
        orders: dict[str, Order] = {}
        for model in READ:
            built, source = self.build(model), str(self.world.sources[model].path)
            if not built.error:
                runtime = runtime_for(self.format) if model == models.PLAIN else None
                orders[f"{model} built"] = Order(folder=str(built.path), format=self.format, runtime=runtime)
            if model in COMPARED:
                orders[f"{model} source"] = Order(folder=source)
                orders[f"{model} rounded"] = Order(folder=source, roundings=found.roundings)
                orders[f"{model} coarse"] = Order(folder=source, roundings=found.coarser)
        self.progress(None, "read back in a fresh process")
        different = list(dict.fromkeys(orders.values()))
        answers = dict(zip(different, self.read(self._orders(different, "first")), strict=True))
        return {name: answers[order] for name, order in orders.items()}

    def _orders(self, orders: Sequence[Order], name: str) -> Orders:
        answers = self.folder / f"answers-{name}"
        answers.mkdir()
        return Orders(orders=tuple(orders), probe=str(self.world.probe), answers=str(answers), hardware=self.hardware)

    def _built(self, key: str, stage: Stage, source: Artifact) -> Built:
        root = self.folder / key
        out, scratch, around = root / "out", root / "scratch", root / "around"
        for each in (out, scratch, around):
            each.mkdir(parents=True)
        report = BuildReport()
        artifacts = {need.name: self._needed(need, source, root / "needs") for need in stage.needs}
        context = StageContext(artifacts, self.hardware, 0, scratch, self._progress(key), report)
        digests, here = _digests(source.path), Path.cwd()
        os.chdir(around)
        try:
            before = process_state()
            answer = attempt(lambda: stage.apply(source, out, context=context))
            after = process_state()
        finally:
            os.chdir(here)
        changed = {name for name, _ in set(digests.items()) ^ set(_digests(source.path).items())}
        trespasses = (
            *(f"{name} of its source" for name in sorted(changed)),
            *(f"{name}, beside its own folders" for name in sorted(set(os.listdir(root)) - OWN)),
            *(f"{name}, in the current folder" for name in sorted(os.listdir(around))),
        )
        leftovers = tuple(name for name, value in before.items() if after[name] != value)
        return Built(answer, _artifact(out, self.format), report, trespasses, leftovers)

    def _progress(self, key: str) -> Progress:
        return lambda fraction, message: self.progress(fraction, f"{key}: {message}")

    def _needed(self, need: Need, source: Artifact, folder: Path) -> Artifact:
        """Gives what a stage asks for, built from the model at hand where it is to come from the reference."""
        if need.source == REFERENCE:
            found = source
        else:
            origin = plugins.source(need)
            found = self.world.corpus if origin.format == "text" else self._fetched(need, folder / need.name)
        for number, use in enumerate(need.stages):
            stage, place = plugins.stage(use), folder / f"{need.name}-{number}"
            artifacts = {inner.name: self._needed(inner, source, place / "needs") for inner in stage.needs}
            made = _artifact(place / "out", found.format if stage.produces == SAME else stage.produces)
            made.path.mkdir(parents=True)
            stage.apply(found, made.path, context=self._context(artifacts, place / "scratch"))
            found = made
        return found

    def _fetched(self, need: Need, place: Path) -> Artifact:
        source = plugins.source(need)
        found = _artifact(place / "out", source.format)
        found.path.mkdir(parents=True)
        source.fetch(found.path, context=self._context({}, place / "scratch"))
        return found

    def _context(self, artifacts: Mapping[str, Artifact], scratch: Path) -> StageContext:
        scratch.mkdir(parents=True, exist_ok=True)
        return StageContext(artifacts, self.hardware, 0, scratch, self.progress, BuildReport())


def process_state() -> dict[str, object]:
    """Gives what a stage has to leave as it found it, by name."""
    import numpy as np
    import torch

    drawn = np.random.get_state(legacy=False)["state"]
    return {
        "torch's threads": torch.get_num_threads(),
        "torch's random numbers": torch.random.get_rng_state().numpy().tobytes(),
        "NumPy's random numbers": (drawn["key"].tobytes(), drawn["pos"]),
        "Python's random numbers": random.getstate(),
        "the default type": torch.get_default_dtype(),
        "whether gradients are kept": torch.is_grad_enabled(),
        "environment variables": dict(os.environ),
        "current folder": os.getcwd(),
    }


def runtime_for(form: str) -> str | None:
    """Gives the first runtime that opens a format as it is and can run in this process."""
    for name in plugins.installed("runtimes"):
        runtime = plugins.runtime(Use(use=name))
        if runtime.formats.get(form) == () and not plugins.missing_modules(runtime):
            return name
    return None


def _digests(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file_digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _artifact(path: Path, form: str) -> Artifact:
    return Artifact(path, ArtifactFacts(lineage=(), format=form, digest="", size_bytes=0))
