"""An existing model in the place of the one that came in: its files as they are, or a refusal."""

from pathlib import Path

import pytest

from harness.errors import SpecError, Unsupported
from harness.interfaces import Artifact
from harness.record import ArtifactFacts
from harness.spec import Need, Use
from harness.stages.init.model import InitModel
from harness.testing import check_plugin
from tests.building import artifact, context
from tests.tiny import tiny_llama

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("large"), hidden=128), "hf")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Artifact:
    return artifact(tiny_llama(tmp_path_factory.mktemp("small"), layers=1), "hf")


def replace_by(model: Artifact, source: Artifact, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    used = context(tmp_path / "scratch", model=model)
    InitModel(source="path:/models/small").apply(source, out, context=used)
    return out, used.report


def test_replacing_the_model_is_a_proper_plugin():
    check_plugin("stages", InitModel)


def test_the_files_are_those_of_the_other_model(large, small, tmp_path):
    out, report = replace_by(small, large, tmp_path)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == {
        file.name: file.read_bytes() for file in small.path.iterdir()
    }
    assert report.notes["replaced_by"] == "path:/models/small"


def test_another_vocabulary_is_refused(large, tmp_path):
    other = artifact(tiny_llama(tmp_path / "other", vocab=300), "hf")
    # 84 tokens of the 384 are not among the 300.
    with pytest.raises(SpecError, match="84 tokens differ"):
        replace_by(other, large, tmp_path)


def test_a_model_that_is_quantized_is_refused(large, small, tmp_path):
    facts = ArtifactFacts(lineage=(), format="grid", digest="", size_bytes=0, emulated=True)
    with pytest.raises(Unsupported, match="format grid"):
        replace_by(Artifact(small.path, facts), large, tmp_path)


def test_what_every_report_must_say_about_the_other_model_is_said(large, small, tmp_path):
    facts = ArtifactFacts(lineage=(), format="hf", digest="", size_bytes=0, labels=("dequantized from a 4-bit file",))
    _, report = replace_by(Artifact(small.path, facts), large, tmp_path)
    assert report.labels == ["dequantized from a 4-bit file"]


def test_the_other_model_is_a_need_with_all_that_was_said_about_it():
    stages = [{"use": "prune.depth", "args": {"layers": 2}}]
    asked = InitModel(source="hub:a/b", revision="main", args={"files": 1}, stages=stages)
    prune = Use(use="prune.depth", args={"layers": 2})
    assert asked.needs == (Need(name="model", source="hub:a/b", revision="main", args={"files": 1}, stages=(prune,)),)


def test_the_reference_with_stages_is_another_model():
    need = InitModel(source="reference", stages=[{"use": "prune.depth", "args": {"layers": 2}}]).needs[0]
    assert (need.source, len(need.stages)) == ("reference", 1)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"source": "small"}, "allowed: a source"),
        ({"source": "reference"}, "without stages"),
        ({"source": "hub:a/b", "stages": [{"stage": "x"}]}, "use"),
    ],
)
def test_what_is_no_model_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        InitModel(**args)
