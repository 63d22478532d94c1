"""The tool dialect: calls are executed, anything else is refused, and episodes follow from their calls."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.sources.lab.tools import ANSWER, CALL, ERROR, RESULT, USER, draw_episode, respond


@pytest.mark.parametrize(
    ("call", "result"),
    [
        ("add(12,30)", "42"),
        ("sub(3,10)", "-7"),
        ("mul(6,7)", "42"),
        ("price(cup)", "7"),
        ("convert(3,km,m)", "3000"),
        ("convert(2,week,day)", "14"),
    ],
)
def test_a_call_gives_its_result(call, result) -> None:
    assert respond(call) == result


@pytest.mark.parametrize(
    "call",
    [
        *("", "add", "add()", "add(1)", "add(1,2,3)", "add(1, 2)", "add(1,2", " add(1,2)", "add(1,2)\n", "add(1,two)"),
        *("add(-1,2)", "add(1.5,2)", "add(1234567,1)", "add(1,2)add(1,2)", "ADD(1,2)", "add(१,२)"),
        *("pow(9,9)", "exit(0)", "__import__(os)", "import(os)", "price(moon)", "price(cup,pen)", "price(7)"),
        *("convert(3,m,km)", "convert(km,m)", "convert(x,km,m)", "convert(3,km)", "a" * 10_000 + "(1)"),
    ],
)
def test_what_is_no_call_of_the_dialect_is_refused(call) -> None:
    assert respond(call).startswith(ERROR)


@given(call=st.text() | st.from_regex(r"[a-z]{1,9}\([a-z0-9,]{0,20}\)", fullmatch=True))
def test_whatever_is_called_gives_one_line(call) -> None:
    assert respond(call)
    assert "\n" not in respond(call)


def test_a_closed_loop_over_the_lines_of_an_episode_gives_its_results() -> None:
    for number in range(300):
        episode = draw_episode(random.Random(number))
        lines = (episode.prompt + episode.answer).split("\n")
        assert lines[0] == USER + episode.request
        assert lines[-1].startswith(ANSWER)
        for call, result in zip(lines[1:-1:2], lines[2:-1:2], strict=True):
            assert result == RESULT + respond(call.removeprefix(CALL))
            assert not result.startswith(RESULT + ERROR)
        assert lines[-1].removeprefix(ANSWER) == lines[-2].removeprefix(RESULT)


def test_about_a_quarter_of_the_episodes_need_more_than_one_call() -> None:
    lengths = [len(draw_episode(random.Random(number)).calls) for number in range(2000)]
    # 2 makers of 8 have 2 and 3 calls: mean 500, standard deviation sqrt(2000 / 4 * 3 / 4) = 19.4; five either side.
    assert 403 < sum(length > 1 for length in lengths) < 597
    assert set(lengths) == {1, 2, 3}
