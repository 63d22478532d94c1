"""The laws of a session, over every runtime that can run here."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness import plugins
from harness.interfaces import Artifact
from harness.spec import Hardware, Use
from harness.testing import FakeSource, check_session
from tests.building import artifact, context
from tests.runtimes.tiny_gguf import write_gguf
from tests.tiny import tiny_llama


def hf(folder: Path) -> Artifact:
    return artifact(tiny_llama(folder / "hf"), "hf")


def packed(folder: Path) -> Artifact:
    return write_gguf(tiny_llama(folder / "hf"), folder / "gguf")


def table(folder: Path) -> Artifact:
    FakeSource("table").fetch(folder, context=context(folder))
    return artifact(folder, "fake")


MODELS: dict[str, Callable[[Path], Artifact]] = {"hf": hf, "gguf": packed, "fake": table}


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("name", ["fake", *plugins.installed("runtimes")])
def test_every_runtime_keeps_the_laws_of_a_session(name: str, tmp_path: Path) -> None:
    runtime = plugins.runtime(Use(use=name))
    if missing := plugins.missing_modules(runtime):
        pytest.skip(f"{name} needs {', '.join(missing)}")
    direct = next(format_ for format_, stages in runtime.formats.items() if not stages)
    with runtime.open(MODELS[direct](tmp_path), hardware=Hardware()) as session:
        check_session(session)
