"""How fast the marketplace is written, in how much memory, and how hard its clicks are to foretell.

    python -m benchmarks.simulator --events 300000 3000000 --out simulator.json

Each size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from domains.simulation.simulator import SimulatorConfig, best_reachable_auc, simulate


def measure(events: int, seed: int) -> dict:
    """Write one marketplace to a temporary folder and say what it took."""
    with tempfile.TemporaryDirectory() as folder:
        config = SimulatorConfig(events=events, seed=seed)
        start = time.perf_counter()
        domains = simulate(config, Path(folder))
        seconds = time.perf_counter() - start
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size_mb = sum(path.stat().st_size for path in Path(folder).rglob("*.*")) / 2**20
        best = {
            domain.spec.name: best_reachable_auc(pq.read_table(domain.truth, columns=["probability"])[0].to_numpy())
            for domain in domains
        }
    return {
        "events": events,
        "users": config.total_users,
        "seed": seed,
        "seconds": round(seconds, 2),
        "rows_per_second": round(events / seconds),
        "peak_memory_mb": round(peak_mb),
        "written_mb": round(size_mb, 1),
        "best_reachable_auc": {name: round(value, 3) for name, value in best.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, nargs="+", default=[20_000, 300_000, 3_000_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the table as JSON")
    arguments = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    results = []
    print(
        f"{'events':>12} {'users':>10} {'seconds':>8} {'rows/s':>10} {'peak MB':>8} {'files MB':>9}  best reachable AUC"
    )
    for events in arguments.events:
        with fresh.Pool(1) as pool:
            result = pool.apply(measure, (events, arguments.seed))
        results.append(result)
        best = " ".join(f"{name} {value:.3f}" for name, value in result["best_reachable_auc"].items())
        print(
            f"{events:>12,} {result['users']:>10,} {result['seconds']:>8.2f} {result['rows_per_second']:>10,} "
            f"{result['peak_memory_mb']:>8,} {result['written_mb']:>9,.1f}  {best}",
            flush=True,
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
