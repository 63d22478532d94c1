"""A decision as JSON that can be read back years later, and compared byte by byte.

Keys are sorted, text is ASCII, numbers are finite; the same decision always gives the same bytes. A document of another
schema is refused, never guessed at.
"""

from __future__ import annotations

import json

from pydantic import ValidationError
from pydantic_core import from_json

from harness.errors import StoreError
from harness.gate.verdict import DECISION_SCHEMA, Decision


def decision_json(decision: Decision) -> str:
    """Gives a decision as JSON for people and machines. Raises ValueError for a number that is not finite."""
    plain = decision.model_dump(mode="json")
    return json.dumps(plain, sort_keys=True, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def read_decision(text: str, *, origin: object = None) -> Decision:
    """Reads a decision; `origin` is where it stands, for errors. Raises StoreError."""
    remedy = "judge again from the records: harness gate"
    try:
        plain = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        message = f"the decision is cut short or damaged: {error}"
        raise StoreError(message, file=origin, remedy=remedy) from error
    found = plain.get("schema_version") if isinstance(plain, dict) else None
    if type(found) is not int or found != DECISION_SCHEMA:
        raise _other_schema(found, origin)
    try:
        return Decision.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = f"the decision is damaged: {first['msg']}"
        raise StoreError(message, file=origin, key=key, remedy=remedy) from error


def _other_schema(found: object, origin: object) -> StoreError:
    newer = type(found) is int and found > DECISION_SCHEMA
    return StoreError(
        "the decision has another schema" if found is not None else "this is no decision: it names no schema",
        file=origin,
        key="schema_version",
        found=found,
        allowed=str(DECISION_SCHEMA),
        remedy="upgrade the harness" if newer else "judge again from the records: harness gate",
    )
