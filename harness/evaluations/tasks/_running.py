"""Runs one task object of lm-eval on a session and turns every document into a row.

The steps are those of `lm_eval.evaluator.evaluate`: build all requests, answer them, filter the answers, let the task
judge each document. They are taken here chunk by chunk, a chunk being whole documents, so that the choices of a
question stay together (a runtime computes their shared context once) and rows leave while the rest still runs.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.errors import SpecError, Unsupported
from harness.evaluations.tasks._documents import Document, content_hash, in_part, shuffled, told_apart
from harness.evaluations.tasks._language_model import SessionLM
from harness.evaluations.tasks._rows import Judged, cluster_of, row
from harness.record import Observation

if TYPE_CHECKING:
    from harness.evaluations.tasks.lm_eval import LmEval

DOCUMENTS_PER_CHUNK = 32


@dataclass
class Running:
    """One task on its way: the evaluation that asked, the task's name and object, the model that answers.

    `documents` are those that will be asked, in that order; `cut` says by number which written answers were cut.
    """

    evaluation: LmEval
    name: str
    task: Any
    model: SessionLM
    documents: list[Document] = field(default_factory=list)
    cut: dict[int, bool] = field(default_factory=dict)

    def prepare(self) -> None:
        """Builds every request of the task and chooses the documents to ask.

        Raises Unsupported for tasks that need more than text in and text out, and SpecError for a part without
        documents or a cluster that they do not name.
        """
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
        self.documents = self._chosen()
        if self.evaluation.cluster is not None:
            for document in self.documents:
                cluster_of(document.requests[0].doc, self.evaluation.cluster)

    def _chosen(self) -> list[Document]:
        grouped = [list(group) for _, group in itertools.groupby(self.task.instances, key=lambda one: one.doc_id)]
        names = told_apart(self._name(requests[0].doc) for requests in grouped)
        asked = in_part(names, self.evaluation.part)
        if names and not asked and self.name == self.evaluation.task:
            allowed = f"up to {len(names)} parts of {len(names)} documents"
            found = list(self.evaluation.part or ())
            raise SpecError("the part has no documents", key="part", found=found, allowed=allowed)
        both = zip(names, grouped, strict=True)
        chosen = [Document(name, requests) for name, requests in both if name in asked]
        return shuffled(chosen, self.evaluation.order_seed)

    def _name(self, document: Any) -> str:
        name = str(document["id"]) if self.evaluation.is_offline else content_hash(document)
        return name if self.name == self.evaluation.task else f"{self.name}/{name}"

    def _set_fewshot(self) -> None:
        asked, own = self.evaluation.num_fewshot, self.task.get_config("num_fewshot")
        if own is None:
            self.task.set_config(key="num_fewshot", value=asked or 0)
        elif asked is not None and own != 0:  # lm-eval leaves a task alone that insists on none
            self.task.set_config(key="num_fewshot", value=asked)

    def run(self) -> Iterator[tuple[float, list[Observation]]]:
        """Yields the fraction done and the rows of each chunk."""
        for start in range(0, len(self.documents), DOCUMENTS_PER_CHUNK):
            chunk = self.documents[start : start + DOCUMENTS_PER_CHUNK]
            self._answer([one for document in chunk for one in document.requests])
            yield (start + len(chunk)) / len(self.documents), [self._judge(document) for document in chunk]

    def _answer(self, instances: Sequence[Any]) -> None:
        by_type: dict[str, list[Any]] = defaultdict(list)
        for instance in instances:
            by_type[instance.request_type].extend([instance] * instance.repeats)
        answer: dict[str, Callable[[Sequence[Any]], list[Any]]] = {
            "loglikelihood": lambda asked: self.model.loglikelihood(asked, disable_tqdm=True),
            "loglikelihood_rolling": self.model.loglikelihood_rolling,
            "generate_until": self._write,
        }
        for kind, asked in by_type.items():
            for instance, response in zip(asked, answer[kind](asked), strict=True):
                instance.resps.append(response)
        for ensemble in self.task._filters:
            ensemble.apply(instances)

    def _write(self, asked: Sequence[Any]) -> list[str]:
        written = self.model.write(asked)
        for instance, answer in zip(asked, written, strict=True):
            self.cut[instance.doc_id] = answer.was_cut or self.cut.get(instance.doc_id, False)
        return [answer.text for answer in written]

    def _judge(self, document: Document) -> Observation:
        ordered = sorted(document.requests, key=lambda one: one.idx)
        metrics = {
            name: self.task.process_results(ordered[0].doc, [one.filtered_resps[name] for one in ordered])
            for name in ordered[0].filtered_resps
        }
        judged = Judged(
            evaluation=self.evaluation,
            name=self.name,
            task=self.task,
            document=Document(document.sample, ordered),
            metrics=metrics,
            truncated=self.cut.get(ordered[0].doc_id),
        )
        return row(judged)
