"""The fine print: labels of artifacts, caveats of metrics, machines, versions, and what every column means."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from pydantic import JsonValue

from harness.record import Metric
from harness.reporters.summary import Entry, Summary
from harness.reporters.text import listed, plain

DEFINITIONS = (
    ("Bits/weight", "8 x bytes of weights in memory, scales and embeddings included, over the number of parameters."),
    ("Size", "Bytes of weights on disk; 1 MB = 10^6 bytes."),
    (
        "Accuracy",
        "Mean score of a task's items; over several tasks the mean of the tasks' means, all weighing the same.",
    ),
    (
        "Retention",
        "Sum of the scores over the sum of the reference's, on identical items; over several tasks the ratio of the "
        "sums of the tasks' means. The 95 % interval inverts a score test (Tang 2003 for right-or-wrong items, Fieller "
        "otherwise) and takes items as independent. An interval that holds 1 says that these items cannot tell the two "
        "apart.",
    ),
    (
        "Above chance",
        "Retention counted from what guessing scores: (score - chance) / (reference - chance). Over the tasks "
        "whose chance is known; absent where the reference is not significantly better than guessing.",
    ),
    ("KL", "Mean Kullback-Leibler divergence of the next-token distribution from the reference's, in nats a token."),
    (
        "Decode speed-up, Prefill speed-up",
        "Tokens per second over the reference's on the same runtime, device, threads and machine; geometric mean over "
        "shapes (prompt length x batch). Tokens per second and TTFT are those of the smallest shape.",
    ),
    ("Bandwidth used", "Decoding speed over what reading all weights once a token allows at the measured bandwidth."),
    (
        "Memory",
        "Peak resident memory of the measuring process while it read a prompt and generated, file-mapped weights "
        "included, by the kernel's high-water mark.",
    ),
    ("Load", "Opening the model with its files in the page cache."),
    ("Time to deploy", "Seconds of every step after the source was fetched, conversions for the runtime included."),
)


def notes_section(summary: Summary) -> Iterator[str]:
    """Yields paragraphs of notes."""
    for title, told in (
        ("Labels", _labels(summary)),
        ("Caveats", _caveats(summary)),
        ("Speed-ups left out", _speed(summary)),
    ):
        if told:
            yield f"**{title}**"
            yield "\n".join(f"- {plain(what)} ({plain(who)})" for what, who in told.items())
    yield "**Machines**"
    yield "\n".join(f"- {line}" for line in _machines(summary)) or "Not recorded."
    yield "**Versions**"
    yield "\n".join(f"- {line}" for line in _versions(summary)) or "Not recorded."
    yield "**What the columns mean**"
    yield "\n".join(f"- *{name}*: {text}" for name, text in DEFINITIONS)


def _who(summary: Summary, entry: Entry) -> str:
    return f"{entry.row.family} / {entry.row.label} on {summary.place(entry)}"


def _labels(summary: Summary) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for entry in summary.entries:
        for label in entry.row.labels:
            found[label].append(_who(summary, entry))
    return _shortened(summary, found)


def _caveats(summary: Summary) -> dict[str, str]:
    found: dict[str, list[str]] = defaultdict(list)
    for entry in summary.entries:
        for metric in entry.row.metrics:
            for caveat in metric.caveats:
                found[f"{_metric(metric)}: {caveat}"].append(_who(summary, entry))
        for caveat in entry.row.identity.caveats if entry.row.identity else ():
            found[caveat].append(_who(summary, entry))
    return _shortened(summary, found)


def _metric(metric: Metric) -> str:
    return f"{metric.evaluation} {metric.name}"


def _shortened(summary: Summary, found: dict[str, list[str]]) -> dict[str, str]:
    """Says whom a note is about: everybody, or at most six by name."""
    everybody = len([entry for entry in summary.entries if entry.row.measured])
    shown = {}
    for what, who in sorted(found.items()):
        names = list(dict.fromkeys(who))
        shown[what] = "all rows" if len(names) == everybody > 1 else listed(names, most=6)
    return shown


def _speed(summary: Summary) -> dict[str, str]:
    silent = {"", "emulated", "reference", "not measured"}
    found: dict[str, list[str]] = defaultdict(list)
    for entry in summary.entries:
        for speedup in (entry.decode, entry.prefill):
            if speedup.value is None and speedup.reason not in silent:
                found[speedup.reason].append(_who(summary, entry))
    return _shortened(summary, found)


def _machines(summary: Summary) -> list[str]:
    """One line a distinct machine: its hard facts, as far as they were recorded."""
    found: dict[str, int] = defaultdict(int)
    for entry in summary.entries:
        for record in entry.row.records:
            hard = record.machine.get("hard")
            if isinstance(hard, dict) and hard:
                found[_facts(hard)] += 1
    return [f"{facts} ({cells} cell{'' if cells == 1 else 's'})" for facts, cells in sorted(found.items())]


def _facts(hard: dict[str, JsonValue]) -> str:
    told = []
    for key, value in sorted(hard.items()):
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if shown:
            told.append(f"{key.replace('_', ' ')} {shown}")
    return plain("; ".join(told))


def _versions(summary: Summary) -> list[str]:
    """One line a package, with every version that took part."""
    found: dict[str, set[str]] = defaultdict(set)
    for entry in summary.entries:
        for record in entry.row.records:
            for name, version in record.versions.items():
                found[name].add(version)
    return [plain(f"{name} {', '.join(sorted(versions))}") for name, versions in sorted(found.items())]
