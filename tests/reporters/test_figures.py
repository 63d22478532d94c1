import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.reporters.figures import Figures
from harness.reporters.frontier import frontier
from harness.reporters.labels import Box, Label, Scene
from tests.reporters.world import FakeResults, answers, cell, record, whole_comparison

NAMES = ["pareto_size.png", "pareto_size.svg", "pareto_speed.png", "pareto_speed.svg", "heatmap.png", "heatmap.svg"]


@pytest.fixture(scope="module")
def results():
    return whole_comparison()


@pytest.fixture(scope="module")
def figures(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("figures")
    assert [file.name for file in Figures().render(results, out)] == NAMES
    return out


def test_the_same_records_give_the_same_bytes(results, figures, tmp_path):
    turned = FakeResults(results.rows, list(reversed(results.kept)))
    for file in Figures().render(turned, tmp_path):
        assert file.read_bytes() == (figures / file.name).read_bytes(), file.name


def test_figures_are_pictures_of_a_size_to_send(figures):
    for name in NAMES:
        data = (figures / name).read_bytes()
        assert data.startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
        assert len(data) < 400_000


def test_titles_say_what_is_shown_and_how_many_items(figures):
    size, speed, heat = ((figures / f"{name}.svg").read_text() for name in ("pareto_size", "pareto_speed", "heatmap"))
    assert "Retention against size: smollm2-135m" in size
    assert "Retention against decode speed-up: smollm2-135m" in speed
    assert all("n = 1,050 paired items" in text for text in (size, speed))
    assert "Retention by task and pipeline: smollm2-135m" in heat
    assert "n = 250" in heat


def test_every_compared_pipeline_is_named_and_emulated_ones_have_no_speed(figures):
    size, speed = ((figures / f"{name}.svg").read_text() for name in ("pareto_size", "pareto_speed"))
    # q8_0 ran on llama_cpp and, emulated, on transformers
    assert size.count(">q8_0<") == 2
    assert speed.count(">q8_0<") == 1
    assert ">q2_k<" in size


def test_a_users_own_style_changes_nothing(results, figures, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.grid": True}):
        Figures().render(results, tmp_path)
    assert (tmp_path / "pareto_size.png").read_bytes() == (figures / "pareto_size.png").read_bytes()


def test_nothing_to_compare_draws_nothing(tmp_path):
    results = FakeResults()
    results.add(record(cell("reference"), a := answers("arc", [1.0, 0.0])), a)
    assert list(Figures().render(results, tmp_path)) == []


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@settings(deadline=None)
@given(POINTS)
def test_the_frontier_is_what_no_other_point_dominates(points):
    def beaten(point):
        return any(a <= point[0] and b <= point[1] and (a, b) != point for a, b in points)

    assert {points[index] for index in frontier(points)} == {point for point in points if not beaten(point)}


def test_labels_of_near_points_do_not_cover_each_other():
    labels = [Label(100 + 3 * i, 100 + 2 * i, 50, 10) for i in range(6)]
    dots = tuple(Box(label.x - 4, label.y - 4, label.x + 4, label.y + 4) for label in labels)
    boxes = Scene(dots, Box(0, 0, 300, 200)).place(labels)
    overlaps = [a.overlap(b) for i, a in enumerate(boxes) for b in boxes[:i]]
    assert sum(overlaps) == 0
    assert all(box.outside(Box(0, 0, 300, 200)) == 0 for box in boxes)


def test_a_label_in_a_corner_stays_inside():
    bounds = Box(0, 0, 100, 100)
    (box,) = Scene((), bounds).place([Label(99, 99, 60, 10)])
    assert box.outside(bounds) == 0
