"""A model trained here goes through a whole pipeline: from a seed to a report, by the command a user types."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.record import Outcome
from harness.store import Store

pytestmark = pytest.mark.slow

SUITE = """
name: sums
version: "1"
evaluations:
  - {use: tasks.lm_eval, args: {task: lab_arithmetic, limit: 20}}
  - {use: fidelity, args: {corpus: "lab-text:arithmetic", windows: 2, length: 64}}
"""
MATRIX = """
name: sums
models:
  - {family: lab, source: "lab:smoke-teacher", args: {tokens: 40960, kinds: [arithmetic]}}
pipelines:
  - {name: reference}
  - name: taught
    stages:
      - {use: init.scratch, args: &shape {layers: 1, hidden: 128, intermediate: 128, heads: 2, kv_heads: 1}}
      - use: distill.logits
        args: &lesson {tokens: 16384, corpus: "lab-text:arithmetic", top_k: 16, optimizer: muon, learning_rate: 0.005}
  - name: taught-int4
    stages:
      - {use: init.scratch, args: *shape}
      - {use: distill.logits, args: *lesson}
      - {use: quantize.rtn, args: {bits: 4}}
  - name: taught-Q8_0
    stages:
      - {use: init.scratch, args: *shape}
      - {use: distill.logits, args: *lesson}
      - {use: quantize.gguf, args: {type: Q8_0}}
runtimes:
  - {use: llama_cpp}
suites: [./sums.yaml]
hardware:
  - {name: cpu, device: cpu, threads: 2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    (folder / "sums.yaml").write_text(SUITE)
    (folder / "matrix.yaml").write_text(MATRIX)
    command = [sys.executable, "-m", "harness.cli", "run", "./matrix.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder


def test_every_cell_has_its_outcome_and_the_prefix_is_built_once(run):
    records = {record.cell.pipeline.name: record for record in Store(run / "results" / "sums").records}
    assert {name: record.outcome for name, record in records.items()} == {
        "reference": Outcome.OK,
        "taught": Outcome.OK,
        "taught-int4": Outcome.EMULATED,
        "taught-Q8_0": Outcome.OK,
    }
    lessons = {
        next(cost.wall_s for cost in records[name].artifact.costs if cost.step.startswith("distill."))
        for name in ("taught", "taught-int4", "taught-Q8_0")
    }
    assert len(lessons) == 1  # the very same seconds: one build


def test_the_student_came_closer_to_its_teacher_and_is_smaller(run):
    records = {record.cell.pipeline.name: record for record in Store(run / "results" / "sums").records}
    (lesson,) = [cost for cost in records["taught"].artifact.costs if cost.step.startswith("distill.")]
    assert lesson.notes["heldout_kl_after"] < lesson.notes["heldout_kl_before"]
    assert lesson.tokens == 16384
    assert records["taught"].identity.parameters < records["reference"].identity.parameters


def test_the_report_says_what_each_stage_did(run):
    command = [sys.executable, "-m", "harness.cli", "report", "results/sums", "--out", "report"]
    subprocess.run(command, cwd=run, check=True, capture_output=True)
    text = (run / "report" / "pipelines.md").read_text()
    for section in ("What each stage did", "Gap to the teacher closed", "Size and cost"):
        assert f"## {section}" in text
