"""The classroom that most tests of distillers sit in: a teacher, a smaller student, text, and a context with both.

A test file that needs other ones defines its own under the same names.
"""

import pytest

from harness.interfaces import Artifact, StageContext
from tests.building import context
from tests.stages.distill.classroom import a_corpus, a_student, a_teacher


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Artifact:
    return a_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def student(tmp_path_factory) -> Artifact:
    return a_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Artifact:
    return a_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def used(tmp_path, teacher, corpus) -> StageContext:
    return context(tmp_path / "scratch", teacher=teacher, corpus=corpus)
