"""The command line: options are few and frozen, mistakes are one clear message, help is instant."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from harness.cli import cli

FROZEN = {
    "quickstart": {"--results", "--home", "--out"},
    "run": {"matrix", "--results", "--home"},
    "plan": {"matrix", "--results", "--home"},
    "report": {"records", "--out", "--with"},
    "query": {"sql", "--results"},
    "list": set(),
    "explain": {"name"},
    "doctor": {"--results", "--home"},
    "import": {"files", "--format", "--results"},
    "export": {"form", "records", "--out"},
    "compare": {"a", "b", "--policy", "--out"},
    "gate": {"--policy", "--baseline", "--records", "--results", "--out", "--strict"},
    "gate selftest": {"--policy", "--records", "--nights", "--out"},
    "baseline set": {"name", "records", "--noise", "--results"},
    "baseline list": {"--results"},
    "baseline show": {"name", "--results"},
    "noise": {"matrix", "--results", "--home"},
    "nightly": {"matrix", "--policy", "--baseline", "--strict", "--results", "--home", "--out"},
    "check-plugin": {"names", "--json", "--home"},
    "env create": {"name", "--home"},
    "env list": {"--home"},
}
MATRIX = """\
name: tiny
models: [{family: fake, source: "fake:table"}]
pipelines: [{name: reference}, {name: blurred, stages: [{use: fake.blur, args: {noise: 1.0}}]}]
runtimes: [{use: fake}]
suites: [suite.yaml]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(MATRIX)
    (tmp_path / "suite.yaml").write_text("name: s\nversion: 1\nevaluations: [{use: fake.greedy, args: {items: 8}}]\n")
    return tmp_path


def commands(group: click.Group, prefix: str = "") -> dict[str, click.Command]:
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands(command, f"{name} ")
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[prefix + name] = command
    return found


def harness(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "harness.cli", *args], capture_output=True, text=True, check=False)


def invoke(*args: str) -> Result:
    return CliRunner().invoke(cli, args, catch_exceptions=False)


def test_options_say_only_which_and_where() -> None:
    found = {name: {param.opts[-1] for param in command.params} for name, command in commands(cli).items()}
    assert found == FROZEN


def test_every_command_and_option_is_explained() -> None:
    for name, command in commands(cli).items():
        assert command.help, name
        assert all(param.help for param in command.params if isinstance(param, click.Option)), name


def test_help_imports_nothing_but_the_command_line() -> None:
    code = "import sys, harness.cli; print(sorted({'pydantic', 'numpy', 'rich', 'yaml', 'torch'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_matrix_goes_from_plan_to_run_to_query(fakes, folder) -> None:
    plan = invoke("plan", "tiny.yaml")
    assert "2 to run" in plan.output
    assert "fake.blur(noise=1.0)" in plan.output
    assert "items" in plan.output
    run = invoke("run", "tiny.yaml")
    assert "2 ok" in run.output
    assert "2 done" in invoke("plan", "tiny.yaml").output
    sql = "select pipeline, count(*) as n, avg(score) as score from observations group by all order by 1"
    answer = invoke("query", sql, "--results", "results/tiny").output.split()
    # 8 items each; the reference is its own truth.
    assert answer[:3] == ["pipeline", "n", "score"]
    assert answer[answer.index("reference") :][:3] == ["reference", "8", "1.0"]
    written = invoke("report", "results/tiny", "--with", "fake.count")
    assert json.loads((folder / "reports" / "tiny" / "count.json").read_text()) == {"ok": 2}
    assert "count.json" in written.output


def test_a_reporter_takes_arguments_as_a_matrix_would_give_them(tmp_path) -> None:
    records = Path(__file__).parent.parent / "results" / "published" / "smollm2-student"
    said = "{use: pipelines, args: {extrapolate_to: 8.0e9}}"
    invoke("report", str(records), "--out", str(tmp_path / "out"), "--with", said)
    text = (tmp_path / "out" / "pipelines.md").read_text()
    assert "Distilling at 8 B (extrapolated, not measured)" in text
    for wrong, told in (("{use: pipelines, argss: {}}", "did you mean 'args'?"), ("{use: pipelines", "not YAML")):
        answer = harness("report", str(records), "--out", str(tmp_path / "no"), "--with", wrong)
        assert answer.returncode == 2
        assert told in answer.stderr
        assert "--with" in answer.stderr


def test_a_query_reaches_nothing_but_the_views(fakes, folder) -> None:
    invoke("run", "tiny.yaml")
    for sql in ("select * from read_csv('suite.yaml')", "copy records to 'stolen.csv'"):
        wrong = harness("query", sql, "--results", "results/tiny")
        assert wrong.returncode == 2
        assert "cannot be run" in wrong.stderr
    assert not (folder / "stolen.csv").exists()


@pytest.mark.parametrize(
    ("change", "args", "said"),
    [
        (("noise:", "nosie:"), ["run", "tiny.yaml"], ["did you mean 'noise'?"]),
        (("suites:", "siutes:"), ["run", "tiny.yaml"], ["tiny.yaml:5", "did you mean 'suites'?"]),
        (("fake.blur", "quantize.rnt"), ["run", "tiny.yaml"], ["did you mean 'quantize.rtn'?"]),
        (("fake:table", "hubb:table"), ["run", "tiny.yaml"], ["did you mean 'hub'?", "allowed:"]),
        (("", ""), ["run", "none.yaml"], ["none.yaml", "remedy:"]),
        (("", ""), ["run", "quickstrat"], ["did you mean 'quickstart'?"]),
        (("", ""), ["query", "selekt", "--results", "results/tiny"], ["views: records, metrics, observations"]),
        (("", ""), ["report", "results/none"], ["no records", "remedy:"]),
        (("", ""), ["explain", "quantize.rtm"], ["did you mean 'quantize.rtn'?"]),
        (("", ""), ["env", "create", "vlm"], ["did you mean 'vllm'?"]),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback_and_exits_2(fakes, folder, change, args, said) -> None:
    invoke("run", "tiny.yaml")
    before = sorted(folder.glob("results/**/record.json"))
    (folder / "tiny.yaml").write_text(MATRIX.replace(*change))
    wrong = harness(*args)
    assert wrong.returncode == 2, wrong.stdout + wrong.stderr
    assert "Traceback" not in wrong.stderr
    for part in said:
        assert part in wrong.stderr
    assert sorted(folder.glob("results/**/record.json")) == before


def test_a_missing_package_is_refused_in_the_table_with_the_command_that_installs_it(fakes, folder, tmp_path) -> None:
    (folder / "needy.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar, final\nfrom harness import testing\n"
        "class Needy(testing.FakeBlur):\n    requirements = ('a_module_nobody_has',)\n    extra = 'llama-cpp'\n"
    )
    from harness import testing

    points = testing.ENTRY_POINTS.replace("[harness.runtimes]", "needy = needy:Needy\n[harness.runtimes]")
    (folder / "tiny.yaml").write_text(MATRIX.replace("fake.blur, args: {noise: 1.0}", "needy"))
    with testing.installed(folder, points):
        run = harness("run", "tiny.yaml")
    assert run.returncode == 0, run.stderr
    assert "needy needs a_module_nobody_has" in run.stdout
    assert "pip install 'compression-harness[llama-cpp]'" in run.stdout


def test_a_run_with_failed_cells_exits_4(fakes, folder) -> None:
    (folder / "tiny.yaml").write_text(MATRIX.replace("noise: 1.0", "fail: raise"))
    run = harness("run", "tiny.yaml")
    assert run.returncode == 4
    assert "asked to fail" in run.stdout


@pytest.mark.parametrize("verb", ["list", "doctor"])
def test_what_is_here_is_shown_with_what_is_missing(fakes, folder, verb) -> None:
    shown = invoke(verb)
    assert shown.exit_code == 0
    assert "llama_cpp" in shown.output


def test_the_shipped_matrices_can_be_planned(folder) -> None:
    from harness.matrix import suites_dir

    for file in sorted((suites_dir() / "matrices").glob("*.yaml")):
        plan = invoke("plan", file.stem)
        assert plan.exit_code == 0, plan.output
        assert "Traceback" not in plan.output


def test_the_command_is_installed() -> None:
    assert shutil.which("harness", path=os.path.dirname(sys.executable))
