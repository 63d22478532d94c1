"""The items of our own tasks: the same for everyone, each with one right answer, and the right one marked."""

import json
import re
from pathlib import Path

import pytest

from harness.evaluations.tasks import offline
from harness.evaluations.tasks.offline import geography, instructions
from harness.evaluations.tasks.offline.checkers import CHECKERS
from tests.evaluations.tasks.worlds import artifacts

CHOICES = ["geography", "functions", "cloze", "reading", "arithmetic"]


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[dict]]]:
    given = artifacts(tmp_path_factory.mktemp("artifacts"))
    return {name.removeprefix(offline.PREFIX): task.items(given) for name, task in offline.TASKS.items()}


@pytest.mark.parametrize("name", offline.TASKS)
def test_items_are_the_same_every_time_and_have_names_of_their_own(name: str, tmp_path: Path) -> None:
    given = artifacts(tmp_path)
    first, second = (offline.TASKS[name].items(given) for _ in range(2))
    assert first == second
    ids = [item["id"] for items in first.values() for item in items]
    assert len(ids) == len(set(ids)) > 1


@pytest.mark.parametrize("name", CHOICES)
def test_choices_differ_and_one_of_them_is_marked(name: str, splits) -> None:
    for item in splits[name]["test"]:
        assert len({choice.lower() for choice in item["choices"]}) == len(item["choices"]) >= 2
        assert 0 <= item["answer"] < len(item["choices"])


@pytest.mark.parametrize("name", ["geography", "cloze", "reading", "arithmetic"])
def test_the_right_answer_stands_at_every_place_about_equally_often(name: str, splits) -> None:
    places = [item["answer"] for item in splits[name]["test"]]
    expected = len(places) / len(splits[name]["test"][0]["choices"])
    # Five standard deviations of a count of n draws with probability 1/k are under 5 sqrt(n/k).
    assert all(abs(places.count(place) - expected) <= 5 * expected**0.5 for place in set(places))


def test_marked_sums_are_right_and_the_others_are_near_misses(splits) -> None:
    for item in splits["arithmetic"]["test"]:
        a, sign, b = item["question"].removesuffix(" =").split()
        value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]
        offered = [int(choice) for choice in item["choices"]]
        assert offered[item["answer"]] == value
        assert {abs(one - value) for one in offered} <= {0, 1, 2, 10}


def test_written_sums_are_the_same_sums(splits) -> None:
    asked = {item["id"]: item for item in splits["arithmetic"]["test"]}
    for item in splits["arithmetic_write"]["test"]:
        chosen = asked[item["id"]]
        assert chosen["choices"][chosen["answer"]] == item["answer"]


def test_the_passage_says_where_the_thing_is(splits) -> None:
    for item in splits["reading"]["test"]:
        thing = re.search(r"Now the (\w+) is in the$", item["question"])[1]
        place = re.search(rf"put the {thing} in the (\w+)\.", item["question"])[1]
        assert item["choices"][item["answer"]] == place


def test_what_geography_marks_is_what_the_data_say(splits, tmp_path: Path) -> None:
    folder = artifacts(tmp_path)["geonames"].path
    countries = json.loads((folder / geography.MEMBERS[0]).read_text())
    for item in splits["geography"]["test"]:
        kind, code = item["id"].split("-")
        right, here = item["choices"][item["answer"]], countries[code]
        if kind == "neighbour":
            near = {countries[key]["name"] for key in here["neighbours"].split(",")}
            assert [choice in near for choice in item["choices"]].count(True) == 1
            assert right in near
        else:
            expected = {"capital": here["capital"], "currency": here["currencyname"]}
            assert right == expected.get(kind, f"The {here['continentcode']}")


def test_small_countries_are_left_out(splits) -> None:
    assert not any(item["id"].endswith("8") for item in splits["geography"]["test"])


def test_the_function_that_the_data_name_is_marked(splits) -> None:
    for item in splits["functions"]["test"]:
        assert item["choices"][item["answer"]] == item["id"].replace("multiple_", "get_")


def test_the_word_to_find_was_said_before_and_so_were_the_other_choices(splits) -> None:
    assert splits["cloze"]["test"]
    for item in splits["next_word"]["test"]:
        assert item["word"] in item["passage"].split()
    for item in splits["cloze"]["test"]:
        assert set(item["choices"]) <= set(item["passage"].split())


def test_passages_whose_cost_is_measured_are_equally_long(splits) -> None:
    assert {len(item["text"]) for item in splits["text"]["test"]} == {800}


def test_every_form_comes_equally_often_and_asks_for_checks_that_exist(splits) -> None:
    items = splits["instructions"]["test"][: 10 * len(instructions.FORMS)]
    counts = [sum(item["category"] == form for item in items) for form in instructions.FORMS]
    assert counts == [10] * len(instructions.FORMS)
    assert {check["check"] for item in items for check in json.loads(item["checks"])} <= set(CHECKERS)


def test_an_answer_that_ignores_the_instruction_rarely_passes(splits) -> None:
    floors = [item["chance"] for item in splits["instructions"]["test"]]
    assert 0 < sum(floors) / len(floors) < 0.1


def test_every_task_has_its_configuration_beside_it() -> None:
    for task in offline.TASKS.values():
        assert task.config()["task"] == task.name
