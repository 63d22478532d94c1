"""What tests of distillers share: two tiny models with one tokenizer, a corpus, a teacher's text, and a way to kill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from harness.interfaces import Artifact, BuildReport, Stage, StageContext
from harness.sources.corpus import write_documents
from tests.building import artifact, context
from tests.tiny import TEXT, tiny_llama


class Killed(Exception):
    """Stands for the process dying."""


def a_teacher(folder: Path, **args) -> Artifact:
    return artifact(tiny_llama(folder, **{"seed": 0, **args}), "hf")


def a_student(folder: Path, **args) -> Artifact:
    return artifact(tiny_llama(folder, **{"layers": 1, "seed": 1, **args}), "hf")


def a_corpus(folder: Path) -> Artifact:
    numbered = [f"{n}. {sentence}" for n in range(3) for sentence in TEXT.splitlines()]
    write_documents(folder, train=numbered, heldout=TEXT.upper().splitlines())
    return artifact(folder, "text")


def a_text_by(teacher: Artifact, corpus: Artifact, folder: Path, **args) -> Artifact:
    """What the teacher writes after beginnings of the corpus."""
    from harness.stages.capture.text import CaptureText

    out = folder / "written"
    out.mkdir()
    stage = CaptureText(
        **{"tokens": 600, "length": 20, "prompt_tokens": 8, "batch": 8, "corpus": "docstrings:default", **args}
    )
    stage.apply(teacher, out, context=context(folder / "scratch", corpus=corpus))
    return artifact(out, "text")


def another(used: StageContext, scratch: Path, **changes) -> StageContext:
    """The same context with a scratch folder and a report of its own."""
    scratch.mkdir(parents=True, exist_ok=True)
    return replace(used, scratch=scratch, report=BuildReport(), **changes)


def run(stage: Stage, student: Artifact, out: Path, used: StageContext) -> bytes:
    """The weights after a stage."""
    out.mkdir(parents=True, exist_ok=True)
    stage.apply(student, out, context=used)
    return (out / "model.safetensors").read_bytes()


def assert_continues(make: Callable[[], Stage], student: Artifact, used: StageContext, *, kills: Mapping[int, int]):
    """Asserts that a run killed at each of some steps goes on to the weights and notes of one that was not.

    `kills` maps the step of the kill to how many steps are then left to do.
    """
    torch = pytest.importorskip("torch")
    folder = used.scratch.parent
    whole = run(make(), student, folder / "whole", used)
    for killed_at, left in kills.items():

        def kill(_: float | None, message: str, killed_at: int = killed_at) -> None:
            if message.startswith(f"step {killed_at} "):
                raise Killed

        scratch, out = folder / f"scratch{killed_at}", folder / f"out{killed_at}"
        with pytest.raises(Killed):
            run(make(), student, out, another(used, scratch, progress=kill))
        torch.manual_seed(killed_at)
        said: list[str] = []
        last = another(used, scratch, progress=lambda _, message, said=said: said.append(message))
        assert run(make(), student, out, last) == whole
        assert sum(message.startswith("step") for message in said) == left
        assert last.report == used.report
