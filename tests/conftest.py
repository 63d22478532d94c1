"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import testing


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """A Hugging Face directory of SmolLM2-135M-Instruct."""
    return Path(os.environ["SMOL_DIR"])


@pytest.fixture
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The fake plug-ins of `harness.testing`, visible to this process and its children."""
    with testing.installed(tmp_path_factory.mktemp("plugins")) as folder:
        yield folder
