"""Matrix files: what they mean, and what every kind of mistake in one says."""

from pathlib import Path

import pytest

from harness import matrix
from harness.errors import SpecError

GOOD = """\
name: tiny
models:
  - {family: fake, source: "fake:table"}
pipelines:
  - {name: reference}
  - name: blurred
    stages:
      - {use: fake.blur, args: {noise: 1.0}}
runtimes: [{use: fake}, {use: other}]
suites: [suite.yaml]
seeds: [0, 1]
exclude:
  - {pipeline: "bl*", runtime: other, reason: "other cannot"}
"""
SUITE = "name: suite\nversion: 1\nevaluations: [{use: fake.greedy}]\n"


@pytest.fixture
def write(tmp_path: Path):
    (tmp_path / "suite.yaml").write_text(SUITE)

    def written(text: str, name: str = "matrix.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return written


def test_a_matrix_is_the_product_of_its_axes_without_exclusions(write) -> None:
    loaded = matrix.load(write(GOOD))
    # 1 model x 2 pipelines x 2 runtimes x 1 hardware x 1 suite x 2 seeds = 8; blurred on other, 2 seeds, is out.
    assert len(list(loaded.combinations())) == 8
    assert len(list(loaded.cells())) == 6
    assert {rule.reason for _, rule in loaded.combinations() if rule} == {"other cannot"}


def test_one_of_two_ways_to_use_a_runtime_can_be_left_out_by_its_arguments(write) -> None:
    two_ways = GOOD.replace("{use: other}", "{use: fake, args: {seconds: 1}}").replace(
        "runtime: other", "runtime: '*seconds=*'"
    )
    loaded = matrix.load(write(two_ways))
    kept = {(cell.pipeline.name, str(cell.runtime)) for cell in loaded.cells()}
    assert kept == {("reference", "fake"), ("blurred", "fake"), ("reference", "fake(seconds=1)")}


@pytest.mark.parametrize(
    ("change", "line", "key", "said"),
    [
        (("seeds:", "sedes:"), 11, "sedes", "did you mean 'seeds'?"),
        (("noise: 1.0}", "noise: 1.0}, arg: {}"), 8, "pipelines[1].stages[0].arg", "did you mean 'args'?"),
        (("family: fake, ", ""), 3, "models[0].family", "a key is missing"),
        (("seeds: [0, 1]", "seeds: [zero]"), 11, "seeds[0]", "integer"),
        (("fake:table", "table"), 3, "models[0].source", "scheme:reference"),
        (("reason: ", "raeson: "), 13, "exclude[0]", "reason"),
    ],
)
def test_a_mistake_names_the_file_the_line_the_key_and_what_is_allowed(write, change, line, key, said) -> None:
    file = write(GOOD.replace(*change))
    with pytest.raises(SpecError) as caught:
        matrix.load(file)
    text = str(caught.value)
    assert f"{file}:{line}" in text
    assert key in text
    assert said in text


def test_a_key_that_stands_twice_is_refused_and_both_lines_are_named(write) -> None:
    with pytest.raises(SpecError, match="twice") as caught:
        matrix.load(write(GOOD + "seeds: [3]\n"))
    assert "matrix.yaml:14" in str(caught.value)
    assert "line 11" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a list", "a: [1", "a: !!python/object:os.system {}"])
def test_what_is_not_a_mapping_of_plain_yaml_is_refused(write, text) -> None:
    with pytest.raises(SpecError):
        matrix.load(write(text))


def test_an_unknown_suite_lists_those_that_are_shipped(write) -> None:
    with pytest.raises(SpecError) as caught:
        matrix.load(write(GOOD.replace("suite.yaml", "quickstrat")))
    assert "did you mean 'quickstart'?" in str(caught.value)


def test_a_missing_file_is_one_clear_error(tmp_path) -> None:
    with pytest.raises(SpecError, match="No such file"):
        matrix.load(str(tmp_path / "none.yaml"))


def test_two_pipelines_may_share_neither_a_name_nor_their_stages(write) -> None:
    twin = "  - {name: reference}\n"
    with pytest.raises(SpecError, match="share a name"):
        matrix.load(write(GOOD.replace(twin, twin * 2)))
    with pytest.raises(SpecError, match="do the same"):
        matrix.load(write(GOOD.replace(twin, twin + "  - {name: other}\n")))


def test_a_suite_puts_what_it_includes_first(write, tmp_path) -> None:
    write("name: more\nversion: 2\ninclude: [suite.yaml]\nevaluations: [{use: probe}]\n", "more.yaml")
    suite = matrix.load_suite("more.yaml", beside=tmp_path)
    assert [use.use for use in suite.evaluations] == ["fake.greedy", "probe"]


def test_a_suite_that_includes_itself_is_refused(write, tmp_path) -> None:
    write("name: a\nversion: 1\ninclude: [a.yaml]\n", "a.yaml")
    with pytest.raises(SpecError, match="includes itself"):
        matrix.load_suite("a.yaml", beside=tmp_path)


def test_a_family_without_one_reference_is_refused() -> None:
    from harness.spec import Model
    from tests.world import matrix as world_matrix

    variant = Model(family="fake", source="fake:table", role="variant")
    with pytest.raises(SpecError, match="exactly one model"):
        world_matrix(model=variant).reference_of(variant)
