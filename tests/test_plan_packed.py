"""A packed model in a plan: who opens it, who is refused and why, and when its outcome is called emulated."""

import pytest

from harness.interfaces import Artifact
from harness.plan import make
from harness.spec import Model, Use
from harness.testing import installed
from tests.world import World, matrix

PACK = Use(use="packs")
ENTRY_POINTS = """
[harness.stages]
packs = tests.test_plan_packed:Packs
"""


class Packs:
    """Does: nothing, in the format packed."""

    version = "1"
    requirements = ()
    extra = None
    consumes = frozenset({"hf"})
    produces = "packed"
    emulated = False
    needs = ()

    def apply(self, source: Artifact, out, *, context) -> None:
        raise AssertionError("never run")


@pytest.fixture
def planned(tmp_path):
    def plan(*stages: Use, runtime: str = "transformers"):
        model = Model(family="a", source="hub:someone/model", revision="0" * 40)
        world = World(tmp_path)
        given = matrix(stages, model=model, runtime=Use(use=runtime), evaluations=[Use(use="probes.load")])
        found = make(given, cache=world.cache, store=world.store, home=world.cache.root)
        item = next(item for item in found.items if item.cell.pipeline.stages)
        return item, found.builds.get(item.artifact)

    with installed(tmp_path / "plugins", ENTRY_POINTS):
        yield plan


def test_the_transformers_runtime_opens_what_is_packed_as_it_is(planned):
    item, build = planned(PACK)
    assert (item.status, build.format, build.emulated) == ("run", "packed", False)


@pytest.mark.parametrize(
    "after",
    [
        Use(use="distill.logits", args={"tokens": 4096, "corpus": "docstrings:numpy"}),
        Use(use="prune.depth", args={"keep": 2}),
        Use(use="quantize.rtn", args={"bits": 4}),
    ],
    ids=str,
)
def test_what_needs_plain_weights_is_refused_after_packing_and_told_where_to_stand(planned, after):
    item, _ = planned(PACK, after)
    assert item.status == "refused"
    assert "packed into codes and scales" in item.reason
    assert item.remedy == f"put {after.use} before packs in the pipeline"


def test_a_runtime_that_cannot_open_it_is_refused_with_a_remedy_for_runtimes(planned):
    item, _ = planned(PACK, runtime="llama_cpp")
    assert item.status == "refused"
    assert item.reason.endswith("gives packed")
    assert "choose a runtime that opens packed" in item.remedy
