"""What the harness itself costs: the command line's help, and a cell that does nothing, beside a bare interpreter.

    python -m pytest tests/benchmarks -m slow

Read the ratios within one run. The aims are 0.3 s for help and, for a null cell, 1 s beyond the interpreter's start.
"""

import shutil
import subprocess
import sys

import pytest

from harness.spec import Use
from tests.world import World, matrix

pytestmark = pytest.mark.slow


@pytest.mark.benchmark(group="command line")
def test_starting_a_bare_interpreter(benchmark) -> None:
    benchmark(subprocess.run, [sys.executable, "-c", "pass"], check=True)


@pytest.mark.benchmark(group="command line")
def test_printing_help(benchmark) -> None:
    benchmark(subprocess.run, [sys.executable, "-m", "harness.cli", "--help"], check=True, capture_output=True)


@pytest.mark.benchmark(group="cell")
def test_starting_an_interpreter_with_the_workers_imports(benchmark) -> None:
    benchmark(subprocess.run, [sys.executable, "-c", "import harness.worker, numpy"], check=True)


@pytest.mark.benchmark(group="cell")
def test_measuring_a_null_cell(benchmark, fakes, tmp_path) -> None:
    world, given = World(tmp_path), matrix(evaluations=[Use(use="fake.greedy", args={"items": 1})])
    world.run(given)

    def again() -> None:
        shutil.rmtree(world.store.root)
        assert [str(record.outcome) for record in world.run(given)] == ["ok"]

    benchmark(again)
