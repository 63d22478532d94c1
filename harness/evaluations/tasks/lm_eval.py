"""Any task of lm-evaluation-harness, asked through whatever runtime is open.

The prompts, the few-shot examples, the filters and the scores are lm-eval's own: its task object builds the requests, a
thin language model (`_language_model`) hands them to our session, and the task object judges the answers. What differs
from `lm_eval run` is what is kept: one row an item, with the identity of the item and of the prompt, so that two models
can be compared item by item and a better statistic can be computed later from the same rows. Items run in chunks of
documents, so rows are stored while the rest is still running.

`task` is a name of lm-eval's (`arc_easy`, `mmlu`, `gsm8k`), whose data come from the Hugging Face hub, or one of ours
(`offline_*`, see `harness.evaluations.tasks.offline`), whose data are made here or come out of small packages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from harness.evaluations.tasks import offline
from harness.evaluations.tasks._summary import summarize
from harness.interfaces import EvaluationContext, Session
from harness.record import Metric, Observation
from harness.spec import Need

NAME = "tasks.lm_eval"


@final
@dataclass(frozen=True)
class LmEval:
    """Scores of one lm-eval task, item by item.

    Measures:
        The task's own metrics (`acc`, `acc_norm`, `exact_match`, `bits_per_byte`, ...) for every item. The metric named
        by `metric`, else the first one the task lists under its first filter, is the item's `score` if it is a mean of
        values in 0..1. Multiple choice also keeps `margin`, the log-probability of the right answer minus that of the
        best wrong one: it moves long before an answer flips. Written answers keep whether they were `truncated` at the
        token limit and, where a filter searches for the answer, whether none was found (`unparsed`); `truncated_share`
        and `unparsed_share` count them. With `cluster`, a field of the documents (a passage's name, an article's
        title), rows say which items hang together.
    Needs:
        A runtime that can score and generate; a chat template if `chat`; the hub for lm-eval's own tasks, or the small
        packages that an `offline_*` task names.
    Why:
        Scores that are not computed exactly as everybody computes them cannot be compared with anybody's.
    Known:
        `limit` takes the first items, as lm-eval does. Few-shot examples are drawn with lm-eval's seed 1234, and with
        `chat` they become turns of the conversation. A text longer than the context is cut into windows one token
        shorter than lm-eval's Hugging Face backend makes them, because our `max_length` counts the last token too.
        Metrics that a task aggregates with a function of its own are named in a caveat and not summarized. A group
        (`mmlu`) is averaged over its items, which is lm-eval's default for groups. `part: [k, K]` asks the k-th of K
        random parts of the items (after `limit`; of a group, of each of its tasks), for comparisons that may stop
        early. `order_seed` draws the order in which documents are asked, and so what shares a batch; prompts and names
        stay the same, and 0 is the task's own order. An answer whose last token allowed ends the text by chance still
        counts as truncated.
    Source:
        EleutherAI lm-evaluation-harness 0.4.13, `lm_eval/evaluator.py` and `lm_eval/models/huggingface.py`.
    """

    task: str
    limit: int | None = None
    num_fewshot: int | None = None
    chat: bool = False
    metric: str | None = None
    cluster: str | None = None
    part: Sequence[int] | None = None
    order_seed: int = 0

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("lm_eval", "datasets")
    extra: ClassVar[str | None] = "tasks"
    requires: ClassVar[frozenset[str]] = frozenset({"score", "generate"})

    def __post_init__(self) -> None:
        if not self.task:
            raise ValueError("task is empty; allowed: a task of lm-eval, or one of " + ", ".join(sorted(offline.TASKS)))
        if self.task.startswith(offline.PREFIXES) and self.task not in offline.TASKS:
            raise ValueError(f"task {self.task!r} is not there; allowed: {', '.join(sorted(offline.TASKS))}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; allowed: a number of items from 1, or none for all")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise ValueError(f"num_fewshot is {self.num_fewshot}; allowed: 0 or more, or none for the task's own")
        if self.part is not None and not _is_part(self.part):
            raise ValueError(f"part is {self.part}; allowed: [k, K], the k-th of K parts, or none for all items")
        if self.order_seed < 0:
            raise ValueError(f"order_seed is {self.order_seed}; allowed: 0 for the task's own order, or more")

    @property
    def needs(self) -> tuple[Need, ...]:
        found = offline.TASKS.get(self.task)
        return found.needs if found else ()

    @property
    def is_offline(self) -> bool:
        """True for a task of ours, whose documents carry their own `id`, `category` and `chance`."""
        return self.task in offline.TASKS

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        from harness.evaluations.tasks._language_model import SessionLM
        from harness.evaluations.tasks._loading import load_tasks
        from harness.evaluations.tasks._running import Running

        model = SessionLM(session, seed=context.seed)
        tasks = load_tasks(self.task, context.artifacts)
        for number, (name, task) in enumerate(tasks.items()):
            running = Running(self, name, task, model)
            running.prepare()
            for fraction, rows in running.run():
                yield from rows
                context.progress((number + fraction) / len(tasks), f"{self.task}: {name}")

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        return summarize(NAME, self.task, observations)


def _is_part(given: Sequence[int]) -> bool:
    return len(given) == 2 and all(type(number) is int for number in given) and 1 <= given[0] <= given[1]
