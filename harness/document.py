"""YAML documents that know their lines, so that a mistake is reported where it stands.

`load` reads a file into a pydantic value. An unknown key, a duplicate key, a wrong type or broken YAML become one
SpecError with file and line, the key, what was found and what is allowed. Tags and anchors that build objects are not
read: the safe schema only. Numbers are those of YAML 1.2: `1e-4` is one and `2:4` is none, where PyYAML alone reads
text and 124.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from harness.errors import SpecError, closest
from harness.spec import Use

T = TypeVar("T", bound=BaseModel)
Path_ = tuple[Hashable, ...]
FLOAT = "tag:yaml.org,2002:float"


class _Loader(yaml.SafeLoader):
    """The safe schema with the numbers of YAML 1.2's core schema."""

    yaml_implicit_resolvers = {  # noqa: RUF012 the base class says how it is typed
        first: [(tag, pattern) for tag, pattern in known if tag not in ("tag:yaml.org,2002:int", FLOAT)]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


# The first pattern that fits decides, and a float's fits whole numbers too.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$|0x[0-9a-fA-F]+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    FLOAT,
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def load(file: Path, shape: type[T]) -> T:
    """Reads a YAML file into `shape`. Raises SpecError."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot read the file: {error.strerror}", file=file, remedy="check the path") from error
    return read(text, shape, origin=file)


def read(text: str, shape: type[T], *, origin: Path) -> T:
    """Reads YAML into `shape`; `origin` is where it stands, for errors. Raises SpecError."""
    file = origin
    node, plain = _parse(text, file)
    lines: dict[Path_, int] = {}
    _collect_lines(node, (), lines, file)
    try:
        return shape.model_validate(plain)
    except ValidationError as error:
        # A misspelt key is both unknown and missing; the unknown one says more.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise _spec_error(first, shape, file, lines) from None


def use(said: str, *, option: str) -> Use:
    """Gives a plug-in from what an option says: its name, or with arguments what a matrix would say. Raises SpecError.

    >>> use("{use: pipelines, args: {extrapolate_to: 8e9}}", option="--with").args
    {'extrapolate_to': 8000000000.0}
    """
    return read(said, Use, origin=Path(option)) if said.startswith("{") else Use(use=said)


def _parse(text: str, file: Path) -> tuple[yaml.Node, Any]:
    """Gives the document twice: as nodes, which know their lines, and as plain data."""
    try:
        node, plain = yaml.compose(text, Loader=_Loader), yaml.load(text, Loader=_Loader)  # noqa: S506 a SafeLoader
    except yaml.YAMLError as error:
        raise SpecError(f"this is not YAML: {error}", file=file, remedy="check indentation and quotes") from error
    if not isinstance(node, yaml.MappingNode):
        raise SpecError("the file is empty or not a mapping", file=file, remedy="write `key: value` lines")
    return node, plain


def _collect_lines(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: Path) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_lines(item, (*path, index), lines, file)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            if here in lines:
                raise SpecError(
                    "the key stands here twice",
                    file=f"{file}:{key.start_mark.line + 1}",
                    key=_dotted(here),
                    remedy=f"keep one; the first is in line {lines[here]}",
                )
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines, file)


def _spec_error(error: ErrorDetails, shape: type[BaseModel], file: Path, lines: dict[Path_, int]) -> SpecError:
    path: Path_ = tuple(part for part in error["loc"] if not (isinstance(part, str) and "[" in part))
    line = next((lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in lines), 1)
    where, key = f"{file}:{line}", _dotted(path)
    if error["type"] == "extra_forbidden":
        allowed = _keys_at(shape, path[:-1])
        near = closest(str(path[-1]), allowed)
        return SpecError(
            "unknown key", file=where, key=key, found=path[-1], allowed=allowed, remedy=near or "remove it"
        )
    if error["type"] == "missing":
        return SpecError(
            "a key is missing", file=where, key=key, allowed=_keys_at(shape, path[:-1]), remedy=f"add `{path[-1]}`"
        )
    return SpecError(
        error["msg"], file=where, key=key, found=error["input"], remedy="see the allowed form in the message"
    )


def _dotted(path: Path_) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".") or "(top)"


def _keys_at(shape: type[BaseModel], path: Path_) -> list[str]:
    """Gives the keys allowed at a path, by walking the annotations."""
    here: Any = shape
    for part in path:
        if isinstance(part, int):
            here = _model_in(here)
        else:
            model = _model_in(here)
            here = model.model_fields[str(part)].annotation if model and str(part) in model.model_fields else None
    model = _model_in(here)
    return sorted(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Finds the pydantic class inside `X`, `tuple[X, ...]`, `list[X]` or `X | None`."""
    if isinstance(annotation, type) and not typing.get_args(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in typing.get_args(annotation) if (found := _model_in(arg))), None)
