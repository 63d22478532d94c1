"""The command line: a verb reads, makes one library call and prints.

Choices live in YAML; options say only which and where. A user's mistake is printed without a traceback and exits 2;
Ctrl-C exits 130; a run with cells that failed exits 4, because its report has holes; a gate that finds a regression
exits 1 (see `gate.verdict`), and so does a plug-in that fails a check; an error of ours, with its traceback, exits 70.
Libraries are imported inside the verbs, so that help is instant.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType

import click

from harness import cli_options as options
from harness.cli_options import EXIT_CRASH, EXIT_INTERRUPTED, EXIT_PIPE, EXIT_USER, FOLDER
from harness.conformance_cli import check_plugin
from harness.errors import UserError
from harness.gate_cli import baseline, compare, gate, nightly, noise


def main() -> None:
    """Runs the command line and turns exceptions into exit codes."""
    import signal

    signal.signal(signal.SIGTERM, _interrupt)
    sys.excepthook = _crash
    try:
        code = cli(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_USER)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was measured is kept, run again to go on", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except SystemExit as stop:  # click's answer to a reader that closed the pipe is 1, which here says "regressed"
        sys.exit(EXIT_PIPE if stop.code == 1 else stop.code)
    except UserError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(EXIT_USER)
    sys.exit(code)


def _interrupt(signum: int, frame: object) -> None:
    """Treats a polite request to stop like Ctrl-C: the running cell is recorded first."""
    raise KeyboardInterrupt


def _crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ends with a code of its own when the harness itself is at fault: Python's own is 1, which says "regressed"."""
    sys.__excepthook__(kind, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_CRASH)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="compression-harness")
def cli() -> None:
    """Compare distillation, quantization and every pipeline of the two: compress, measure, report."""


@cli.command()
@options.where
@options.out
def quickstart(results: Path, home: Path | None, out: Path) -> int:
    """Run the shipped small matrix on a real model and write its report."""
    from harness.matrix import load
    from harness.running import run_matrix

    code, _ = run_matrix(load("quickstart"), results=results, home=home)
    _report(results / "quickstart", out / "quickstart", ())
    return code


@cli.command()
@click.argument("matrix")
@options.where
def run(matrix: str, results: Path, home: Path | None) -> int:
    """Run MATRIX (a shipped name or a YAML file); what is recorded is not run again."""
    from harness.matrix import load
    from harness.running import run_matrix

    return run_matrix(load(matrix), results=results, home=home)[0]


@cli.command()
@click.argument("matrix")
@options.where
def plan(matrix: str, results: Path, home: Path | None) -> None:
    """Show what MATRIX would run, what is cached, what is refused and why."""
    from harness.estimate import estimate
    from harness.matrix import load
    from harness.running import plan_matrix
    from harness.show import plan_lines

    made, store = plan_matrix(load(matrix), results=results, home=home)
    options.show(plan_lines(made, estimate(made, store)))


@cli.command()
@click.argument("records", type=FOLDER, default="results/quickstart")
@options.out
@click.option(
    "--with",
    "reporters",
    multiple=True,
    help="Reporter to use, by name or as {use: NAME, args: {...}}; may be repeated [all that can run here].",
)
def report(records: Path, out: Path, reporters: tuple[str, ...]) -> None:
    """Write tables and figures from the records in the folder RECORDS; runs nothing."""
    _report(records, out / records.name if out == Path("reports") else out, reporters)


@cli.command()
@click.argument("sql")
@click.option("--results", type=FOLDER, default="results/quickstart", show_default=True, help="Folder of the records.")
def query(sql: str, results: Path) -> None:
    """Run SQL over the views records, metrics and observations."""
    from harness import query as queries
    from harness.show import table
    from harness.store import Store

    columns, rows = queries.run(Store(results), sql)
    options.console().print(table(columns, [[str(value) for value in row] for row in rows]))


@cli.command(name="import")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format", "form", default=None, help="Importer, by name or as {use: NAME, args: {...}}.  [default: by its look]"
)
@click.option("--results", type=FOLDER, default="results/imported", show_default=True, help="Folder of the records.")
def import_(files: tuple[Path, ...], form: str | None, results: Path) -> None:
    """Store logs of other tools (lm-eval, Inspect, llama-perplexity) as records."""
    from harness import exchanging
    from harness.store import Store

    for record in exchanging.import_into(form, files, Store(results)):
        click.echo(f"{record.cell}: {len(record.metrics)} metrics")
        for gap in record.gaps:
            click.echo(f"  gap: {gap.reason}{f' -> {gap.remedy}' if gap.remedy else ''}")


@cli.command()
@click.argument("form", metavar="FORMAT")
@click.argument("records", type=FOLDER, default="results/quickstart")
@click.option("--out", type=FOLDER, default="exports", show_default=True, help="Folder of the files.")
def export(form: str, records: Path, out: Path) -> None:
    """Write records as FORMAT: bencher, github-action, lm_eval, model-index or pytest-benchmark."""
    from harness import exchanging
    from harness.store import Store

    for file in exchanging.export(form, Store(records), out):
        click.echo(f"wrote {file}")


@cli.command(name="list")
def list_() -> None:
    """List plug-ins, what each needs and whether it can run here."""
    from harness.cache import home as default_home
    from harness.show import plugin_table

    options.console().print(plugin_table(default_home()))


@cli.command()
@click.argument("name")
def explain(name: str) -> None:
    """Explain the plug-in NAME: what it does, needs, why, what is known, its source and its arguments."""
    from harness.show import explanation

    options.show([explanation(name)])


@cli.command()
@options.where
def doctor(results: Path, home: Path | None) -> None:
    """Check hardware, runtimes, environments and the hub; say what to do about each problem."""
    from harness import doctor as checks
    from harness.cache import home as default_home

    marks = {True: "ok  ", False: "PROBLEM ", None: ""}
    for check in checks.examine(home or default_home(), results):
        advice = f"\n      -> {check.remedy}" if check.remedy and check.good is not True else ""
        click.echo(f"{marks[check.good]}{check.topic}: {check.found}{advice}")


@cli.group()
def env() -> None:
    """Isolated interpreters for runtimes and stages whose requirements conflict."""


@env.command()
@click.argument("name")
@options.home
def create(name: str, home: Path | None) -> None:
    """Make an environment from the extra NAME; the plan then uses it for what needs it."""
    from harness import environments
    from harness.cache import home as default_home

    click.echo(f"making the environment {name}; this installs packages and may take minutes")
    made = environments.create(name, home or default_home())
    click.echo(f"{made.python} serves {', '.join(sorted(name for _, name in made.serves))}")


@env.command(name="list")
@options.home
def env_list(home: Path | None) -> None:
    """List environments, what each serves, and the extras that could become one."""
    from harness import environments
    from harness.cache import home as default_home

    for environment in environments.found(home or default_home()):
        click.echo(f"{environment.name}: {environment.python}")
        click.echo(f"    serves {', '.join(sorted(name for _, name in environment.serves)) or 'nothing'}")
    click.echo(f"can be made: {', '.join(environments.extras())}")


for verb in (compare, gate, baseline, noise, nightly, check_plugin):
    cli.add_command(verb)


def _report(records: Path, out: Path, names: tuple[str, ...]) -> None:
    from harness import reporting
    from harness.store import Store

    for file in reporting.write(Store(records), out, names):
        click.echo(f"wrote {file}")
    options.show(reporting.first_screen(out))


if __name__ == "__main__":
    main()
