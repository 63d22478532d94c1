"""What the published run of every quantizer says, checked on its records."""

from itertools import pairwise
from pathlib import Path

import pytest

from harness.matrix import load
from harness.record import Outcome, Record
from harness.store import Store

STORE = Store(Path(__file__).parent.parent.parent / "results" / "published" / "quantizers")
RECORDS = STORE.records
LAB, SMOLLM2 = "lab", "smollm2-135m-instruct"


def of(family: str, pipeline: str) -> Record:
    (found,) = [
        record
        for record in RECORDS
        if (record.cell.model.family, record.cell.pipeline.name) == (family, pipeline)
        and "kv" not in record.cell.runtime.args
    ]
    return found


def kl(family: str, pipeline: str) -> float:
    return next(metric.value for metric in of(family, pipeline).metrics if metric.name == "kl_mean")


def kept_in_fewer_bits(family: str, runtime: str, kv: str) -> float:
    (found,) = [
        record
        for record in RECORDS
        if (record.cell.model.family, record.cell.runtime.use) == (family, runtime)
        and record.cell.runtime.args.get("kv") == kv
    ]
    return next(metric.value for metric in found.metrics if metric.name == "kl_mean")


def test_every_cell_of_the_matrix_has_a_row_and_none_failed() -> None:
    outcomes = {record.cell.id: record.outcome for record in RECORDS}
    assert set(outcomes) == {cell.id for cell in load("quantizers").cells()}
    assert set(outcomes.values()) == {Outcome.OK, Outcome.EMULATED, Outcome.UNSUPPORTED}


def test_what_is_unsupported_says_why() -> None:
    without = [record for record in RECORDS if record.outcome is Outcome.UNSUPPORTED]
    assert all(record.error and len(record.error.reason) > 20 for record in without)


@pytest.mark.parametrize("family", [LAB, SMOLLM2])
def test_fewer_bits_are_further_away_and_gptq_is_no_further_than_plain_rounding(family) -> None:
    ladder = ["rtn-int8", "gptq-int4", "rtn-int4", "rtn-int3", "rtn-int2"]
    assert all(kl(family, near) < kl(family, far) for near, far in pairwise(ladder))
    tuned = ["gptq-int8", "gptq-int4", "gptq-int3", "gptq-int2"]
    assert all(kl(family, near) < kl(family, far) for near, far in pairwise(tuned))


@pytest.mark.parametrize("family", [LAB, SMOLLM2])
@pytest.mark.parametrize("kind", ["Q4_K_M", "Q2_K"])
def test_an_importance_matrix_does_not_harm(family, kind) -> None:
    assert kl(family, f"gguf-{kind}-imatrix") <= kl(family, f"gguf-{kind}")


@pytest.mark.parametrize(
    ("trained", "rounded"),
    [("qad-int4", "rtn-int4-symmetric"), ("qad-int2", "rtn-int2-symmetric"), ("qad-nvfp4", "nvfp4")],
)
def test_training_towards_its_own_predictions_brings_a_model_no_further_away(trained, rounded) -> None:
    assert kl(LAB, trained) <= kl(LAB, rounded)


@pytest.mark.parametrize(
    ("distilled", "taught"), [("qad-nvfp4", "qat-nvfp4"), ("qad-int4", "qat-int4"), ("qad-int2", "qat-int2")]
)
def test_distilled_stays_nearer_to_the_original_than_trained_on_text(distilled, taught) -> None:
    assert kl(LAB, distilled) < kl(LAB, taught)


@pytest.mark.parametrize(
    ("family", "one", "other", "factor"),
    [
        (LAB, "gptq-int4", "gptqmodel-int4", 1.25),
        (LAB, "gptq-int3", "gptqmodel-int3", 1.25),
        (SMOLLM2, "gptq-int4", "gptqmodel-int4", 1.25),
        (LAB, "awq-int4", "gptqmodel-awq-int4", 1.25),
        (LAB, "torchao-int8", "quanto-int8", 1.25),
        (LAB, "nvfp4", "torchao-nvfp4", 1.25),
        (LAB, "mxfp8", "torchao-mxfp8", 1.5),
        (LAB, "mxfp4-both", "torchao-mxfp4", 1.25),
    ],
)
def test_two_libraries_agree_on_one_method(family, one, other, factor) -> None:
    first, second = kl(family, one), kl(family, other)
    assert max(first, second) <= factor * min(first, second)


def test_the_search_pays_at_the_same_budget() -> None:
    assert kl(LAB, "mixed-4.5") < kl(LAB, "mixed-4.5-random")
    assert kl(LAB, "mixed-4.5") <= kl(LAB, "mixed-4.5-uniform")
    assert kl(LAB, "mixed-6") < kl(LAB, "mixed-4.5") < kl(LAB, "mixed-3.5")


def test_average_bits_are_those_that_were_asked_for() -> None:
    for pipeline, budget in (("mixed-3.5", 3.5), ("mixed-4.5", 4.5), ("mixed-6", 6.0)):
        proofs = [step.notes["coverage"] for step in of(LAB, pipeline).artifact.costs if "coverage" in step.notes]
        assert budget - 0.5 < proofs[-1]["bits_per_quantized_weight"] <= budget


@pytest.mark.parametrize("family", [LAB, SMOLLM2])
def test_a_cache_of_fewer_bits_is_further_away(family) -> None:
    eight, four = (kept_in_fewer_bits(family, "llama_cpp", kv) for kv in ("q8_0", "q4_0"))
    assert eight < four
    eight, four = (kept_in_fewer_bits(family, "transformers", kv) for kv in ("int8", "int4"))
    assert eight < four


def test_every_packed_row_carries_its_proof() -> None:
    for record in RECORDS:
        if (
            record.outcome.is_measured
            and record.cell.pipeline.stages
            and not record.cell.pipeline.name.startswith("modelopt")
        ):
            assert any("coverage" in step.notes for step in record.artifact.costs), record.cell
