"""The matrix of references measured again: what it varies, what it leaves out, and a run of it."""

import pytest

from harness import plugins
from harness.errors import SpecError
from harness.gate.noise import noise_floor
from harness.matrix import Exclusion, Matrix
from harness.noise import aa_matrix
from harness.spec import Model, Pipeline, Suite, Use
from tests.world import World, blur, matrix

TASK = Use(use="tasks.lm_eval", args={"task": "offline_reading", "limit": 8})
PROBE = Use(use="probes.load")
LLAMA = Use(use="llama_cpp", args={"sequences": 5})


def given(**changed: object) -> Matrix:
    parts = {
        "name": "night",
        "models": (
            Model(family="a", source="path:/a"),
            Model(family="a", source="path:/b", role="variant"),
            Model(family="c", source="path:/c"),
        ),
        "pipelines": (Pipeline(name="Q4", stages=(Use(use="quantize.rtn"),)), Pipeline(name="plain")),
        "runtimes": (Use(use="transformers"), LLAMA),
        "suites": (Suite(name="s", version="2", evaluations=(TASK, PROBE)),),
    }
    return Matrix(**{**parts, **changed})


def test_only_references_without_compression_are_measured_again() -> None:
    cells = list(aa_matrix(given()).cells())
    assert {cell.model.source for cell in cells} == {"path:/a", "path:/c"}
    assert all(cell.is_reference for cell in cells)
    assert {cell.pipeline.name for cell in cells} == {"plain"}


def test_batches_are_made_smaller_together_and_orders_drawn_with_every_other_argument_kept() -> None:
    made = aa_matrix(given(), orders=(7,))
    assert made.runtimes == (
        Use(use="transformers"),
        Use(use="transformers", args={"max_batch_tokens": 512}),
        LLAMA,
        # An eighth of 5 is none, and one has to run; of llama.cpp's 512 tokens it is 64.
        Use(use="llama_cpp", args={"sequences": 1, "batch_tokens": 64}),
    )
    assert [suite.evaluations for suite in made.suites] == [
        (TASK, PROBE),
        (Use(use="tasks.lm_eval", args={**TASK.args, "order_seed": 7}),),
    ]
    for runtime in made.runtimes:
        plugins.runtime(runtime)


def test_a_runtime_that_runs_one_request_at_a_time_and_a_suite_without_an_order_are_left_as_they_are() -> None:
    alone = Use(use="llama_cpp", args={"sequences": 1, "batch_tokens": 1})
    probes = Suite(name="speed", version="1", evaluations=(PROBE,))
    made = aa_matrix(given(runtimes=(alone,), suites=(probes,)), launches=3)
    assert (made.runtimes, made.suites, made.seeds) == ((alone,), (probes,), (0, 1, 2))


def test_a_reference_a_runtime_and_a_suite_make_six_cells_and_exclusions_still_fit_them() -> None:
    assert len(list(aa_matrix(given()).cells())) == 2 * 2 * 6
    left = aa_matrix(given(exclude=(Exclusion(reason="r", family="a", suite="s", runtime="llama_cpp"),)))
    assert len(list(left.cells())) == 2 * 2 * 6 - 6


def test_a_matrix_without_a_reference_is_refused() -> None:
    with pytest.raises(SpecError, match="no reference to measure again"):
        aa_matrix(given(models=(Model(family="a", source="path:/b", role="variant"),)))


@pytest.mark.usefixtures("fakes")
def test_a_model_that_is_the_same_every_time_has_a_floor_of_zero(tmp_path) -> None:
    evaluations = [Use(use="fake.greedy", args={"items": 20})]
    world, measured = World(tmp_path), matrix([blur()], evaluations=evaluations)
    world.run(aa_matrix(measured, launches=2))
    (found,) = noise_floor(world.store).answers
    assert (found.flips, found.n, found.runs, found.max_abs_difference) == (0, 20, 2, 0.0)
    assert found.flip_rate.value == 0
