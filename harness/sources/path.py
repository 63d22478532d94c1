"""`path:/a/folder`: a model that is already on this machine.

A path is the one kind of source whose bytes can change while its name stays. So it carries a fingerprint of what lies
there, made of names, sizes and times, which is part of the key of everything built from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from harness.errors import SourceError
from harness.interfaces import StageContext
from harness.sources import model_files
from harness.spec import digest

_CORPUS = frozenset({"train.txt", "heldout.txt"})
_PAIRS = frozenset({"train.pairs.jsonl", "heldout.pairs.jsonl"})


@final
@dataclass(frozen=True)
class LocalPath:
    """A Hugging Face directory, a GGUF file or a text corpus from the local disk.

    Does: takes the model's files (safetensors, configuration, tokenizer, chat template) as hard links, or copies where
    links cannot be. `reference` is a folder or one `.gguf` file; `~` and relative paths are allowed. A folder with
    `train.txt` and `heldout.txt` is a corpus, with its questions and answers (`*.pairs.jsonl`) if it has any.
    Needs: nothing.
    Why: models trained or compressed elsewhere.
    Known: the fingerprint trusts sizes and modification times; a file rewritten in place within the clock's resolution
    and with the same size is not noticed before its digest is checked. Editing a linked file in place edits the cached
    artifact too, which the cache notices by the same digest. Sub-folders are not taken.
    Source: the layout of `PreTrainedModel.save_pretrained`; the GGUF specification of ggml.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    reference: str

    def __post_init__(self) -> None:
        if not self.reference:
            raise ValueError("the path is empty; write path:/a/folder or path:/a/file.gguf")

    @property
    def format(self) -> str:
        files = self._files()
        names = {file.name for file in files}
        return "text" if names >= _CORPUS else model_files.format_of(names, origin=self.reference)

    @property
    def fingerprint(self) -> str:
        """A digest of the names, sizes and modification times of the files; raises SourceError when there are none."""
        stats = {file.name: file.stat() for file in self._files()}
        return digest({name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()})

    def fetch(self, out: Path, *, context: StageContext) -> None:
        form = self.format
        for file in self._files():
            if _belongs(file.name, form):
                context.progress(None, f"taking {file.name}")
                model_files.link_or_copy(file, out / file.name)

    def _files(self) -> list[Path]:
        path = Path(self.reference).expanduser()
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise SourceError("there is no such file or folder", file=path, remedy="check the path of the model")
        return sorted(file for file in path.iterdir() if file.is_file())


def _belongs(name: str, form: str) -> bool:
    if form == "text":
        return name in _CORPUS | _PAIRS
    return name.endswith(".gguf") if form == "gguf" else model_files.is_wanted(name)
