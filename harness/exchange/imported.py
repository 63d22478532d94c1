"""What an importer gives, and how its cells are called.

An importer turns a foreign log into records like those that a run of ours leaves, with rows that can be paired item by
item. It says only what the log says: weights that nobody hashed have no digest, a machine that nobody described has no
facts, and a number that is not in the log is absent.

Importers share three arguments, because a log does not know what its model is compared with: `family` (else the
model's name), `pipeline` (a name for what was done to the model) and `role` (`reference`, or `variant` for a
compressed model that another one is the reference of).
"""

from __future__ import annotations

import re
from typing import Literal

from harness.interfaces import Imported
from harness.record import Record
from harness.spec import Hardware, Model, Pipeline

Role = Literal["reference", "variant"]
ROLES = ("reference", "variant")
UNSTATED = "not stated"


def storable(made: Imported) -> Imported:
    """Gives what it is given. Raises ValueError where its record would not come back from JSON as it is."""
    if made.record != Record.model_validate_json(made.record.model_dump_json()):
        raise ValueError("it does not survive being written (NaN, or an infinity, among the arguments)")
    return made


def check_labels(family: str | None, pipeline: str, role: str) -> None:
    """Raises ValueError unless the arguments that all importers share are well said."""
    if family is not None and not family.strip():
        raise ValueError("family is empty; allowed: a name, or none for the model's own")
    if not pipeline.strip():
        raise ValueError("pipeline is empty; allowed: a name for what was done to the model")
    if role not in ROLES:
        raise ValueError(f"role is {role!r}; allowed: {', '.join(ROLES)}")


def named(source: str, family: str | None, role: Role) -> Model:
    """Gives the model of a cell; its family is the last part of its source unless one is said."""
    return Model(family=family or re.split(r"[/:\\]", source.rstrip("/"))[-1], source=source, role=role)


def untouched(pipeline: str) -> Pipeline:
    """Gives the pipeline of a cell whose model came as it was: a name without stages."""
    return Pipeline(name=pipeline)


def device(said: str | None) -> Hardware:
    """Gives the hardware that a log names (`cuda:0`); the name says so where it names none."""
    for known in ("cpu", "cuda", "mps"):
        if said is not None and said.partition(":")[0] == known:
            return Hardware.model_validate({"name": said, "device": known})
    return Hardware(name=said or UNSTATED)
