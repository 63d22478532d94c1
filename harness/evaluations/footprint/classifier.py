"""Who wrote this: logistic regression from the pieces of a text to its author, learned from teachers' texts alone.

The student's texts are never trained on. How well the teachers can be told apart at all is measured on their own texts
by cross-validation: the ceiling of whatever is said about a student. Texts on one prompt share its topic and, between
equal models, every word, so a prompt is wholly in one fold; and the pieces that count are chosen anew from each fold's
training texts, or the choice would have seen the texts it is tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from harness.errors import Unsupported
from harness.evaluations.footprint.features import Pieces, matrix, vocabulary

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

FOLDS = 5
ITERATIONS = 1000


@dataclass(frozen=True)
class Attribution:
    """The probability that each author wrote a text, by name."""

    probabilities: dict[str, float]

    @property
    def author(self) -> str:
        """The likeliest; of equally likely ones the alphabetically first."""
        return max(sorted(self.probabilities), key=self.probabilities.__getitem__)


@dataclass(frozen=True)
class Example:
    """A text of a known author, taken apart, and the prompt it continues."""

    author: str
    prompt: str
    pieces: Pieces


@dataclass(frozen=True)
class Classifier:
    """A fitted classifier and the pieces it looks at."""

    vocabulary: tuple[str, ...]
    model: LogisticRegression

    @classmethod
    def train(cls, examples: Sequence[Example], *, top: int) -> Self:
        """Fits the classifier; no random numbers take part. Raises Unsupported when the texts have no pieces."""
        from sklearn.linear_model import LogisticRegression

        texts, authors = [one.pieces for one in examples], [one.author for one in examples]
        pieces = vocabulary(texts, authors, top=top)
        if not pieces:
            remedy = "raise `max_tokens`, or use `features: characters`"
            raise Unsupported("the teachers wrote nothing that these features count", remedy=remedy)
        model = LogisticRegression(max_iter=ITERATIONS)
        return cls(pieces, model.fit(matrix(texts, pieces), authors))

    def attribute(self, texts: Sequence[Pieces]) -> list[Attribution]:
        """Gives each text's probable authors."""
        found = self.model.predict_proba(matrix(texts, self.vocabulary)).tolist()
        return [Attribution(dict(zip(map(str, self.model.classes_), row, strict=True))) for row in found]


def cross_validated(examples: Sequence[Example], *, top: int) -> list[Attribution]:
    """Gives, in the order of the examples, what a classifier says that has not seen any text on their prompt."""
    fold = {prompt: rank % FOLDS for rank, prompt in enumerate(sorted({one.prompt for one in examples}))}
    found: dict[int, Attribution] = {}
    for held_out in range(FOLDS):
        inside = [index for index, one in enumerate(examples) if fold[one.prompt] == held_out]
        classifier = Classifier.train([one for one in examples if fold[one.prompt] != held_out], top=top)
        found.update(zip(inside, classifier.attribute([examples[index].pieces for index in inside]), strict=True))
    return [found[index] for index in range(len(examples))]
