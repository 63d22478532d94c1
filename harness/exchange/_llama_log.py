"""What llama.cpp's `llama-perplexity` prints, as values: running means a chunk, a last block, and facts of the run.

Two modes. Perplexity prints `[1]4.5603,[2]5.1034,...`, the perplexity of everything so far after each chunk, and at the
end `Final estimate: PPL = 5.9066 +/- 0.03290`. With `--kl-divergence` each chunk prints a line of five running means
with their standard errors under the heading `chunk  PPL  ln(PPL(Q)/PPL(base))  KL Divergence  Δp RMS  Same top p`, and
the end has blocks of `Mean PPL(Q) : 9.123456 ± 0.071234` and quantiles. A line is found wherever it stands, because
newer versions put a time stamp before it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.errors import SourceError
from harness.exchange.reading import load_bytes

BROKEN = "the model gave no numbers: look at its output"
NUMBER = r"(-?(?:\d+(?:\.\d+)?|nan|-?inf))"
BESIDE = r"\s*(?:±|\+/-)\s*"
FINAL = re.compile(rf"Final estimate: PPL = {NUMBER}{BESIDE}{NUMBER}")
CHUNK = re.compile(rf"\[(\d+)\]{NUMBER},")
HEADING = "ln(PPL(Q)/PPL(base))"
PAIR = rf"\s+{NUMBER}{BESIDE}{NUMBER}"
TABLE = re.compile(rf"^\s*(?:[\d.]+ [A-Z]\s+)?(\d+){PAIR}{PAIR}{PAIR}{PAIR} %{PAIR} %\s*$")
LABELS = (
    *("Mean PPL(Q)", "Mean PPL(base)", "Mean ln(PPL(Q)/PPL(base))"),
    *("Mean KLD", "Maximum KLD", "99.9% KLD", "99.0% KLD", "Same top p"),
)
BLOCK = re.compile(
    rf"({'|'.join(re.escape(label).replace(chr(92) + ' ', chr(92) + 's+') for label in LABELS)})"
    rf"\s*:\s*{NUMBER}(?:{BESIDE}{NUMBER})?\s*(%?)"
)
FACTS = {
    "context": re.compile(r"calculating perplexity over \d+ chunks, n_ctx=(\d+)"),
    "chunks": re.compile(r"calculating perplexity over (\d+) chunks"),
    "loaded_context": re.compile(r"n_ctx\s+= (\d+)$"),
    "model": re.compile(r"loaded meta data with .* from (.+) \(version GGUF"),
    "build": re.compile(r"build: (\d+ \([0-9a-f]+\))"),
    "file_type": re.compile(r"file type\s+= (.+)$"),
    "parameters": re.compile(r"model params\s+= (.+)$"),
    "system": re.compile(r"system_info: (.+)$"),
    "stride": re.compile(r"Will perform strided perplexity calculation.*context size from (\d+)"),
}
COLUMNS = ("ppl", "ln_ratio", "kl", "dp_rms", "same_top")


@dataclass(frozen=True)
class Estimate:
    """A printed number, its printed standard error (None where there is none) and half a unit of its last digit."""

    value: float
    error: float | None
    rounding: float

    def scaled(self, factor: float) -> Estimate:
        """The same number in another unit."""
        error = None if self.error is None else self.error * factor
        return Estimate(self.value * factor, error, self.rounding * factor)


@dataclass
class Log:
    """A log as read: facts by name, running means by column, the last block by its labels."""

    place: str
    facts: dict[str, str] = field(default_factory=dict)
    running: dict[str, list[Estimate]] = field(default_factory=dict)
    block: dict[str, Estimate] = field(default_factory=dict)

    @property
    def is_divergence(self) -> bool:
        """True for a run with `--kl-divergence`."""
        return "kl" in self.running

    @property
    def chunks(self) -> int:
        return len(self.running.get("ppl", []))


def read(file: Path) -> Log:
    """Reads a log. Raises SourceError, with the line, for what is no such log, is cut short or skips a chunk."""
    log = Log(str(file))
    text = load_bytes(file).decode("utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        place = f"{file}:{number}"
        for name, pattern in FACTS.items():
            if name not in log.facts and (match := pattern.search(line)):
                log.facts[name] = match[1].strip()
        for label, estimates in _running(line):
            _append(log, label, estimates, place)
        log.block.update(_block(line))
    _check(log)
    return log


def _running(line: str) -> Iterator[tuple[int, Mapping[str, Estimate]]]:
    """Yields the chunks of a line: their number and running means."""
    if match := TABLE.match(line):
        cells = match.groups()[1:]
        yield (
            int(match[1]),
            {
                name: _estimate(value, error)
                for name, value, error in zip(COLUMNS, cells[::2], cells[1::2], strict=True)
            },
        )
        return
    for match in CHUNK.finditer(line):
        yield int(match[1]), {"ppl": _estimate(match[2], None)}


def _append(log: Log, number: int, estimates: Mapping[str, Estimate], place: str) -> None:
    if number != log.chunks + 1:
        raise SourceError(
            "a chunk is missing or here twice",
            file=place,
            found=f"chunk {number}",
            allowed=f"chunk {log.chunks + 1}",
            remedy="give the output of one run, whole",
        )
    if log.running and set(estimates) != set(log.running):
        raise SourceError("two kinds of run in one log", file=place, remedy="give the output of one run")
    bad = [name for name, one in estimates.items() if not math.isfinite(one.value)]
    if bad:
        raise SourceError("a running mean is not a number", file=place, key=bad[0], remedy=BROKEN)
    for name, one in estimates.items():
        log.running.setdefault(name, []).append(one)


def _block(line: str) -> Iterator[tuple[str, Estimate]]:
    if match := FINAL.search(line):
        yield "PPL", _estimate(match[1], match[2])
    elif match := BLOCK.search(line):
        found = _estimate(match[2], match[3])
        yield " ".join(match[1].split()), found.scaled(0.01) if match[4] else found


def _estimate(value: str, error: str | None) -> Estimate:
    digits = len(value.partition(".")[2])
    known = None if error is None or not _is_number(error) else float(error)
    return Estimate(float(value), known, 0.5 * 10.0**-digits)


def _is_number(text: str) -> bool:
    return "nan" not in text and "inf" not in text


def _check(log: Log) -> None:
    if not log.running:
        raise SourceError(
            "this is no output of llama-perplexity",
            file=log.place,
            allowed="chunks `[1]4.5603,[2]...` or the table of --kl-divergence",
            remedy="keep what it printed: llama-perplexity ... 2>&1 | tee LOG; --ppl-output-type 1 is not read",
        )
    if "stride" in log.facts:
        raise SourceError(
            "chunks overlap in a run with --ppl-stride: their means are not those of parts of the text",
            file=log.place,
            remedy="run without --ppl-stride",
        )
    expected = int(log.facts.get("chunks", log.chunks))
    has_end = "Mean KLD" in log.block if log.is_divergence else "PPL" in log.block
    if expected != log.chunks or not has_end:
        raise SourceError(
            "the log is cut short",
            file=log.place,
            found=f"{log.chunks} chunks{'' if has_end else ' and no last estimate'}",
            allowed=f"{expected} chunks and the last estimate",
            remedy="let the run end, and keep both of its streams: llama-perplexity ... 2>&1 | tee LOG",
        )
    _check_end(log)


def _check_end(log: Log) -> None:
    """Raises SourceError unless the last running means are those of the last block, within their rounding."""
    for label, one in log.block.items():
        if not math.isfinite(one.value):
            raise SourceError("an estimate is not a number", file=log.place, key=label, remedy=BROKEN)
    for column, labels in (
        ("ppl", ("Mean PPL(Q)", "PPL")),
        ("ln_ratio", ("Mean ln(PPL(Q)/PPL(base))",)),
        ("kl", ("Mean KLD",)),
    ):
        stated = next((log.block[label] for label in labels if label in log.block), None)
        if stated is None or column not in log.running:
            continue
        last = log.running[column][-1]
        if abs(last.value - stated.value) > (last.rounding + stated.rounding) * (1 + 1e-6):
            raise SourceError(
                "the last chunk and the last estimate disagree",
                file=log.place,
                key=column,
                found=last.value,
                allowed=str(stated.value),
                remedy="give the output of one run, as it was printed",
            )
