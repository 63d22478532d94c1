"""The README's recipes for every night are what cron, systemd, GitHub and our own command line accept."""

import configparser
import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from harness.cli import cli

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def fenced(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    return str(found)


def accepted(line: str) -> str:
    """Parses a command as the command line would, without running it; gives the verb."""
    words = shlex.split(line.split(">>")[0])
    words = words[next(index for index, word in enumerate(words) if word.endswith("bin/harness")) + 1 :]
    group: click.Command = cli
    context = click.Context(cli)
    name = words.pop(0)
    while isinstance(group, click.Group):
        group = group.commands[name]
        if isinstance(group, click.Group) and not group.invoke_without_command:
            name = words.pop(0)
            continue
        break
    group.make_context(name, words, parent=context)
    return name


def test_the_crontab_line_has_five_fields_and_a_command_of_ours() -> None:
    *fields, command = fenced("cron").strip().split(maxsplit=5)
    assert [field.isdigit() or field == "*" for field in fields] == [True] * 5
    assert accepted(command.partition("&&")[2]) == "nightly"


def test_the_unit_is_one_and_starts_a_command_of_ours() -> None:
    unit = configparser.ConfigParser()
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(fenced("ini"))
    assert unit["Service"]["Type"] == "oneshot"
    assert accepted(unit["Service"]["ExecStart"]) == "nightly"
    assert unit["Service"]["ExecStart"].startswith(unit["Service"]["WorkingDirectory"])


def test_the_workflow_is_yaml_with_steps_of_ours() -> None:
    workflow = yaml.safe_load(fenced("yaml"))
    (job,) = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert [accepted(line) for line in runs if "bin/harness" in line] == ["nightly"]
    installs = next(line for line in README.splitlines() if "[quickstart]" in line and line.startswith("    python"))
    assert any(line.split("install")[1].split('"')[1] in installs for line in runs if "pip" in line)


COMMANDS = re.findall(
    r"^    (harness (?:compare|baseline|gate|nightly|noise|import) .*?)(?:   +|$)", README, re.MULTILINE
)


@pytest.mark.parametrize("line", COMMANDS)
def test_the_verbs_of_the_readme_are_there(line: str) -> None:
    assert accepted(f"bin/{line}") in cli.commands or line.split()[1] in cli.commands
