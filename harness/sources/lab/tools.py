"""The tool dialect of the lab: what an episode looks like, which tools there are, and what they answer.

An episode is lines. The user asks, the model writes a call, the environment writes its result, and so on until the
model answers:

    user: what do 3 cups cost?
    call: price(cup)
    result: 7
    call: mul(3,7)
    result: 21
    answer: 21

A call is a lower-case name and one to three arguments in parentheses, separated by commas, without spaces. An argument
is a word of lower-case letters or a number of one to six digits.

| call | result |
|---|---|
| `add(a,b)`, `sub(a,b)`, `mul(a,b)` | the sum, the difference (may be negative), the product |
| `price(thing)` | the price of a thing, from the fixed table `PRICES` |
| `convert(n,unit,unit)` | an amount in a smaller unit, by the fixed table `FACTORS` |

Whatever else is called gives `error: ...` as its result. Whoever runs a closed loop lets the model write a line: a line
that starts with `CALL` is given to `respond` without it, and the answer goes back as a line that starts with `RESULT`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

USER: Final = "user: "
CALL: Final = "call: "
RESULT: Final = "result: "
ANSWER: Final = "answer: "
ERROR: Final = "error: "

PRICES: Final[Mapping[str, int]] = {
    **{"apple": 2, "bag": 9, "ball": 4, "bell": 5, "book": 8, "bowl": 3, "box": 6, "cup": 7},
    **{"fork": 2, "hat": 9, "key": 3, "lamp": 8, "map": 5, "pen": 2, "ring": 9, "rope": 4},
}
FACTORS: Final[Mapping[tuple[str, str], int]] = {
    ("m", "cm"): 100,
    ("km", "m"): 1000,
    ("kg", "g"): 1000,
    ("min", "sec"): 60,
    ("week", "day"): 7,
    ("year", "month"): 12,
}
LARGEST_OPERAND: Final = 49

_CALL: Final = re.compile(r"([a-z]{1,12})\(([a-z0-9]{1,12}(?:,[a-z0-9]{1,12}){0,2})\)")
_NUMBER: Final = re.compile(r"[0-9]{1,6}")
_CALCULATOR: Final[Mapping[str, Callable[[int, int], int]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
}


def respond(call: str) -> str:
    """Executes a call of the dialect, such as `add(12,30)`, and gives its result.

    Pure and total: a call that is not of the dialect, and a tool, a thing or a unit there is not, give `error: ...`.
    """
    parsed = _CALL.fullmatch(call)
    if parsed is None:
        return f"{ERROR}not a call"
    name, arguments = parsed[1], tuple(parsed[2].split(","))
    if name in _CALCULATOR:
        return _calculate(name, arguments)
    if name == "price":
        return _price(arguments)
    return _convert(arguments) if name == "convert" else f"{ERROR}no such tool"


def _calculate(name: str, arguments: tuple[str, ...]) -> str:
    if len(arguments) != 2 or not all(_NUMBER.fullmatch(one) for one in arguments):
        return f"{ERROR}{name} takes two numbers"
    return str(_CALCULATOR[name](*map(int, arguments)))


def _price(arguments: tuple[str, ...]) -> str:
    found = PRICES.get(arguments[0]) if len(arguments) == 1 else None
    return f"{ERROR}no such thing" if found is None else str(found)


def _convert(arguments: tuple[str, ...]) -> str:
    if len(arguments) != 3 or not _NUMBER.fullmatch(arguments[0]):
        return f"{ERROR}convert takes a number and two units"
    factor = FACTORS.get((arguments[1], arguments[2]))
    return f"{ERROR}no such conversion" if factor is None else str(int(arguments[0]) * factor)


@dataclass(frozen=True)
class Episode:
    """A request and the calls that answer it, each with its result. The last result is the answer."""

    request: str
    calls: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The user's line."""
        return f"{USER}{self.request}\n"

    @property
    def results(self) -> tuple[str, ...]:
        return tuple(map(respond, self.calls))

    @property
    def answer(self) -> str:
        """What follows the user's line: calls with their results, then the answer, without the last newline."""
        results = self.results
        steps = [f"{CALL}{call}\n{RESULT}{result}\n" for call, result in zip(self.calls, results, strict=True)]
        return "".join(steps) + f"{ANSWER}{results[-1]}"


def draw_episode(rng: random.Random) -> Episode:
    """Gives an episode of one call (three in four), two or three."""
    makers = (_calculation, _calculation, _single_price, _conversion, _conversion, _calculation, _cost, _difference)
    return rng.choice(makers)(rng)


def _calculation(rng: random.Random) -> Episode:
    name, said = rng.choice((("add", "plus"), ("sub", "minus"), ("mul", "times")))
    largest = 9 if name == "mul" else LARGEST_OPERAND
    a, b = rng.randint(0, largest), rng.randint(0, largest)
    if name == "sub":
        a, b = max(a, b), min(a, b)
    asked = rng.choice((f"what is {a} {said} {b}?", f"compute {a} {said} {b}."))
    return Episode(asked, (f"{name}({a},{b})",))


def _single_price(rng: random.Random) -> Episode:
    thing = rng.choice(tuple(PRICES))
    asked = rng.choice((f"what does one {thing} cost?", f"price of one {thing}?", f"how much is one {thing}?"))
    return Episode(asked, (f"price({thing})",))


def _conversion(rng: random.Random) -> Episode:
    large, small = rng.choice(tuple(FACTORS))
    amount = rng.randint(2, 99)
    asked = rng.choice((f"how many {small} are {amount} {large}?", f"give {amount} {large} in {small}."))
    return Episode(asked, (f"convert({amount},{large},{small})",))


def _cost(rng: random.Random) -> Episode:
    thing, count = rng.choice(tuple(PRICES)), rng.randint(2, 9)
    plural = f"{thing}es" if thing.endswith("x") else f"{thing}s"
    asked = rng.choice((f"what do {count} {plural} cost?", f"price of {count} {plural}?"))
    return Episode(asked, (f"price({thing})", f"mul({count},{PRICES[thing]})"))


def _difference(rng: random.Random) -> Episode:
    things = rng.sample(tuple(PRICES), 2)
    high, low = sorted(things, key=lambda thing: -PRICES[thing])
    asked = f"how much more than one {low} does one {high} cost?"
    return Episode(asked, (f"price({high})", f"price({low})", f"sub({PRICES[high]},{PRICES[low]})"))
