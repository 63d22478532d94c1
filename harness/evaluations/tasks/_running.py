"""Runs one task object of lm-eval on a session and turns every document into a row.

The steps are those of `lm_eval.evaluator.evaluate`: build all requests, answer them, filter the answers, let the task
judge each document. They are taken here chunk by chunk, a chunk being whole documents, so that the choices of a
question stay together (a runtime computes their shared context once) and rows leave while the rest still runs.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import Unsupported
from harness.evaluations.tasks._language_model import SessionLM
from harness.evaluations.tasks._rows import Judged, row
from harness.record import Observation

if TYPE_CHECKING:
    from harness.evaluations.tasks.lm_eval import LmEval

DOCUMENTS_PER_CHUNK = 32


@dataclass
class Running:
    """One task on its way: the evaluation that asked, the task's name and object, the model that answers."""

    evaluation: LmEval
    name: str
    task: Any
    model: SessionLM
    seen: Counter[str] = field(default_factory=Counter)

    def prepare(self) -> None:
        """Builds every request of the task. Raises Unsupported for tasks that need more than text in and text out."""
        if getattr(self.task, "MULTIMODAL", False):
            raise Unsupported(f"task {self.name} shows pictures or sound", remedy="choose a task of text")
        if getattr(self.task, "UNSAFE_CODE", False):
            raise Unsupported(f"task {self.name} runs the code that the model writes", remedy="choose another task")
        self._set_fewshot()
        self.task.build_all_requests(
            limit=self.evaluation.limit,
            apply_chat_template=self.evaluation.chat,
            fewshot_as_multiturn=self.evaluation.chat,
            chat_template=self.model.apply_chat_template if self.evaluation.chat else None,
            tokenizer_name=self.model.tokenizer_name if self.evaluation.chat else "",
        )

    def _set_fewshot(self) -> None:
        asked, own = self.evaluation.num_fewshot, self.task.get_config("num_fewshot")
        if own is None:
            self.task.set_config(key="num_fewshot", value=asked or 0)
        elif asked is not None and own != 0:  # lm-eval leaves a task alone that insists on none
            self.task.set_config(key="num_fewshot", value=asked)

    def run(self) -> Iterator[tuple[float, list[Observation]]]:
        """Yields the fraction done and the rows of each chunk."""
        documents = [list(group) for _, group in itertools.groupby(self.task.instances, key=lambda one: one.doc_id)]
        for start in range(0, len(documents), DOCUMENTS_PER_CHUNK):
            chunk = documents[start : start + DOCUMENTS_PER_CHUNK]
            self._answer([one for requests in chunk for one in requests])
            yield (start + len(chunk)) / len(documents), [self._judge(requests) for requests in chunk]

    def _answer(self, instances: Sequence[Any]) -> None:
        by_type: dict[str, list[Any]] = defaultdict(list)
        for instance in instances:
            by_type[instance.request_type].extend([instance] * instance.repeats)
        answer = {
            "loglikelihood": lambda asked: self.model.loglikelihood(asked, disable_tqdm=True),
            "loglikelihood_rolling": self.model.loglikelihood_rolling,
            "generate_until": self.model.generate_until,
        }
        for kind, asked in by_type.items():
            for instance, response in zip(asked, answer[kind](asked), strict=True):
                instance.resps.append(response)
        for ensemble in self.task._filters:
            ensemble.apply(instances)

    def _judge(self, requests: Sequence[Any]) -> Observation:
        ordered = sorted(requests, key=lambda one: one.idx)
        document = ordered[0].doc
        metrics = {
            name: self.task.process_results(document, [one.filtered_resps[name] for one in ordered])
            for name in ordered[0].filtered_resps
        }
        judged = Judged(evaluation=self.evaluation, name=self.name, task=self.task, requests=ordered, metrics=metrics)
        return row(judged, seen=self.seen)
