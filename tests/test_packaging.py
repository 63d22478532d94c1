"""The wheel: built from the checkout, installed alone into an empty environment, and complete there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow
RUN = """
from pathlib import Path
from harness import testing
from tests.world import World, blur, matrix
with testing.installed(Path("plugins")):
    records = World(Path.cwd()).run(matrix([blur()]))
print([str(record.outcome) for record in records])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it depends on, and nothing else."""
    folder = tmp_path_factory.mktemp("empty")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "pip"), "install", "-q", str(wheel)], check=True)
    return folder / "bin"


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False, env=bare)


def test_the_wheel_holds_the_suites_and_task_files_and_no_tests(wheel) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "harness/suites/matrices/quickstart.yaml" in names
    assert any(name.startswith("harness/evaluations/tasks/") and name.endswith(".yaml") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "results/", "reports/"))]


def test_an_empty_environment_plans_the_quickstart_and_says_what_to_install(empty, tmp_path) -> None:
    plan = run(empty / "harness", "plan", "quickstart", cwd=tmp_path)
    assert plan.returncode == 0, plan.stderr
    assert "pip install 'compression-harness[" in plan.stdout
    for verb in ("list", "doctor"):
        assert run(empty / "harness", verb, cwd=tmp_path).returncode == 0


def test_an_empty_environment_runs_cells(empty, tmp_path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "world.py").write_text((ROOT / "tests" / "world.py").read_text())
    ran = run(empty / "python", "-c", RUN, cwd=tmp_path)
    assert ran.stdout.strip().splitlines()[-1:] == ["['ok', 'ok']"], ran.stderr


def test_a_query_in_an_empty_environment_says_what_to_install(empty, tmp_path) -> None:
    wrong = run(empty / "harness", "query", "select 1", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "compression-harness[analysis]" in wrong.stderr
