"""The verb that checks a plug-in of anyone's: check-plugin."""

from __future__ import annotations

from pathlib import Path

import click

from harness import cli_options as options

FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(name="check-plugin")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--json", "file", type=FILE, default=None, help="File for the findings.  [default: print only]")
@options.home
@click.pass_context
def check_plugin(context: click.Context, /, names: tuple[str, ...], file: Path | None, home: Path | None) -> None:
    """Try quantizers on tiny models: whether each does what it says, and nothing else.

    NAME is an installed stage, or {use: NAME, args: {...}}. Exits with 1 when a check failed.
    """
    from harness import document
    from harness.cache import home as default_home
    from harness.conformance import launching, report

    uses = [document.use(name, option="NAME") for name in names]
    found = [(use, launching.environment_for(use, home or default_home())) for use in uses]
    reports = []
    with options.display() as display:
        for use, environment in found:
            reports.append(launching.check(use, environment, progress=display.step(f"check {use}")))
    for one in reports:
        options.console().print(report.table(one))
        options.show(report.summary(one))
    if file is not None:
        report.write(reports, file)
        click.echo(f"wrote {file}")
    context.exit(1 if any(one.failed for one in reports) else 0)
