"""Parts of a task: no document is lost, none is asked twice, and names do not depend on how a task is cut."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from harness.evaluations.tasks._documents import in_part, shuffled, told_apart

names = st.lists(st.text(max_size=4), max_size=60).map(told_apart)


@given(names=names, count=st.integers(1, 12))
def test_parts_are_disjoint_nearly_equal_and_together_the_whole(names: list[str], count: int) -> None:
    parts = [in_part(names, [number, count]) for number in range(1, count + 1)]
    assert Counter(name for part in parts for name in part) == Counter(names)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@given(names=names, count=st.integers(1, 12), seed=st.integers(1, 9))
def test_a_part_does_not_depend_on_the_order_of_the_documents(names: list[str], count: int, seed: int) -> None:
    assert in_part(shuffled(names, seed), [1, count]) == in_part(names, [1, count])


def test_a_part_is_no_run_of_neighbours() -> None:
    chosen = in_part([str(number) for number in range(1000)], [1, 5])
    # Of 200 draws out of 1000 about 40 fall into each fifth of the range; a run of neighbours would fill one.
    fifths = Counter(int(name) // 200 for name in chosen)
    assert all(20 <= fifths[fifth] <= 60 for fifth in range(5))


@given(given_names=st.lists(st.sampled_from("abc"), max_size=20))
def test_equal_names_are_told_apart_in_the_order_they_came(given_names: list[str]) -> None:
    apart = told_apart(given_names)
    assert len(set(apart)) == len(given_names)
    assert [name.partition("-")[0] for name in apart] == given_names


@given(items=st.lists(st.integers(), unique=True, max_size=40), seed=st.integers(0, 5))
def test_shuffling_loses_nothing_and_seed_0_changes_nothing(items: list[int], seed: int) -> None:
    assert sorted(shuffled(items, seed)) == sorted(items)
    assert shuffled(items, 0) == items
