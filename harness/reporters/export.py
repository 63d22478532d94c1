"""Everything a report knows as flat rows for other programs: unrounded, with an empty field for the unknown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.record import Interval
from harness.reporters.comparison import TaskComparison
from harness.reporters.frame import Row
from harness.reporters.summary import Entry, Summary
from harness.statistics.paired import Estimate
from harness.statistics.power import required_items

Flat = dict[str, str | int | float | bool | None]


def write_csv(rows: Sequence[Mapping[str, object]], file: Path) -> Path:
    """Writes rows as CSV; floats keep nine significant digits, in which no two platforms differ."""
    import pandas as pd

    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    pd.DataFrame(cells, columns=columns, dtype=object).to_csv(file, index=False, lineterminator="\n")
    return file


def _cell(value: object) -> object:
    return f"{value:.9g}" if isinstance(value, float) else value


def row_table(summary: Summary) -> list[Flat]:
    """Gives one wide row a configuration; accuracies of tasks are columns of their own."""
    return [_row(summary, entry) for entry in summary.entries]


def _names(row: Row) -> Flat:
    cell = row.cell
    return {
        "family": row.family,
        "pipeline": row.label,
        "model": cell.model.source,
        "stages": " | ".join(map(str, cell.pipeline.stages)),
        "runtime": row.runtime,
        "hardware": cell.hardware.name,
        "threads": cell.hardware.threads,
        "seed": cell.seed,
    }


def _row(summary: Summary, entry: Entry) -> Flat:
    row, comparison = entry.row, entry.comparison
    identity, artifact = row.identity, row.artifact
    is_compared = comparison is not None and not row.is_reference
    reference = comparison.reference if comparison and is_compared else None
    accuracies = {f"accuracy {summary.name(task)}": row.accuracy(task) for task in summary.tasks}
    means = [value for value in accuracies.values() if value is not None]
    return {
        **_names(row),
        "outcome": row.outcome,
        "is_reference": row.is_reference,
        "is_emulated": row.is_emulated,
        "reference_runtime": reference.runtime if reference else None,
        "is_reference_in_same_place": comparison.same_place if comparison and is_compared else None,
        "bits_per_weight": identity.bits_per_weight if identity else None,
        "nominal_bits_per_weight": row.bits_per_weight if row.is_emulated else None,
        "parameters": identity.parameters if identity else None,
        "weights_disk_bytes": identity.weights_disk_bytes if identity else None,
        "weights_memory_bytes": identity.weights_memory_bytes if identity else None,
        "nominal_bytes": artifact.nominal_bytes if artifact else None,
        "accuracy": sum(means) / len(means) if means else None,
        **_estimate("retention", comparison.retention if comparison and is_compared else None),
        **_estimate("chance_corrected_retention", comparison.corrected if comparison and is_compared else None),
        **_measures(row),
        "decode_speedup": entry.decode.value,
        **_ends("decode_speedup", entry.decode.interval),
        "decode_speedup_note": entry.decode.reason,
        "prefill_speedup": entry.prefill.value,
        **_ends("prefill_speedup", entry.prefill.interval),
        "prefill_speedup_note": entry.prefill.reason,
        "deploy_s": row.deploy_s,
        **accuracies,
        "labels": " | ".join(row.labels),
        "cells": " ".join(record.cell.id for record in row.records),
    }


MEASURES = (
    ("fidelity", ("kl_mean", "kl_p99", "kl_max", "top1_agreement", "perplexity", "bits_per_byte")),
    ("probes.speed", ("decode_tps", "prefill_tps", "ttft_s", "tpot_s", "mbu")),
    ("probes.memory", ("peak_bytes", "peak_anon_bytes", "peak_file_bytes")),
    ("probes.load", ("load_warm_s",)),
)


def _measures(row: Row) -> Flat:
    found: Flat = {}
    for evaluation, names in MEASURES:
        for name in names:
            metric = row.first(name, evaluation=evaluation)
            # What unpacked weights need in time and memory is not what the method would need.
            usable = metric is not None and (evaluation == "fidelity" or not row.is_emulated)
            found[name] = metric.value if metric and usable else None
    return found


def _estimate(name: str, found: Estimate | None) -> Flat:
    return {
        name: found.value if found else None,
        **_ends(name, found.interval if found else None),
        f"{name}_method": found.interval.method if found and found.interval else None,
        f"{name}_n": found.n if found else None,
        f"{name}_note": found.reason if found else None,
    }


def _ends(name: str, interval: Interval | None) -> Flat:
    return {f"{name}_low": interval.low if interval else None, f"{name}_high": interval.high if interval else None}


def comparison_table(summary: Summary) -> list[Flat]:
    """Gives one row a comparison of a task; references are compared with each other across runtimes."""
    return [
        _comparison(summary, entry, task)
        for entry in summary.entries
        if entry.comparison
        for task in entry.comparison.tasks
    ]


def _comparison(summary: Summary, entry: Entry, found: TaskComparison) -> Flat:
    assert entry.comparison is not None
    pairs, reference = found.pairs, entry.comparison.reference
    both, won, lost, neither = pairs.counts if pairs and pairs.is_binary else (None,) * 4
    share = found.changed_share
    return {
        **_names(entry.row),
        "is_reference": entry.row.is_reference,
        "reference_runtime": reference.runtime,
        "evaluation": found.task[0],
        "task": found.task[1],
        "n": found.n,
        "missing": found.missing,
        "extra": found.extra,
        "unlike_prompts": found.unlike,
        "both_right": both,
        "only_candidate_right": won,
        "only_reference_right": lost,
        "neither_right": neither,
        "accuracy": sum(pairs.candidate) / pairs.n if pairs else None,
        "reference_accuracy": sum(pairs.reference) / pairs.n if pairs else None,
        "chance": pairs.chance if pairs else None,
        **_estimate("retention", found.retention),
        **_estimate("chance_corrected_retention", found.corrected),
        **_estimate("difference", found.difference),
        "mcnemar_p": found.p_value(),
        "mcnemar_harm_p": found.p_value(harm_only=True),
        "changed_share": share,
        "items_to_show_loss_below_1_point": required_items(share, margin=0.01) if share else None,
    }


def metric_table(summary: Summary) -> list[Flat]:
    """Gives every metric of every record, those of suites that do not count in the tables included."""
    return list(_metrics(summary))


def _metrics(summary: Summary) -> Iterator[Flat]:
    for entry in summary.entries:
        for record in entry.row.records:
            for metric in sorted(record.metrics, key=lambda m: (m.evaluation, m.task, m.name)):
                interval = metric.interval
                yield {
                    "cell": record.cell.id,
                    **_names(entry.row),
                    "suite": record.cell.suite.name,
                    "outcome": record.outcome.value,
                    "evaluation": metric.evaluation,
                    "task": metric.task,
                    "name": metric.name,
                    "unit": metric.unit,
                    "value": metric.value,
                    "n": metric.n,
                    "low": interval.low if interval else None,
                    "high": interval.high if interval else None,
                    "level": interval.level if interval else None,
                    "method": interval.method if interval else None,
                    "higher_is_better": metric.higher_is_better,
                    "chance": metric.chance,
                    "caveats": " | ".join(metric.caveats),
                }
