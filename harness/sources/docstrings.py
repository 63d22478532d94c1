"""An English text corpus that every machine already has: the docstrings of installed Python packages.

Scientific packages carry megabytes of careful technical English, with a licence that lets us read it and no hub to
fetch it from. Files are parsed, never imported. The text depends on the versions installed, so those are part of the
corpus's fingerprint and of its record: numbers from two machines compare only where the fingerprints agree.
"""

from __future__ import annotations

import ast
import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar, final

from harness.errors import SourceError
from harness.interfaces import StageContext
from harness.sources.corpus import SEPARATOR, write_documents
from harness.spec import digest

# All of these come with the `quickstart` extra: torch brings networkx and sympy, lm-eval brings nltk and scikit-learn.
# torch itself would double the time to parse for a fifth more text.
DEFAULT = ("matplotlib", "networkx", "nltk", "numpy", "pandas", "scikit-learn", "scipy", "sympy")
SHORTEST_CHARACTERS = 200
HELDOUT_ONE_IN = 20
# Half the parsing time goes into packages' own tests, which hold one percent of the text.
SKIPPED_FOLDERS = frozenset({"test", "tests"})


@final
@dataclass(frozen=True)
class Docstrings:
    """Text from the docstrings of installed distributions: `docstrings:default` or `docstrings:numpy,scipy`.

    Does:   parses every Python file of the distributions, but for their tests, and takes the docstrings of modules,
            classes and functions; drops those under 200 characters and exact duplicates; puts all documents of about
            one file in twenty, chosen by the hash of its path, into `heldout.txt` and the rest into `train.txt`.
    Needs:  the distributions, installed from wheels (an editable install lists no files).
    Why:    calibration, pruning, distillation and perplexity need text, and a machine without a model hub has this.
    Known:  it is reference prose with code examples, not conversation; the split is by file, so a held-out page may
            resemble a page of training text on a sister function; other versions of the packages give another corpus.
    Source: Python's `ast.get_docstring` and the `RECORD` of each installed distribution.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = "quickstart"

    reference: str

    def __post_init__(self) -> None:
        unusable = [name for name in self._names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name)]
        if unusable:
            raise ValueError(
                f"reference is {self.reference!r}; allowed: `default`, or distributions such as `numpy,scipy`"
            )

    @property
    def format(self) -> str:
        return "text"

    @property
    def fingerprint(self) -> str:
        """Gives a hash of the distributions' names and versions. Raises SourceError when one is not installed."""
        return digest(self._versions())

    def fetch(self, out: Path, *, context: StageContext) -> None:
        splits: dict[bool, list[str]] = {True: [], False: []}
        seen: set[str] = set()
        names = self._names
        for number, name in enumerate(names):
            context.progress(number / len(names), f"docstrings of {name}")
            for heldout, document in _documents(name):
                if document not in seen:
                    seen.add(document)
                    splits[heldout].append(document)
        train, heldout_documents = splits[False], splits[True]
        if not (train and heldout_documents):
            raise SourceError(
                f"too few docstrings: {len(train)} documents to train on and {len(heldout_documents)} held out",
                found=self.reference,
                remedy="name more distributions, installed from wheels, or use docstrings:default",
            )
        write_documents(out, train=train, heldout=heldout_documents)
        context.report.notes |= {
            "documents_train": len(train),
            "documents_heldout": len(heldout_documents),
            "characters_train": sum(map(len, train)),
            "characters_heldout": sum(map(len, heldout_documents)),
            "packages": ", ".join(f"{name} {version}" for name, version in self._versions().items()),
        }

    @property
    def _names(self) -> tuple[str, ...]:
        if self.reference == "default":
            return DEFAULT
        return tuple(sorted({name.strip() for name in self.reference.split(",")}))

    def _versions(self) -> dict[str, str]:
        return {name: _distribution(name).version for name in self._names}


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise SourceError(
            f"the distribution {name!r} is not installed, so its docstrings cannot be read",
            found=name,
            remedy='pip install "compression-harness[quickstart]", or name distributions that are installed',
        ) from None


def _documents(name: str) -> Iterator[tuple[bool, str]]:
    """Yields (held out?, document) for every long enough docstring, in the order of paths and lines."""
    for listed in sorted(_distribution(name).files or (), key=lambda path: path.as_posix()):
        file = Path(str(listed.locate()))
        if listed.suffix == ".py" and SKIPPED_FOLDERS.isdisjoint(listed.parts) and file.is_file():
            heldout = is_heldout(listed.as_posix())
            for document in docstrings(file.read_bytes()):
                if len(document) >= SHORTEST_CHARACTERS:
                    yield heldout, document


def is_heldout(path: str) -> bool:
    """True for about one path in twenty, the same ones on every machine and in every version of the package."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") % HELDOUT_ONE_IN == 0


def docstrings(code: bytes) -> list[str]:
    """Gives the cleaned docstrings of a Python file in the order of its lines; none when it is not valid Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes are not our user's concern
            tree = ast.parse(code)
    except (SyntaxError, ValueError):  # templates and tests of parsers are shipped as .py too
        return []
    nodes = [
        n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    nodes.sort(key=lambda node: 0 if isinstance(node, ast.Module) else node.lineno)
    return [_storable(text) for node in nodes if (text := ast.get_docstring(node))]


def _storable(text: str) -> str:
    """Gives the text without form feeds, which separate documents, and lone surrogates, which UTF-8 cannot hold."""
    return text.replace(SEPARATOR, "\n").encode("utf-8", "replace").decode("utf-8")
