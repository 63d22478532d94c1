"""The verbs that judge: compare, gate, baseline, noise and nightly."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from harness import cli_options as options
from harness.cli_options import FOLDER

if TYPE_CHECKING:
    from harness.gate.verdict import Decision

policy_option = click.option(
    "--policy", default="nightly", show_default=True, help="Policy: a shipped name or a YAML file."
)
strict_option = click.option("--strict", is_flag=True, help="Exit 3 when something is neither proven good nor bad.")


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--policy", default="compare", show_default=True, help="Policy: a shipped name or a YAML file.")
@click.option("--out", type=FOLDER, default=None, help="Folder for compare.md and compare.json.  [default: print only]")
def compare(a: str, b: str, policy: str, out: Path | None) -> None:
    """Compare B with A: two runs, two cells (FOLDER:pipeline=NAME,runtime=NAME) or two records."""
    from harness import gating
    from harness.gate.terminal import comparison_view

    found = gating.compare(a, b, policy=gating.load_policy(policy))
    for one in found:
        options.console().print(comparison_view(one))
    options.show(f"only in {a}: {cell}" for cell in gating.left_out(a, b))
    for file in gating.write_comparisons(found, out) if out else ():
        click.echo(f"wrote {file}")


@click.group(invoke_without_command=True)
@policy_option
@click.option("--baseline", "name", default=None, help="Name of the baseline.")
@click.option("--records", type=FOLDER, default=None, help="Records to judge.  [default: where the baseline was taken]")
@options.results
@click.option("--out", type=FOLDER, default="reports/gate", show_default=True, help="Folder of the decision's files.")
@strict_option
@click.pass_context
def gate(context: click.Context, /, policy: str, name: str | None, **where: Any) -> None:
    """Judge records against a baseline by a policy; the exit code is the answer.

    0 go, 1 regressed, 2 usage or configuration, 3 inconclusive (with --strict), 4 not comparable or numbers missing.
    A proven regression is never hidden: 2 comes before everything, then 1, then 4, then 3.
    """
    from harness import baselines, gating
    from harness.store import Store

    if context.invoked_subcommand is not None:
        given = [one for one in context.params if context.get_parameter_source(one) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"options of {context.invoked_subcommand} stand behind it")
        return
    if name is None:
        raise click.UsageError("--baseline is missing; harness baseline list shows those there are")
    pinned = baselines.load(name, results=where["results"])
    store = Store(where["records"] or Path(pinned.pin.origin))
    decision = gating.decide(store, pinned, gating.load_policy(policy), strict=where["strict"])
    context.exit(tell(decision, where["out"]))


def tell(decision: Decision, out: Path) -> int:
    """Writes and prints a decision, for GitHub too where that is what runs us; gives the exit code."""
    from harness import gating
    from harness.gate.terminal import decision_view

    files = gating.write(decision, out)
    options.console().print(decision_view(decision))
    for file in files:
        click.echo(f"wrote {file}")
    for_github(decision)
    return decision.exit_code


def for_github(decision: Decision) -> None:
    """Prints annotations and adds the step summary where GitHub runs us."""
    from harness import gating
    from harness.gate import github

    if os.environ.get("GITHUB_ACTIONS") == "true":
        options.show(github.annotations(decision))
        gating.append_summary(decision, os.environ.get("GITHUB_STEP_SUMMARY"))


@gate.command()
@policy_option
@click.option("--records", type=FOLDER, default=None, help="Records of `harness run gate`.  [default: shipped counts]")
@click.option("--nights", type=click.IntRange(min=1), default=20_000, show_default=True, help="Nights to simulate.")
@click.option("--out", type=FOLDER, default="reports/gate", show_default=True, help="Folder of the report.")
@click.pass_context
def selftest(context: click.Context, /, policy: str, records: Path | None, nights: int, out: Path) -> None:
    """Test the gate itself: false alarms, and how often planted losses are found.

    Exits with 1 when a goal was missed.
    """
    from harness import gating
    from harness.gate.selftest import Simulated
    from harness.gate.selftest_markdown import summary

    def tell(one: Simulated) -> None:
        click.echo(summary(one), err=True)

    found = gating.selftest(gating.load_policy(policy), records=records, nights=nights, progress=tell)
    options.show(f"missed: {name}" for name in found.missed)
    for file in gating.write_selftest(found, out):
        click.echo(f"wrote {file}")
    click.echo(f"{found.cpu_s:.0f} s of processor time")
    context.exit(1 if found.missed else 0)


@click.group()
def baseline() -> None:
    """Records that others are held against, pinned by digest."""


@baseline.command(name="set")
@click.argument("name")
@click.argument("records", type=FOLDER)
@click.option("--noise", type=FOLDER, default=None, help="Records of the reference measured again: its noise floor.")
@options.results
def set_(name: str, records: Path, noise: Path | None, results: Path) -> None:
    """Make the records in the folder RECORDS the baseline NAME; nothing else ever does."""
    from harness import gating

    pinned = gating.pin(name, records, noise=noise, results=results)
    click.echo(f"{pinned.name} is now {pinned.digest}: {len(pinned.cells)} cells from {pinned.origin}")


@baseline.command(name="list")
@options.results
def list_(results: Path) -> None:
    """List baselines with their digests."""
    from harness import baselines

    for name in baselines.names(results):
        pinned = baselines.load(name, results=results).pin
        click.echo(f"{name}  {pinned.digest}  {pinned.set_at}  {len(pinned.cells)} cells from {pinned.origin}")


@baseline.command()
@click.argument("name")
@options.results
def show(name: str, results: Path) -> None:
    """Show what the baseline NAME holds, and its earlier versions."""
    from harness import baselines

    *before, current = baselines.versions(name, results=results)
    click.echo(f"{name}  {current.digest}, set {current.set_at} from {current.origin}")
    click.echo(f"noise floor: {'pinned' if current.has_noise else 'not measured'}")
    options.show(f"  {cell}" for cell in current.cells)
    options.show(f"before: {one.digest}, set {one.set_at} from {one.origin}" for one in reversed(before))


@click.command()
@click.argument("matrix")
@options.where
def noise(matrix: str, results: Path, home: Path | None) -> int:
    """Measure the references of MATRIX again under other orders, batches and seeds: what changes by itself."""
    from harness import matrix as matrices
    from harness.noise import aa_matrix
    from harness.running import run_matrix

    code, folder = run_matrix(aa_matrix(matrices.load(matrix), launches=2), results=results, home=home)
    click.echo(f"pin it with a baseline: harness baseline set NAME RECORDS --noise {folder}")
    return code


@click.command()
@click.argument("matrix")
@policy_option
@click.option("--baseline", "name", default=None, help="Name of the baseline.  [default: that of the matrix]")
@strict_option
@options.where
@click.option("--out", type=FOLDER, default="reports/nightly", show_default=True, help="Folder of the reports.")
def nightly(matrix: str, policy: str, name: str | None, **where: Any) -> int:
    """Run MATRIX anew, judge it against its baseline, time it by turns, report; one exit code (see gate).

    A night that was killed goes on where it stopped. Without a baseline everything is measured and the exit code is 4.
    """
    from harness import gating
    from harness import nightly as nights
    from harness.cache import home as default_home
    from harness.gate.terminal import decision_view

    results, strict = where["results"], where["strict"]
    with options.display() as display:
        places = nights.Places(results, where["home"] or default_home(), where["out"], display)
        night = nights.start(matrix, gating.load_policy(policy), name, places, strict=strict)
    if night.decision is None:
        click.echo("there is no baseline to judge by; if this night is good, make it one:")
        click.echo(f"    harness baseline set {night.baseline} {night.folder} --results {results}")
    else:
        options.console().print(decision_view(night.decision))
        for_github(night.decision)
    options.show(f"wrote {file}" for file in night.files)
    return night.exit_code
