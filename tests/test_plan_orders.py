"""Any order of stages that makes sense is planned; one that cannot work is refused at once, and says why."""

from dataclasses import replace

import pytest

from harness.errors import Unsupported
from harness.plan import _keeps_grid_or_refuse, make
from harness.spec import Model, Use
from harness.stages.distill.logits import DistillLogits
from tests.world import World, matrix

PRUNE = Use(use="prune.depth", args={"keep": 2})
WANDA = Use(use="prune.wanda", args={"sparsity": 0.5})
DISTILL = Use(use="distill.logits", args={"tokens": 4096, "corpus": "docstrings:numpy"})
ROUND = Use(use="quantize.rtn", args={"bits": 4})
PACK = Use(use="quantize.gguf", args={"type": "Q4_0"})


@pytest.fixture
def planned(tmp_path):
    def plan(*stages: Use, runtime: str = "transformers"):
        model = Model(family="a", source="hub:someone/model", revision="0" * 40)
        world, given = (
            World(tmp_path),
            matrix(stages, model=model, runtime=Use(use=runtime), evaluations=[Use(use="probes.load")]),
        )
        found = make(given, cache=world.cache, store=world.store, home=world.cache.root)
        item = next(item for item in found.items if item.cell.pipeline.stages)
        return item, found.builds.get(item.artifact)

    return plan


@pytest.mark.parametrize(
    "stages",
    [
        (PRUNE, DISTILL, ROUND),
        (PRUNE, ROUND, DISTILL),
        (DISTILL, PRUNE, ROUND),
        (DISTILL, ROUND, PRUNE),
        (ROUND, PRUNE, DISTILL),
        (ROUND, DISTILL, PRUNE),
    ],
    ids=lambda stages: "-".join(use.use.split(".")[0][0].upper() for use in stages),
)
def test_all_six_orders_of_prune_distill_and_round_are_planned_and_end_emulated(planned, stages):
    item, build = planned(*stages)
    assert (item.status, build.format, build.emulated) == ("run", "grid", True)


@pytest.mark.parametrize("after", [PRUNE, DISTILL, ROUND], ids=str)
def test_what_trains_prunes_or_rounds_after_packing_is_refused_and_told_where_to_stand(planned, after):
    item, _ = planned(PACK, after, runtime="llama_cpp")
    assert item.status == "refused"
    assert "quantize.gguf" in item.reason
    assert "packed" in item.reason
    assert item.remedy == f"put {after.use} before quantize.gguf in the pipeline"


def test_zeroing_single_weights_on_a_grid_is_refused(planned):
    item, _ = planned(ROUND, WANDA)
    assert item.status == "refused"
    assert "would leave" in item.reason
    assert "before quantize.rtn" in item.remedy


def test_packing_after_rounding_is_a_packed_model_and_no_longer_emulated(planned):
    item, build = planned(ROUND, PACK, runtime="llama_cpp")
    assert (item.status, build.format, build.emulated) == ("run", "gguf", False)


def test_rounded_weights_that_llama_cpp_runs_unpacked_stay_emulated(planned):
    item, build = planned(ROUND, DISTILL, runtime="llama_cpp")
    assert (item.status, build.format, build.emulated) == ("run", "gguf", True)


def test_training_after_a_quantizer_that_does_not_say_its_grid_is_refused(planned):
    _, rounded = planned(ROUND)
    undeclared = replace(rounded, format="hf")
    with pytest.raises(Unsupported, match="does not say onto which grid"):
        _keeps_grid_or_refuse(DISTILL, DistillLogits(tokens=4096), undeclared)
    _keeps_grid_or_refuse(DISTILL, DistillLogits(tokens=4096), rounded)
