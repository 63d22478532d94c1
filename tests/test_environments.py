"""Interpreters: which one runs what, and how an isolated one is made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import environments, plan
from harness.environments import Environment
from harness.errors import UserError
from tests.world import World, matrix


def make(home: Path, name: str, serves: list[tuple[str, str]]) -> Path:
    """An environment that shares this interpreter: a folder with a link and its answer."""
    python = home / "envs" / name / "bin" / "python"
    python.parent.mkdir(parents=True)
    # A wrapper and not a link: through a link Python would not find this environment's packages.
    python.write_text(f'#!/bin/sh\nMARK={name} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (home / "envs" / name / "serves.json").write_text(json.dumps(serves))
    return python


def test_the_first_environment_that_serves_a_plugin_is_chosen(tmp_path) -> None:
    this = Environment("this", Path(sys.executable), frozenset({("stages", "a")}))
    other = Environment("other", tmp_path, frozenset({("stages", "a"), ("runtimes", "b")}))
    assert environments.choose("stages", "a", [this, other]) == this
    assert environments.choose("runtimes", "b", [this, other]) == other
    assert environments.choose("runtimes", "c", [this, other]) is None


def test_a_cell_runs_under_the_interpreter_that_serves_its_runtime(fakes, tmp_path, monkeypatch) -> None:
    world = World(tmp_path)
    served = [["runtimes", "fake"], ["evaluations", "fake.greedy"]]
    python = make(world.cache.root, "elsewhere", served)
    monkeypatch.setattr(
        environments,
        "current",
        lambda: Environment("this", Path(sys.executable), frozenset({("sources", "fake"), ("stages", "fake.blur")})),
    )
    made = world.plan(matrix())
    assert made.items[0].environment.python == python
    assert made.builds[made.items[0].artifact].environment.name == "this"
    record = world.run(matrix())[0]
    assert record.outcome == "ok"


def test_an_environment_tells_what_it_serves_by_itself(fakes, tmp_path) -> None:
    python = make(tmp_path, "mine", [])
    refreshed = environments.refresh(Environment("mine", python, frozenset()))
    assert ("runtimes", "fake") in refreshed.serves
    assert refreshed in environments.found(tmp_path)


def test_a_broken_environment_is_named_with_the_command_that_mends_it(tmp_path) -> None:
    python = make(tmp_path, "torn", [])
    python.write_text("#!/bin/sh\necho no module >&2\nexit 1\n")
    with pytest.raises(UserError, match="harness env create torn"):
        environments.refresh(Environment("torn", python, frozenset()))


def test_what_no_environment_serves_is_refused_with_both_remedies() -> None:
    refusal = plan.missing("runtimes", "vllm")
    assert "pip install 'compression-harness[vllm]'" in refusal.remedy
    assert "harness env create vllm" in refusal.remedy


@pytest.mark.slow
def test_env_create_makes_an_interpreter_from_an_extra_that_serves_it(tmp_path) -> None:
    command = [sys.executable, "-m", "harness.cli", "env", "create", "analysis", "--home", str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "tables" in made.stdout
    listed = subprocess.run([*command[:4], "list", "--home", str(tmp_path)], capture_output=True, text=True, check=True)
    assert "analysis: " in listed.stdout
