"""Archived names in a matrix: read as their successors, and told."""

from pathlib import Path

from harness import matrix, plugins, successors
from harness.show import explanation

MATRIX = """\
name: old-names
models: [{family: tiny, source: "path:/nowhere"}]
pipelines:
  - {name: reference}
  - {name: four, stages: [{use: autogptq, args: {bits: 4}}]}
  - {name: awq, stages: [{use: quantize.autoawq}]}
  - {name: eight, stages: [{use: quantize.rtn, args: {bits: 8}}]}
runtimes: [{use: transformers}]
suites: [suite.yaml]
"""


def loaded(folder: Path, text: str) -> matrix.Matrix:
    (folder / "suite.yaml").write_text("name: suite\nversion: 1\nevaluations: [{use: probes.load}]\n")
    (folder / "matrix.yaml").write_text(text)
    return matrix.load(str(folder / "matrix.yaml"))


def test_an_archived_name_is_the_same_cell_as_its_successor(tmp_path: Path) -> None:
    old = loaded(tmp_path, MATRIX)
    new = loaded(tmp_path, MATRIX.replace("autogptq", "quantize.gptqmodel").replace("autoawq", "gptqmodel_awq"))
    assert [cell.id for cell in old.cells()] == [cell.id for cell in new.cells()]
    assert [str(stage) for pipeline in old.pipelines for stage in pipeline.stages] == [
        "quantize.gptqmodel(bits=4)",
        "quantize.gptqmodel_awq",
        "quantize.rtn(bits=8)",
    ]


def test_the_reader_is_told_what_an_archived_name_stands_for(tmp_path: Path) -> None:
    notes = loaded(tmp_path, MATRIX).notes
    assert [note.split(":")[0] for note in notes] == [
        "autogptq -> quantize.gptqmodel",
        "quantize.autoawq -> quantize.gptqmodel_awq",
    ]
    assert all("archived upstream" in note for note in notes)
    assert "archived upstream" in explanation("autogptq")
    assert "quantize.gptqmodel_awq (stage" in explanation("autoawq")


def test_every_successor_is_a_stage_and_no_archived_name_is() -> None:
    installed = plugins.installed("stages")
    assert {one.stage for one in successors.STAGES.values()} <= set(installed)
    assert not set(successors.STAGES) & set(installed)
