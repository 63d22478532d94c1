"""Task objects of lm-eval by name: ours from this package, lm-eval's from its own index.

Ours never touch the network. lm-eval's take their data from the Hugging Face hub; when it cannot be reached and the
data are not in its cache, that is said at once, instead of after the half minute of retries of the hub's client.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any
from urllib.parse import urlsplit

from harness.errors import SpecError, Unsupported, closest
from harness.evaluations.tasks import offline
from harness.interfaces import Artifact

CONNECT_TIMEOUT_S = 3.0
LM_EVAL_SEEDS = {"random": 0, "numpy": 1234, "fewshot": 1234}  # those of lm_eval.simple_evaluate


def load_tasks(name: str, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """Gives the task objects that a name stands for: one, or those of a group.

    Raises SpecError when lm-eval has no such task and Unsupported when its data cannot be had here.
    """
    _seed_as_lm_eval_does()
    found = offline.TASKS.get(name)
    tasks = {name: _ours(found, artifacts)} if found else _theirs(name)
    for task in tasks.values():
        task.set_fewshot_seed(seed=LM_EVAL_SEEDS["fewshot"])
    return tasks


def _seed_as_lm_eval_does() -> None:
    """Some tasks shuffle their documents with the global generators while they are built."""
    import numpy as np

    random.seed(LM_EVAL_SEEDS["random"])
    np.random.seed(LM_EVAL_SEEDS["numpy"])


def _ours(found: offline.OfflineTask, artifacts: Mapping[str, Artifact]) -> Any:
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    splits = found.items(artifacts)
    tables = DatasetDict({split: Dataset.from_list(items) for split, items in splits.items()})
    return ConfigurableTask(config={**found.config(), "custom_dataset": lambda **_: tables})


def _theirs(name: str) -> dict[str, Any]:
    manager = _index()
    if name not in manager.all_tasks:
        allowed = "any task of lm-eval (`lm-eval ls tasks`), or " + ", ".join(sorted(offline.TASKS))
        remedy = closest(name, [*manager.all_tasks, *offline.TASKS])
        raise SpecError("there is no such task", key="task", found=name, allowed=allowed, remedy=remedy)
    with _cache_only(not _hub_is_reachable()):
        try:
            loaded = manager.load([name])
        except (ConnectionError, FileNotFoundError) as error:
            raise _no_data(name, str(error)) from error
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            raise _no_data(name, str(error)) from error
    return dict(loaded["tasks"])


@cache
def _index() -> Any:
    """Gives lm-eval's index of tasks; reading its thousands of files takes seconds, so once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _no_data(name: str, reason: str) -> Unsupported:
    ours = ", ".join(sorted(offline.TASKS))
    return Unsupported(
        f"task {name} needs a data set of the Hugging Face hub that cannot be had here: {reason.splitlines()[0]}",
        remedy=f"run once with the hub in reach, so that its cache holds the data, or use one of {ours}",
    )


def _hub_is_reachable() -> bool:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(variable) for variable in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # only the proxy knows
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.create_connection((address.hostname or "", address.port or 443), CONNECT_TIMEOUT_S).close()
    except OSError:
        return False
    return True


@contextmanager
def _cache_only(cache_only: bool) -> Iterator[None]:
    """Lets the hub's clients read their caches and nothing else, if asked to."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if cache_only:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
