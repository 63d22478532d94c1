"""Plug-ins by name, found through entry points and imported only when used.

Built-ins are declared in the same groups as anyone's (`harness.stages`, `harness.runtimes`, ...), so there is one way
in. A name that is not there lists those that are and suggests the closest; a plug-in whose module is broken raises
its own import error.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from typing import Any, Literal, cast, get_args

from harness.errors import PluginNotFound, SpecError, closest
from harness.interfaces import Evaluation, Plugin, Reporter, Runtime, Source, Stage
from harness.spec import Model, Need, Use

Kind = Literal["sources", "stages", "runtimes", "evaluations", "reporters", "importers", "exporters"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@cache
def installed(kind: Kind) -> Mapping[str, metadata.EntryPoint]:
    """Gives the entry points of a kind by name, without importing any."""
    return {point.name: point for point in sorted(metadata.entry_points(group=f"harness.{kind}"), key=lambda p: p.name)}


def load(kind: Kind, name: str) -> type[Any]:
    """Imports a plug-in's class. Raises PluginNotFound, or whatever the module itself raises."""
    points = installed(kind)
    if name not in points:
        raise PluginNotFound(
            f"there is no plug-in {name!r} among the {kind}",
            found=name,
            allowed=points,
            remedy=closest(name, points) or f"`harness list` shows what is installed; {kind} come from packages",
        )
    return cast("type[Any]", points[name].load())


def build(kind: Kind, use: Use) -> Any:
    """Builds a plug-in with its arguments; an argument it does not take, or refuses, is a SpecError."""
    return _construct(load(kind, use.use), use.use, kind, (), dict(use.args))


def _construct(plugin: type[Any], name: str, kind: Kind, positional: tuple[Any, ...], args: dict[str, Any]) -> Any:
    allowed = [p for p in inspect.signature(plugin).parameters.values() if p.kind is not p.VAR_KEYWORD][
        len(positional) :
    ]
    names = {p.name for p in allowed}
    unknown = sorted(set(args) - names)
    if unknown:
        hint = closest(unknown[0], names)
        raise SpecError(
            f"{kind[:-1]} {name} has no such argument", key=unknown[0], found=unknown[0], allowed=names, remedy=hint
        )
    missing = sorted(p.name for p in allowed if p.default is p.empty and p.name not in args)
    if missing:
        raise SpecError(
            f"{kind[:-1]} {name} needs an argument", key=missing[0], allowed=names, remedy=f"add `{missing[0]}`"
        )
    try:
        return plugin(*positional, **args)
    except (TypeError, ValueError) as wrong:
        raise SpecError(
            f"{kind[:-1]} {name} refuses its arguments: {wrong}", found=args, remedy=f"`harness explain {name}`"
        ) from wrong


def stage(use: Use) -> Stage:
    """Builds a stage."""
    return cast(Stage, build("stages", use))


def runtime(use: Use) -> Runtime:
    """Builds a runtime."""
    return cast(Runtime, build("runtimes", use))


def evaluation(use: Use) -> Evaluation:
    """Builds an evaluation."""
    return cast(Evaluation, build("evaluations", use))


def reporter(use: Use) -> Reporter:
    """Builds a reporter."""
    return cast(Reporter, build("reporters", use))


def source(origin: Model | Need) -> Source:
    """Builds the source that a model or a need names by its scheme."""
    scheme, _, reference = origin.source.partition(":")
    args = {"revision": origin.revision, **origin.args} if origin.revision else dict(origin.args)
    return cast(Source, _construct(load("sources", scheme), scheme, "sources", (reference,), args))


def missing_modules(plugin: Plugin | type[Plugin]) -> tuple[str, ...]:
    """Gives the modules a plug-in requires that cannot be found here; looks them up without importing them."""
    return tuple(name for name in plugin.requirements if not _is_importable(name))


def _is_importable(module: str) -> bool:
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@dataclass(frozen=True)
class Listing:
    """A plug-in as `harness list` shows it."""

    kind: Kind
    name: str
    distribution: str
    requirements: tuple[str, ...]
    missing: tuple[str, ...]
    extra: str | None
    broken: str | None = None


def listings() -> list[Listing]:
    """Gives every installed plug-in; one whose module cannot be imported is listed with its error."""
    return [_listing(kind, point) for kind in KINDS for point in installed(kind).values()]


def _listing(kind: Kind, point: metadata.EntryPoint) -> Listing:
    distribution = point.dist.name if point.dist else "unknown"
    try:
        plugin = point.load()
    except ImportError as error:
        return Listing(kind, point.name, distribution, (), (), None, broken=str(error))
    return Listing(kind, point.name, distribution, plugin.requirements, missing_modules(plugin), plugin.extra)
