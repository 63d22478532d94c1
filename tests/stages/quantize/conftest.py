"""A loud tiny model and a corpus for the stages that pack, and a way not to start a process for each of them."""

from collections.abc import Iterator

import pytest

from harness.interfaces import Artifact
from tests.building import artifact
from tests.stages.prune.sparse_world import loud_llama, small_corpus
from tests.stages.quantize.packed_world import reading_here
from tests.tiny import tiny_llama


@pytest.fixture(scope="module")
def loud(tmp_path_factory) -> Artifact:
    """A tiny Llama with a few loud channels."""
    return loud_llama(tmp_path_factory.mktemp("loud"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Artifact:
    """A tiny Llama whose columns are multiples of 128."""
    return artifact(tiny_llama(tmp_path_factory.mktemp("wide"), hidden=128), "hf")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Artifact:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def reloaded_here() -> Iterator[None]:
    """For modules that do not test the fresh process itself."""
    with reading_here():
        yield
