"""Output of llama.cpp's `llama-perplexity`, with or without `--kl-divergence`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

from pydantic import JsonValue

from harness.errors import SourceError
from harness.exchange.imported import UNSTATED, Role, check_labels, named, storable, untouched
from harness.exchange.reading import file_digest, recordable
from harness.interfaces import Imported
from harness.record import Gap, Outcome, Record
from harness.spec import Cell, Hardware, Suite, Use

if TYPE_CHECKING:
    from harness.exchange._llama_log import Log
    from harness.exchange._llama_windows import Windows

EVALUATION = "fidelity"
ANY_TEXT = "the log does not name the text: give `text`, or two texts look like one"


@final
@dataclass(frozen=True)
class LlamaPerplexity:
    """Fidelity metrics from the output of llama.cpp's perplexity tool.

    Does:   reads the text that `llama-perplexity` prints. Chunks become fidelity windows where their values can be
            recovered from the running means (differences of neighbours, kept while rounding is at most a tenth of
            their standard deviation); intervals then take the window as the unit. Otherwise a metric is the tool's own
            with its own ± as interval, which is named in the method.
    Needs:  both streams of the tool (`2>&1 | tee LOG`). `model` where the log does not name the file; `context` (the
            tool's -c, 512 by default) where the log does not say it; `text`, a name for the text, so that two texts
            are not taken for one.
    Why:    most published damage of GGUF quantizations is in this form.
    Known:  only the second half of each chunk is scored. With --kl-divergence the stored logits of the base are
            quantized to 16 bits, and its divergence may be slightly negative. The tail quantiles interpolate, ours do
            not. Bytes of text and flips are not printed, so there are no bits per byte and no flips. Logs
            from before April 2024, without Δp, are not read.
    Source: llama.cpp, tools/perplexity/perplexity.cpp at 050fc7f.
    """

    version: ClassVar[str] = "1"
    requirements: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str | None] = None

    family: str | None = None
    pipeline: str = "imported"
    role: Role = "reference"
    model: str | None = None
    text: str | None = None
    context: int | None = None

    def __post_init__(self) -> None:
        check_labels(self.family, self.pipeline, self.role)
        if self.context is not None and self.context < 4:
            raise ValueError(f"context is {self.context}; allowed: the tool's -c, at least 4")
        if self.model is not None and not all(self.model.partition(":")):
            raise ValueError(f"model is {self.model!r}; allowed: a source such as path:/a/model.gguf or hub:org/name")

    def recognizes(self, file: Path) -> bool:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            start = opened.read(2**20).decode("utf-8", errors="replace")
        return "Final estimate: PPL" in start or "ln(PPL(Q)/PPL(base))" in start or "perplexity: calculating" in start

    def read(self, file: Path) -> Iterator[Imported]:
        with recordable(file):
            made = storable(self._imported(file))
        yield made

    def _imported(self, file: Path) -> Imported:
        from harness.exchange import _llama_log, _llama_metrics, _llama_windows

        log = _llama_log.read(file)
        context = self._context(log)
        windows = None if context is None else _llama_windows.recover(log, _llama_windows.tokens_of(context))
        task = f"{self.text or UNSTATED} {log.chunks}x{context or UNSTATED}"
        rows = windows.rows(task) if windows is not None else ()
        record = Record(
            cell=self._cell(log, context),
            outcome=Outcome.OK,
            metrics=tuple(_llama_metrics.metrics(log, rows, task)),
            gaps=_gaps(log, windows, self.text),
            machine=_facts(log, file),
            versions={"llama_cpp importer": self.version}
            | ({"llama.cpp": log.facts["build"]} if "build" in log.facts else {}),
        )
        return Imported(record, rows)

    def _context(self, log: Log) -> int | None:
        """Gives the context of a chunk: as said, or as printed; None where neither is there or can be right."""
        from harness.exchange._llama_windows import fits, tokens_of

        stated = log.facts.get("context")
        if self.context is not None:
            if (stated is not None and int(stated) != self.context) or (fits(log, tokens_of(self.context)) is False):
                raise SourceError(
                    "the log is not of that context",
                    file=log.place,
                    key="context",
                    found=self.context,
                    allowed=stated or "one whose chunks give the printed shares of equal top tokens",
                    remedy="leave `context` out, or give the -c that the base was run with",
                )
            return self.context
        if stated is not None:
            return int(stated)
        # With --kl-divergence chunks are as long as the base's were, and the context that was loaded may be longer.
        loaded = log.facts.get("loaded_context")
        return int(loaded) if loaded is not None and fits(log, tokens_of(int(loaded))) else None

    def _cell(self, log: Log, context: int | None) -> Cell:
        source = self.model or (f"path:{log.facts['model']}" if "model" in log.facts else None)
        if source is None:
            raise SourceError(
                "the log does not say which model it was",
                file=log.place,
                key="model",
                remedy="keep the whole output (2>&1), or give `model: path:/a/model.gguf`",
            )
        args: dict[str, JsonValue] = {"tool": "llama-perplexity", "chunks": log.chunks}
        args |= {"text": self.text} if self.text else {}
        args |= {"context": context} if context else {}
        args |= {"against": "base"} if log.is_divergence else {}
        return Cell(
            model=named(source, self.family, self.role),
            pipeline=untouched(self.pipeline),
            runtime=Use(use="llama_cpp:llama-perplexity"),
            hardware=Hardware(name=UNSTATED),
            suite=Suite(
                name=f"llama-perplexity {self.text or UNSTATED}",
                version="1",
                evaluations=(Use(use=EVALUATION, args=args),),
            ),
        )


def _facts(log: Log, file: Path) -> dict[str, JsonValue]:
    run: dict[str, JsonValue] = {
        name: log.facts[name] for name in ("file_type", "parameters", "system") if name in log.facts
    }
    return {"imported": {file.name: file_digest(file)}, **({"run": run} if run else {})}


def _gaps(log: Log, windows: Windows | None, text: str | None) -> tuple[Gap, ...]:
    found = []
    if windows is None:
        remedy = "import it again with `context`, the -c of the run (512 unless it was given)"
        reason = "the log does not say how long a chunk is: no windows, and no tail quantiles"
        found.append(Gap(evaluation=EVALUATION, reason=reason, remedy=remedy))
    for name, reason in windows.lost.items() if windows else ():
        found.append(Gap(evaluation=EVALUATION, reason=f"no windows of {name}: {reason}", remedy="fewer chunks"))
    if text is None:
        found.append(Gap(evaluation=EVALUATION, reason=ANY_TEXT, remedy="import it again with `text`"))
    return tuple(found)
