"""Planning and running a matrix from the command line: what every verb that measures shares."""

from __future__ import annotations

from pathlib import Path

from harness import cli_options as options
from harness import plan
from harness.cache import Cache
from harness.cache import home as default_home
from harness.cli_options import EXIT_HOLES
from harness.executors.local import Local
from harness.matrix import Matrix
from harness.plan import Plan
from harness.show import ending, plan_lines
from harness.store import Store


def plan_matrix(matrix: Matrix, *, results: Path, home: Path | None) -> tuple[Plan, Store]:
    """Plans a matrix with the store of its name. Raises UserError."""
    folder = (home or default_home()).absolute()
    store = Store((results / matrix.name).absolute())
    return plan.make(matrix, cache=Cache(folder), store=store, home=folder), store


def run_matrix(matrix: Matrix, *, results: Path, home: Path | None) -> tuple[int, Path]:
    """Runs a matrix and tells what came of it; gives the exit code and the folder of its records."""
    made, store = plan_matrix(matrix, results=results, home=home)
    options.show(plan_lines(made, None))
    with options.display() as display:
        cache = Cache((home or default_home()).absolute())
        records = list(Local(cache, store, display).map(made))
    options.show(ending(made, records, store.root))
    failed = [record for record in records if record.outcome in ("failed", "timeout", "out_of_memory")]
    return (EXIT_HOLES if failed else 0), store.root
