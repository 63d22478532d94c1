"""The matrix that measures references again, so that a gate knows what changes although nothing changed.

    floor = noise_floor(store)          # after a run of aa_matrix(matrix); see `harness.gate.noise`

From any matrix it keeps the references and drops every compression. Varied are
- the order in which items are asked, and with it what shares a batch, where an evaluation takes an `order_seed`; only
  those evaluations are run again in another order;
- how many requests share a batch, where a runtime takes `batch_tokens`, `max_batch_tokens` or `sequences`: an eighth of
  each, all together, which is concurrency as runtimes offer it;
- the seed, if more than one of `launches` is asked for. A greedy task gives the same answers to
  every seed, so that is how speed is measured again, and pure repetition for answers.

Not varied are types, kernels, threads and the machine. Runtimes of the matrix are compared with each other by what they
are: no cell is added for it. Suites keep their names, so exclusions and policies fit them as before; cells differ in
their arguments and so in their identity. What fits into an eighth of a batch, and a task of no more documents than are
asked at once (32), share batches as before and show less noise than larger ones. Every variation multiplies the cells:
a reference, a runtime and a suite make six (three orders, two batches). With a seed other than 0 conversions are built
anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from harness import plugins
from harness.errors import SpecError
from harness.gate.noise import BATCHING, ORDER
from harness.matrix import Matrix
from harness.spec import Pipeline, Suite, Use

ORDERS = (1, 2)
SHRINK = 8
"""Half a batch would still hold all of a small suite, and nothing would be rounded otherwise."""


def aa_matrix(matrix: Matrix, *, orders: tuple[int, ...] = ORDERS, launches: int = 1) -> Matrix:
    """Gives the matrix that measures the references of a matrix under other conditions.

    `orders` are the seeds of other orders, beside the suites' own; `launches` is how often each cell is launched, each
    time with a seed of its own. Raises SpecError when the matrix has no reference.
    """
    assert launches >= 1
    references = tuple(model for model in matrix.models if model.role == "reference")
    if not references:
        raise SpecError(
            "the matrix has no reference to measure again", key="models", remedy="give a family a `role: reference`"
        )
    plain = next((pipeline for pipeline in matrix.pipelines if not pipeline.stages), Pipeline(name="reference"))
    return matrix.model_copy(
        update={
            "name": f"{matrix.name}-noise",
            "models": references,
            "pipelines": (plain,),
            "runtimes": tuple(dict.fromkeys(use for runtime in matrix.runtimes for use in _batchings(runtime))),
            "suites": tuple(dict.fromkeys(other for suite in matrix.suites for other in _orders(suite, orders))),
            "seeds": tuple(range(matrix.seeds[0], matrix.seeds[0] + launches)),
        }
    )


def _batchings(runtime: Use) -> Iterator[Use]:
    """Yields a runtime as it is, and with an eighth of what it may run together if it says how much that is."""
    yield runtime
    given = {field.name: field.default for field in fields(plugins.load("runtimes", runtime.use))} | runtime.args
    sizes = {name: value for name in sorted(BATCHING) if isinstance(value := given.get(name), int) and value > 1}
    if sizes:
        yield Use(
            use=runtime.use, args={**runtime.args, **{name: max(1, value // SHRINK) for name, value in sizes.items()}}
        )


def _orders(suite: Suite, orders: tuple[int, ...]) -> Iterator[Suite]:
    """Yields a suite as it is, and in other orders if one of its evaluations has an order to draw."""
    yield suite
    movable = [use for use in suite.evaluations if _has_order(use)]
    for seed in orders if movable else ():
        drawn = tuple(Use(use=use.use, args={**use.args, ORDER: seed}) for use in movable)
        yield suite.model_copy(update={"evaluations": drawn})


def _has_order(use: Use) -> bool:
    return any(field.name == ORDER for field in fields(plugins.load("evaluations", use.use)))
