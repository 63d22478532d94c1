"""Packing stages by the command a user types: built, proved in a fresh process, measured, and called emulated."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.record import Outcome
from harness.store import Store

pytest.importorskip("llmcompressor")
pytestmark = pytest.mark.slow

SUITE = """
name: sums
version: "1"
evaluations:
  - {use: fidelity, args: {corpus: "lab-text:arithmetic", windows: 2, length: 64}}
"""
MATRIX = """
name: sums
models:
  - {family: lab, source: "lab:smoke-teacher", args: {tokens: 40960, kinds: [arithmetic]}}
pipelines:
  - {name: reference}
  - name: gptq
    stages:
      - use: quantize.gptq
        args: &text {corpus: "lab-text:arithmetic", tokens: 1024, sequence: 64, group: 32}
  - {name: awq, stages: [{use: quantize.awq, args: *text}]}
  - {name: w8a8, stages: [{use: quantize.smoothquant, args: {data_free: true, tokens: 1024, sequence: 64}}]}
  - {name: fp8, stages: [{use: quantize.fp8}]}
  - {name: mxfp8, stages: [{use: quantize.fp8, args: {kind: mx}}]}
  - name: nvfp4
    stages:
      - {use: quantize.fp4, args: {activations: true, data_free: true, tokens: 1024, sequence: 64}}
  - {name: mxfp4, stages: [{use: quantize.fp4, args: {kind: mxfp4}}]}
runtimes:
  - {use: transformers}
suites: [./sums.yaml]
hardware:
  - {name: cpu, device: cpu, threads: 1}
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict:
    folder: Path = tmp_path_factory.mktemp("packed")
    (folder / "sums.yaml").write_text(SUITE)
    (folder / "matrix.yaml").write_text(MATRIX)
    command = [sys.executable, "-m", "harness.cli", "run", "./matrix.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {record.cell.pipeline.name: record for record in Store(folder / "results" / "sums").records}


def test_every_packed_model_is_measured_and_emulated_where_the_runtime_unpacks(records):
    assert {name: record.outcome for name, record in records.items()} == {
        name: Outcome.OK if name == "reference" else Outcome.EMULATED for name in records
    }
    assert len(records) == 8


def test_the_record_carries_the_proof(records):
    for name, record in records.items():
        if name != "reference":
            notes = record.artifact.costs[-1].notes
            assert notes["coverage"]["share_of_linear"] == 1.0
            assert notes["reload_difference"] <= 0.03
            assert record.artifact.nominal_bytes == notes["coverage"]["bytes"] < record.artifact.size_bytes
            assert record.identity.unpacked
