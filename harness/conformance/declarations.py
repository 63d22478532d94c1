"""Checks of what a stage says about itself, before it runs."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import types
import typing
from typing import Any, Final

from harness import plugins
from harness.conformance.bench import Bench
from harness.conformance.verdicts import NotApplicable, require
from harness.errors import SpecError
from harness.testing import HEADINGS, check_plugin

HEAVY: Final = frozenset(
    {"torch", "transformers", "lm_eval", "llama_cpp", "vllm", "pandas", "matplotlib", "duckdb", "pyarrow", "datasets"}
    | {"gguf", "llmcompressor", "peft", "safetensors", "sklearn", "tensorflow", "jax"}
)
"""Modules that take long to import and that a plan, which builds every plug-in, does not need."""
PATIENCE_S: Final = 1.0
"""Processor time that importing and building may take; built-in stages take a hundredth of it."""
IMPOSSIBLE: Final[dict[type, object]] = {int: -1_000_003, str: "no such value"}
CHEAP = """
import json, sys, time
from harness import plugins
from harness.spec import Use
started = time.process_time()
plugins.stage(Use.model_validate_json(sys.argv[1]))
print(json.dumps([time.process_time() - started, sorted(name.partition(".")[0] for name in sys.modules)]))
"""


def declares(bench: Bench) -> str:
    """The class has what the contract asks, and its docstring the headings that `harness explain` shows."""
    plugin = type(bench.stage)
    check_plugin("stages", plugin)
    text, headings = inspect.getdoc(plugin) or "", HEADINGS["stages"]
    places = [text.find(heading) for heading in headings]
    missing = [heading for heading, place in zip(headings, places, strict=True) if place < 0]
    require(not missing, f"the docstring lacks {', '.join(missing)}")
    require(places == sorted(places), f"the docstring's headings are to come in this order: {' '.join(headings)}")
    return f"a final frozen dataclass, version {plugin.version}, docstring with {' '.join(headings)}"


def is_cheap(bench: Bench) -> str:
    """A fresh process imports and builds the stage in no time and without its libraries."""
    command = [sys.executable, "-c", CHEAP, bench.use.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1:] or ["no message"]
    require(done.returncode == 0, f"a fresh process cannot build it: {last[0]}")
    took, loaded = json.loads(done.stdout.splitlines()[-1])
    heavy = sorted(HEAVY.union(bench.stage.requirements).difference({"numpy"}) & set(loaded))
    require(not heavy, f"importing its module imports {', '.join(heavy)}: move that into `apply`")
    require(took <= PATIENCE_S, f"importing and building it takes {took:.1f} s of processor time")
    return f"{1000 * took:.0f} ms in a fresh process, no library imported"


def refuses_nonsense(bench: Bench) -> str | NotApplicable:
    """An impossible value for an argument is refused with a message that names the argument."""
    hints, tried = typing.get_type_hints(type(bench.stage)), []
    for name in inspect.signature(type(bench.stage)).parameters:
        wrong = _impossible(hints[name])
        if wrong is None:
            continue
        tried.append(name)
        use = bench.use.model_copy(update={"args": bench.use.args | {name: wrong}})
        try:
            plugins.stage(use)
        except SpecError as error:
            require(
                name in error.message, f"the refusal of {name}={wrong!r} does not name the argument: {error.message}"
            )
        else:
            raise AssertionError(f"{name}={wrong!r} is accepted: raise ValueError in __post_init__")
    if not tried:
        return NotApplicable("it has no argument that is a whole number or one of a few words")
    return f"impossible values of {', '.join(tried)} are refused by name"


def _impossible(hint: Any) -> Any:
    """Gives a value that an argument of this type cannot mean; nothing where any might be meant."""
    if typing.get_origin(hint) is typing.Literal:
        return IMPOSSIBLE[str] if isinstance(typing.get_args(hint)[0], str) else IMPOSSIBLE[int]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next((found for part in typing.get_args(hint) if (found := _impossible(part)) is not None), None)
    return IMPOSSIBLE[int] if hint is int else None
