"""SQL over everything that was recorded, through DuckDB.

Views: `records` (a row a cell: names, outcome, seconds, identity), `metrics` (a row a metric) and `observations` (a
row an item, values as JSON: `values->>'logprob'`). Only the latest attempt of each cell is seen.

    harness query "select pipeline, avg(score) from observations group by all order by 2 desc"
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.record import Record
from harness.store import ROWS, Store


def run(store: Store, sql: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Gives column names and rows. Raises UserError with DuckDB's message when the statement is wrong."""
    if importlib.util.find_spec("duckdb") is None:
        raise UserError("queries need DuckDB", remedy="pip install 'compression-harness[analysis]'")
    import duckdb

    attempts = store.latest_with_folders()
    connection = duckdb.connect()
    _load(connection, "records", [_record_row(record) for record, _ in attempts])
    _load(connection, "metrics", [row for record, _ in attempts for row in _metric_rows(record)])
    _observations(connection, [(record, folder / ROWS) for record, folder in attempts if (folder / ROWS).exists()])
    # The statement is the user's, their files are not: nothing outside the views can be read or written.
    connection.execute("set enable_external_access = false")
    try:
        answer = connection.execute(sql)
    except duckdb.Error as error:
        raise UserError(
            f"the statement cannot be run: {error}",
            found=sql,
            allowed="views: records, metrics, observations",
            remedy='try: harness query "describe observations"',
        ) from error
    return [column[0] for column in answer.description], answer.fetchall()


def _names(record: Record) -> dict[str, Any]:
    cell = record.cell
    return {
        "cell": cell.id,
        "family": cell.model.family,
        "pipeline": cell.pipeline.name,
        "runtime": cell.runtime.use,
        "hardware": cell.hardware.name,
        "suite": cell.suite.name,
        "seed": cell.seed,
    }


def _record_row(record: Record) -> dict[str, Any]:
    identity, artifact = record.identity, record.artifact
    return {
        **_names(record),
        "outcome": record.outcome.value,
        "reason": record.error.reason if record.error else None,
        "started_at": record.started_at,
        "total_s": record.seconds.get("total"),
        "bits_per_weight": identity.bits_per_weight if identity else None,
        "weights_bytes": identity.weights_memory_bytes if identity else None,
        "size_bytes": artifact.size_bytes if artifact else None,
        "kernel": identity.kernel if identity else None,
    }


def _metric_rows(record: Record) -> Iterator[dict[str, Any]]:
    for metric in record.metrics:
        interval = metric.interval
        yield {
            **_names(record),
            **metric.model_dump(
                include={"evaluation", "task", "name", "unit", "value", "n", "higher_is_better", "chance"}
            ),
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
        }


def _load(connection: Any, name: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    # DuckDB replaces the bare name by the registered table; a copy survives without external access.
    connection.register("incoming", pa.Table.from_pylist(rows))
    connection.sql("from incoming").create(name)
    connection.unregister("incoming")


def _observations(connection: Any, files: list[tuple[Record, Path]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for record, file in files:
        table = pq.read_table(file)
        for name, value in reversed(_names(record).items()):
            table = table.add_column(0, name, pa.array([value] * len(table)))
        tables.append(table)
    if not tables:
        tables = [pa.table({"cell": pa.array([], pa.string()), "values": pa.array([], pa.string())})]
    connection.register("observations_arrow", pa.concat_tables(tables))
    connection.execute(
        'create table observations as select * replace ("values"::json as "values") from observations_arrow'
    )
