"""A plug-in in its own package is found, planned, run and reported without a change to the harness."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import plugins

PACKAGE = Path(__file__).parent / "third_party"
README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
MATRIX = """\
name: third
models: [{family: fake, source: "fake:table"}]
pipelines:
  - {name: reference}
  - {name: rounded, stages: [{use: quantize.rounding, args: {digits: 0}}]}
runtimes: [{use: fake}]
suites: [suite.yaml]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, installed by pip as a user would, into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(folder)]
    subprocess.run([*pip, str(PACKAGE)], check=True)
    return folder


def harness(*args: str, cwd: Path, site: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join((str(site), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "harness.cli", *args]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path}
    )


def test_it_is_listed_explained_planned_run_and_reported(fakes, site, tmp_path) -> None:
    (tmp_path / "third.yaml").write_text(MATRIX)
    (tmp_path / "suite.yaml").write_text("name: s\nversion: 1\nevaluations: [{use: fake.greedy}]\n")

    listed = harness("list", cwd=tmp_path, site=site)
    row = next(line for line in listed.stdout.splitlines() if "quantize.rounding" in line)
    assert "harness-rounding" in row
    assert "digits: int = 0" in harness("explain", "quantize.rounding", cwd=tmp_path, site=site).stdout

    planned = harness("plan", "third.yaml", cwd=tmp_path, site=site)
    assert "quantize.rounding(digits=0)" in planned.stdout, planned.stderr

    ran = harness("run", "third.yaml", cwd=tmp_path, site=site)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    records = [json.loads(file.read_text()) for file in sorted((tmp_path / "results").glob("third/*/*/record.json"))]
    outcomes = {record["cell"]["pipeline"]["name"]: record["outcome"] for record in records}
    assert outcomes == {"reference": "ok", "rounded": "emulated"}

    reported = harness("report", "results/third", "--out", "out", cwd=tmp_path, site=site)
    assert reported.returncode == 0, reported.stderr
    text = (tmp_path / "out" / "report.md").read_text()
    assert "rounded" in text
    assert "emulated" in text


def test_its_refused_argument_is_a_clear_error(fakes, site, tmp_path) -> None:
    (tmp_path / "third.yaml").write_text(MATRIX.replace("digits: 0", "digits: -1"))
    (tmp_path / "suite.yaml").write_text("name: s\nversion: 1\nevaluations: [{use: fake.greedy}]\n")
    planned = harness("plan", "third.yaml", cwd=tmp_path, site=site)
    assert planned.returncode == 2
    assert "digits must not be negative" in planned.stderr
    assert "Traceback" not in planned.stderr


def test_it_is_unknown_where_it_is_not_installed() -> None:
    assert "quantize.rounding" not in plugins.installed("stages")


def test_the_readme_shows_a_quantizer_that_is_here_and_the_line_that_declares_it() -> None:
    (shown,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert shown == (PACKAGE / "my_package" / "__init__.py").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    assert set(lines.splitlines()) <= set((PACKAGE / "pyproject.toml").read_text(encoding="utf-8").splitlines())
