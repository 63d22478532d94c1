"""`hub:org/name`: a model from the Hugging Face hub, pinned to a commit.

A branch moves; a commit does not. With a commit as `revision` a source names its bytes for good. Without one the hub is
asked what the branch points at today, which is written into the record and labelled.
"""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, final

from harness.errors import SourceError
from harness.interfaces import StageContext
from harness.sources import model_files

_REPOSITORY: Final = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")


@final
@dataclass(frozen=True)
class Hub:
    """A model repository of the Hugging Face hub.

    Does: downloads the model's files at the top of the repository (safetensors, configuration, tokenizer, chat
    template) through the hub's own cache, or, with `gguf_file`, that one GGUF file.
    Needs: huggingface_hub; the network, or the files in the hub's cache; for gated models a token in `HF_TOKEN`.
    Why: where models are published.
    Known: pickled weights and Python files are never taken, so repositories that need either are refused. Without a
    commit as `revision` the artifact is labelled as unpinned: the cache then goes on serving what it fetched first.
    Source: `huggingface_hub.snapshot_download`.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ("huggingface_hub",)
    extra: ClassVar[str | None] = "torch"

    reference: str
    _: KW_ONLY
    revision: str | None = None
    gguf_file: str | None = None

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.reference):
            raise ValueError(f"a repository is org/name, not {self.reference!r}")
        if self.gguf_file is not None and not self.gguf_file.endswith(".gguf"):
            raise ValueError(f"gguf_file must be the path of one *.gguf in the repository, not {self.gguf_file!r}")

    @property
    def format(self) -> str:
        return "hf" if self.gguf_file is None else "gguf"

    @property
    def fingerprint(self) -> str:
        """Empty: the revision names the bytes, and without one the label says that nothing does."""
        return ""

    def fetch(self, out: Path, *, context: StageContext) -> None:
        context.progress(None, f"downloading {self.reference}")
        snapshot = self._download()
        found = sorted(file for file in self._snapshot_files(snapshot) if file.is_file())
        if model_files.format_of([file.name for file in found], origin=f"hub:{self.reference}") != self.format:
            raise SourceError(
                f"hub:{self.reference} holds a GGUF file and no safetensors",
                found=[file.name for file in found],
                remedy="name the file with `gguf_file`",
            )
        for file in found:
            model_files.link_or_copy(file, out / file.name)
        context.report.notes["revision"] = snapshot.name
        if self.revision is None or not _COMMIT.fullmatch(self.revision):
            named = self.revision or "the default branch"
            context.report.labels.append(
                f"unpinned: {named} of {self.reference} was {snapshot.name} when it was fetched"
            )

    def _snapshot_files(self, snapshot: Path) -> list[Path]:
        if self.gguf_file is not None:
            return [snapshot / self.gguf_file]
        return [file for file in snapshot.iterdir() if model_files.is_wanted(file.name)]

    def _download(self) -> Path:
        """Gives the snapshot's folder in the hub's cache; its name is the commit."""
        import httpx
        from huggingface_hub import errors

        try:
            return self._snapshot()
        except errors.GatedRepoError as error:
            raise self._missing(error, "accept the model's terms on its page and set HF_TOKEN") from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise self._missing(error, "check the name and the revision; a private model needs HF_TOKEN") from error
        except errors.HfHubHTTPError as error:
            raise self._missing(error, "see the reason; try again when the hub answers") from error
        except (errors.OfflineModeIsEnabled, httpx.HTTPError, OSError) as error:
            return self._cached(error)

    def _snapshot(self, *, local_files_only: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        wanted: dict[str, Any] = {"allow_patterns": list(model_files.MODEL_FILES), "ignore_patterns": ["*/*"]}
        if self.gguf_file is not None:
            wanted = {"allow_patterns": [self.gguf_file]}
        return Path(
            snapshot_download(self.reference, revision=self.revision, local_files_only=local_files_only, **wanted)
        )

    def _cached(self, error: Exception) -> Path:
        """Gives the snapshot as it lies in the cache; the client itself asks the network even for a cached commit."""
        try:
            return self._snapshot(local_files_only=True)
        except OSError:
            remedy = "go online (and unset HF_HUB_OFFLINE), or name a folder on this machine with path:"
            raise self._missing(error, remedy) from error

    def _missing(self, error: Exception, remedy: str) -> SourceError:
        said = str(error).strip().splitlines()
        where = f"hub:{self.reference}" + (f" at {self.revision}" if self.revision else "")
        return SourceError(f"{where} cannot be had", found=said[0] if said else type(error).__name__, remedy=remedy)
