"""Whose manner a student has: texts of candidate teachers train a classifier, the student's texts are shown to it.

A student that learned from a teacher's texts or distributions takes over habits that no score shows: turns of phrase,
the order of parts of speech. If a classifier that has only ever read teachers puts a student's texts down to its own
teacher more often than guessing would, the footprint is there. Two rows of a report, a student and the same student
quantized, are asked the same prompts with the same random numbers, so whether compression wipes it out is a paired
comparison.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, final

from harness.errors import Unsupported
from harness.evaluations.footprint.classifier import Attribution, Classifier, Example, cross_validated
from harness.evaluations.footprint.features import FEATURES, TOP, Features, reader
from harness.evaluations.footprint.summary import PROBABILITY, TEACHERS, metrics
from harness.evaluations.footprint.teachers import candidate, truth
from harness.interfaces import EvaluationContext, GenerateRequest, Session
from harness.record import Metric, Observation, Scalar
from harness.sources.corpus import CorpusArgument, corpus_need, read_documents
from harness.spec import Need, Use, digest
from harness.stages.capture.continuations import CaptureContinuations, cut_prompts, read_continuations

NAME = "footprint"
PROMPTS = "footprint prompts"
FEWEST = 10
SEEDS = 2**31


@final
@dataclass(frozen=True)
class Footprint:
    """Which of several candidate teachers a model's texts are put down to.

    Measures: accuracy, the share of the model's texts that a classifier of the teachers' texts puts down to its true
              teacher, against 1/k for k candidates; `share.<teacher>` for each candidate; `separability`, how often the
              classifier is right about the teachers' own texts (cross-validated by prompt), the ceiling for a student.
              Intervals are Wilson's. Rows keep every text with its probabilities.
    Needs:    a runtime with `generate`; two or more `teachers`, each `reference`, a source, or {source, revision, args,
              stages}; a corpus to take prompts from. Teachers continue `samples` beginnings of training documents (by
              `capture.continuations`), the model as many of held-out documents, none of which a teacher was given.
              `features` are `ngrams` (words, 1 to 3), `characters` (2 to 4) or `pos`, which needs nltk's tagger.
    Why:      shows whether a student carries its teacher's manner, and whether quantizing it wipes that out.
    Known:    the true teacher is read from the lineage: the last distiller whose `teacher`, or the model that wrote its
              `corpus`, is a candidate. One that names neither learned from the family's reference: list that as
              `reference`. Where none is found there are shares and no accuracy. A student has one teacher, so a
              classifier that leans to it is right for nothing: compare shares before and after distillation. Intervals
              hold the classifier fixed. No share is better than another; they are listed as if more were. At the
              default temperature of 1 models write what they were trained to match; colder, small models repeat
              themselves.
    Source:   S. Wadhwa, C. Shaib, S. Amir, B. Wallace, Who Taught You That?, arXiv 2502.06659: logistic regression on
              the 50 most frequent templates of four parts of speech of each teacher; n-grams are its baseline.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("sklearn",)
    extra: ClassVar[str | None] = "tasks"
    requires: ClassVar[frozenset[str]] = frozenset({"generate"})

    teachers: Mapping[str, object]
    prompts: CorpusArgument = "docstrings:default"
    samples: int = 200
    prompt_words: int = 16
    max_tokens: int = 64
    temperature: float = 1.0
    features: Features = "ngrams"

    def __post_init__(self) -> None:
        if not isinstance(self.teachers, Mapping) or len(self.teachers) < 2:
            raise ValueError(f"teachers is {self.teachers!r}; allowed: two or more, by name")
        for name in self.teachers:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"a teacher is called {name!r}; allowed: letters, digits, dots, dashes, underscores")
        if len({need.id for need in self.candidates.values()}) < len(self.teachers):
            raise ValueError("two teachers are the same model; allowed: each once")
        if self.features not in FEATURES:
            raise ValueError(f"features is {self.features!r}; allowed: {', '.join(FEATURES)}")
        if self.samples < FEWEST:
            raise ValueError(f"samples is {self.samples}; allowed: from {FEWEST}")
        assert self._capture  # which refuses what the teachers' stage would refuse

    @property
    def candidates(self) -> dict[str, Need]:
        """The teachers' models by name, names in alphabetical order."""
        return {name: candidate(self.teachers[name]) for name in sorted(self.teachers)}

    @property
    def needs(self) -> tuple[Need, ...]:
        capture = Use.model_validate({"use": "capture.continuations", "args": asdict(self._capture)})
        captured = [
            need.model_copy(update={"name": _texts_of(name), "stages": (*need.stages, capture)})
            for name, need in self.candidates.items()
        ]
        return (corpus_need(self.prompts).model_copy(update={"name": PROMPTS}), *captured)

    @property
    def task(self) -> str:
        """Names the question, so that two footprints in one suite stay apart."""
        said = {name: need.canonical() for name, need in self.candidates.items()}
        return f"{' or '.join(said)} by {self.features} {digest([said, asdict(self._capture)])[:6]}"

    def observe(self, session: Session, *, context: EvaluationContext) -> Iterator[Observation]:
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

        take_apart = reader(self.features)
        context.progress(0.0, "learning the teachers' manners")
        examples = [
            Example(name, one.prompt, take_apart(one.text))
            for name in self.candidates
            for one in read_continuations(context.artifacts[_texts_of(name)])
        ]
        documents, given = read_documents(context.artifacts[PROMPTS], "heldout"), {one.prompt for one in examples}
        prompts = cut_prompts(documents, words=self.prompt_words, count=self.samples, without=given)
        requests = self._requests(session, prompts, context.seed)
        with threadpool_limits(context.hardware.threads):
            classifier = Classifier.train(examples, top=TOP[self.features])
            ceiling = cross_validated(examples, top=TOP[self.features])
        yield from (self._teacher_row(*pair) for pair in zip(examples, ceiling, strict=True))
        teacher = truth(context.artifact.lineage, self.candidates)
        for done, (index, text) in enumerate(_texts(session, requests)):
            context.progress(done / len(prompts), f"{done} of {len(prompts)} texts written")
            found = classifier.attribute([take_apart(text)])[0]
            yield self._student_row(prompts[index], text, found=found, teacher=teacher)

    def summarize(self, observations: Sequence[Observation]) -> tuple[Metric, ...]:
        return metrics(observations)

    @property
    def _capture(self) -> CaptureContinuations:
        """What the teachers are asked to write."""
        return CaptureContinuations(
            corpus=self.prompts,
            samples=self.samples,
            prompt_words=self.prompt_words,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )

    def _requests(self, session: Session, prompts: Sequence[str], seed: int) -> list[GenerateRequest]:
        """Gives the requests. Raises Unsupported when one does not fit into the context."""
        encoded = [session.encode(prompt, bos=True) for prompt in prompts]
        longest = max(map(len, encoded)) + self.max_tokens
        if longest > session.max_length:
            raise Unsupported(
                f"prompt and continuation are {longest} tokens and this runtime's context holds {session.max_length}",
                remedy="set a smaller `prompt_words` or `max_tokens`",
            )
        return [
            GenerateRequest(tokens, self.max_tokens, temperature=self.temperature, seed=_seed(seed, prompt))
            for tokens, prompt in zip(encoded, prompts, strict=True)
        ]

    def _teacher_row(self, example: Example, found: Attribution) -> Observation:
        # No `score`: a report averages and compares those, and these rows are the same for every model.
        values = {**_told(found), "truth": example.author}
        sample = f"{example.author} {_hash(example.prompt)}"
        return Observation(evaluation=NAME, task=TEACHERS + self.task, sample=sample, values=values)

    def _student_row(self, prompt: str, text: str, *, found: Attribution, teacher: str | None) -> Observation:
        values = {**_told(found), "characters": len(text), "response": text, "prompt_hash": _hash(prompt)}
        if teacher is not None:
            right: dict[str, Scalar] = {"score": float(found.author == teacher), "chance": 1 / len(self.teachers)}
            values |= {"truth": teacher, **right}
        return Observation(evaluation=NAME, task=self.task, sample=f"prompt {_hash(prompt)}", values=values)


def _texts(session: Session, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each request as it ends."""
    for token in session.generate(requests):
        if token.finish is not None:
            assert token.text is not None, "the last token of a request carries its text"
            yield token.request, token.text


def _told(found: Attribution) -> dict[str, Scalar]:
    probabilities = {PROBABILITY + name: value for name, value in found.probabilities.items()}
    return {"predicted": found.author, **probabilities}


def _texts_of(teacher: str) -> str:
    return f"footprint of {teacher}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _seed(seed: int, prompt: str) -> int:
    """Gives a request's own seed: the same for one prompt in every cell, whichever other prompts are asked."""
    return int(hashlib.sha256(f"{seed} {prompt}".encode()).hexdigest(), 16) % SEEDS
