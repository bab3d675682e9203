"""How fast rows are ingested and histories built, and in how much memory.

    python -m benchmarks.ingest --rows 1000000 10000000 --memory-limit 2GB --out ingest.json

The files are made in a temporary folder: Zipf-distributed items, one row in a thousand bad, one in a hundred repeated.
Each step runs in a process of its own, so that its peak memory is its own. ``again`` ingests the same file once more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from pathlib import Path

import duckdb
import numpy as np
import psutil

from domains.events.histories import Histories
from domains.ingestion.ingest import ingest
from domains.spec import DomainSpec

SPEC = DomainSpec.from_mapping(
    {
        "name": "video",
        "role": "source",
        "task": "ctr",
        "owner": "benchmark",
        "interactions": {
            "user": "user_id",
            "item": "item_id",
            "time": "ts",
            "label": "click",
            "action": "event_type",
            "context": {"hour": "category"},
        },
    }
)


def make_file(path: Path, rows: int) -> None:
    """A CSV or Parquet file of ``rows`` events: a user for each fifty rows, half a year of time."""
    users, items = max(rows // 50, 10), max(rows // 200, 10)
    with duckdb.connect() as con:
        con.execute("SELECT setseed(0.5)")
        written = "(FORMAT parquet)" if path.suffix == ".parquet" else "(HEADER, DELIMITER ',')"
        con.execute(
            # One row in a hundred is the row before it: the same numbers drawn from the same hash.
            "COPY (SELECT 'user-' || (hash(n, 1) % $users) AS user_id,"
            " 'item-' || floor($items * power((hash(n, 2) % 1000003) / 1000003, 3))::BIGINT AS item_id,"
            " 1700000000 + (hash(n, 3) % 15000000) AS ts,"
            " TASK WHEN hash(n, 4) % 1000 = 0 THEN '7' ELSE ((hash(n, 4) % 5 = 0)::INT)::VARCHAR END AS click,"
            " TASK WHEN hash(n, 5) % 3 = 0 THEN 'click' ELSE 'view' END AS event_type, hash(n, 6) % 24 AS hour"
            " FROM (SELECT r - (r % 100 = 0)::INT AS n FROM range(1, $rows + 1) AS t(r)))"
            f" TO '{path}' {written}".replace("$users", str(users))
            .replace("$items", str(items))
            .replace("$rows", str(rows))
        )


def run_ingest(folder: Path, path: Path, memory_limit: str, threads: int | None) -> dict:
    report = ingest(
        SPEC, number=1, interactions=[path], data_dir=folder, memory_limit=memory_limit, threads=threads,
        on_progress=lambda _share, step: print(f"    {time.process_time():6.1f} s of processor  {step}", flush=True),
    )  # fmt: skip
    return {"added": report.rows_added, "duplicate": report.rows_duplicate, "quarantined": report.rows_quarantined}


def run_histories(folder: Path) -> dict:
    return {"events": len(Histories.build(folder, [(SPEC, 1)]).source)}


def run_windows(folder: Path) -> dict:
    """100,000 windows of 500 events in the size of training batches, and opening."""
    start = time.perf_counter()
    store = Histories.open(folder).source
    opened = time.perf_counter() - start
    rng = np.random.default_rng(0)
    users = rng.integers(1, store.users, (50, 2048))
    moments = rng.integers(1_700_000_000, 1_715_000_000, users.shape) * 1_000_000
    start = time.perf_counter()
    for user, moment in zip(users, moments, strict=True):
        store.window(user, moment, 500)
    window = (time.perf_counter() - start) / len(users)
    return {"open_ms": round(opened * 1e3, 2), "window_ms_per_2048_rows": round(window * 1e3, 2)}


def measured(step, *arguments) -> dict:  # type: ignore[no-untyped-def]
    """Run a step in a fresh process: its answer, seconds, and peak resident memory, mapped files included."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_report, args=(answers, step, arguments))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def _report(answers, step, arguments) -> None:  # type: ignore[no-untyped-def]
    before = psutil.Process().memory_info().rss / 2**20
    start = time.perf_counter()
    answer = step(*arguments)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put({**answer, "seconds": round(seconds, 1), "peak_mb": round(peak), "imports_mb": round(before)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--memory-limit", default="2GB")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    results = []
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"events.{chosen.format}"
            make_file(path, rows)
            data = Path(folder) / "data"
            steps = [
                ("ingest", measured(run_ingest, data, path, chosen.memory_limit, chosen.threads)),
                ("again", measured(run_ingest, data, path, chosen.memory_limit, chosen.threads)),
                ("histories", measured(run_histories, data)),
                ("windows", measured(run_windows, data)),
            ]
            size_mb = round(path.stat().st_size / 2**20)
        for name, answer in steps:
            rate = round(rows / answer["seconds"]) if name != "windows" else None
            results.append({"rows": rows, "file_mb": size_mb, "step": name, "rows_per_s": rate, **answer})
    print(f"{chosen.format}, memory limit {chosen.memory_limit}, {os.cpu_count()} cores")
    print(f"{'rows':>12} {'step':<10} {'seconds':>8} {'rows/s':>10} {'peak MB':>8}")
    for row in results:
        print(
            f"{row['rows']:>12,} {row['step']:<10} {row['seconds']:>8} {row['rows_per_s'] or '':>10}"
            f" {row['peak_mb']:>8}",
            {key: row[key] for key in row.keys() - {"rows", "step", "seconds", "rows_per_s", "peak_mb"}},
        )
    if chosen.out:
        settings = {"format": chosen.format, "memory_limit": chosen.memory_limit, "threads": chosen.threads}
        chosen.out.write_text(json.dumps({"settings": settings, "cores": os.cpu_count(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
