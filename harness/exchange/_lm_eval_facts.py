"""What lm-eval's results tell about the machine, the libraries and how the model was loaded; only what is stated."""

from __future__ import annotations

import re
from typing import Any

from pydantic import JsonValue

from harness.exchange.reading import Node

STATED = {
    "cpu_model": re.compile(r"^Model name:\s*(\S.*)$", re.MULTILINE),
    "cpu_threads": re.compile(r"^CPU\(s\):\s*(\d+)$", re.MULTILINE),
    "os": re.compile(r"^OS:\s*(\S.*)$", re.MULTILINE),
    "python": re.compile(r"^Python version:\s*(\S+)", re.MULTILINE),
    "gpu": re.compile(r"^(?:GPU models and configuration:\s*)?GPU 0:\s*(\S.*)$", re.MULTILINE),
    "torch": re.compile(r"^PyTorch version:\s*(\S+)$", re.MULTILINE),
}
"""Lines of `torch.utils.collect_env`, which lm-eval stores as one text."""
NAMES = ("pretrained", "model", "path", "engine")
"""Arguments of lm-eval's backends that name the model; the source says it already."""
RUN_FACTS = ("model_num_parameters", "model_dtype", "batch_size", "random_seed", "numpy_seed", "torch_seed")


def machine(results: Node) -> dict[str, JsonValue]:
    """Gives hard facts, libraries and facts of the run."""
    told = results.get("pretty_env_info").value
    found: dict[str, str] = {}
    if isinstance(told, str):
        found = {name: match[1].strip() for name, line in STATED.items() if (match := line.search(told))}
    torch = found.pop("torch", None)
    libraries: dict[str, Any] = {
        "lm-eval": results.get("lm_eval_version").value,
        "transformers": results.get("transformers_version").value,
        "torch": torch,
    }
    config = results.need("config")
    facts = {key: config.get(key).value for key in RUN_FACTS}
    facts |= {key: results.get(key).value for key in ("git_hash", "chat_template_sha", "max_length")}
    hard: dict[str, JsonValue] = {name: int(value) if name == "cpu_threads" else value for name, value in found.items()}
    known = {"hard": hard, "libraries": _known(libraries), "run": _known(facts)}
    return {name: table for name, table in known.items() if table}


def loading(results: Node, source: str) -> dict[str, Any]:
    """Gives the revision and the arguments a model was loaded with, as fields of a `Model`."""
    config = results.need("config")
    arguments = _arguments(config.get("model_args"))
    revision = config.get("model_sha").value or arguments.pop("revision", None) or config.get("model_revision").value
    kept = {key: value for key, value in arguments.items() if key not in NAMES}
    return {"args": kept, "revision": str(revision) if revision and source.startswith("hub:") else None}


def _arguments(said: Node) -> dict[str, JsonValue]:
    """Reads `a=b,c=d`, or a mapping as it is."""
    if said.value is None:
        return {}
    if isinstance(said.value, str):
        pairs = (part.partition("=") for part in said.text().split(",") if part)
        return {key.strip(): value.strip() for key, _, value in pairs}
    return dict(said.mapping())


def _known(facts: dict[str, Any]) -> dict[str, JsonValue]:
    return {key: value for key, value in facts.items() if value not in (None, "", "N/A")}
