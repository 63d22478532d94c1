"""Plans: what is refused before anything runs, what is shared, and what is not run again."""

import pytest

from harness.errors import PluginNotFound, SpecError
from harness.record import Outcome
from harness.spec import Hardware, Use
from tests.world import World, blur, matrix

pytestmark = pytest.mark.usefixtures("fakes")


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


def test_a_prefix_shared_by_pipelines_is_one_build(world) -> None:
    plan = world.plan(matrix([blur(1.0)], [blur(1.0), blur(2.0)], [blur(1.0), blur(3.0)]))
    # One fetch, the shared blur(1), blur(2) and blur(3) on top of it.
    assert len(plan.builds) == 4


def test_what_is_recorded_is_not_run_again_until_a_plugin_changes_its_version(world, monkeypatch) -> None:
    from harness.testing import FakeGreedy

    world.run(matrix([blur()]))
    assert [item.status for item in world.plan(matrix([blur()])).items] == ["done", "done"]
    monkeypatch.setattr(FakeGreedy, "version", "2")
    assert [item.status for item in world.plan(matrix([blur()])).items] == ["run", "run"]


def test_an_unknown_plugin_is_refused_with_the_closest_name(world) -> None:
    with pytest.raises(PluginNotFound, match=r"did you mean 'fake.blur'\?"):
        world.plan(matrix([Use(use="fake.blurr")]))


@pytest.mark.parametrize(
    ("args", "said"),
    [({"nois": 1.0}, "did you mean 'noise'?"), ({"noise": 1.0, "zzz": 2}, "allowed:")],
)
def test_an_unknown_argument_is_refused_with_those_allowed(world, args, said) -> None:
    with pytest.raises(SpecError) as caught:
        world.plan(matrix([Use(use="fake.blur", args=args)]))
    assert said in str(caught.value)


def test_a_format_no_one_can_convert_is_refused_in_the_table_and_nowhere_skipped(world) -> None:
    given = matrix([Use(use="quantize.gguf", args={"type": "Q8_0"})])
    assert [item.status for item in world.plan(given).items] == ["run", "refused"]
    records = world.run(given)
    assert {record.outcome for record in records} == {Outcome.UNSUPPORTED, Outcome.OK}
    refused = next(record for record in records if record.outcome is Outcome.UNSUPPORTED)
    assert "quantize.gguf opens" in refused.error.reason
    assert world.run(given) == []


def test_a_device_this_machine_has_not_is_refused_with_a_remedy(world) -> None:
    given = matrix().model_copy(update={"hardware": (Hardware(name="gpu", device="cuda"),)})
    item = world.plan(given).items[0]
    assert (item.status, "does not run on cuda" in item.reason) == ("refused", True)


def test_a_teacher_is_built_before_its_student(world) -> None:
    plan = world.plan(matrix([blur(1.0, teacher=True)]))
    labels = [build.label for build in plan.builds_for(plan.items[1])]
    assert labels == ["fetch fake:table", "fake.blur(noise=1.0, teacher=true)"]
