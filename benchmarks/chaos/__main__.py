"""Runs the rows one after the other and prints a table: goal, measured, whether it is reached."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos import contract, doors, kills, outages, overload, promotions, pushes, stores
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import Stack

ROWS: tuple[Row, ...] = (
    *(*promotions.ROWS, *overload.ROWS, *stores.ROWS, *pushes.ROWS, *contract.ROWS, *outages.ROWS, *kills.ROWS),
    *doors.ROWS,  # last: from its keys and users on, everybody is asked
)


def run(rows: list[Row], seconds: float | None, *, redis: bool = False) -> list[dict[str, Any]]:
    """Prepare a stack, do one row after the other on it; one that fails as a whole is a row that is not reached."""
    stack, results = Stack(redis=redis), []
    try:
        stack.prepare()
        stack.up()
        for row in rows:
            began = time.monotonic()
            try:
                stack.settle()
                measured = row.measure(stack, seconds or row.seconds)
            except Exception as fault:  # the other rows are still worth their time
                measured = Measured(f"{type(fault).__name__}: {fault}", ok=False)
            took_s = time.monotonic() - began
            print(
                f"{row.name}: {'ok' if measured.ok else 'NOT reached'} in {took_s:.0f} s: {measured.says}", flush=True
            )
            results.append(
                {"row": row.name, "goal": row.goal, "measured": measured.says, "ok": measured.ok, "took_s": took_s}
                | {"figures": measured.figures}
            )
    finally:
        stack.close()
    return results


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = ["| row | goal | measured | ok |", "|---|---|---|---|"]
    lines += [
        f"| {one['row']} | {one['goal']} | {one['measured']} | {'yes' if one['ok'] else 'NO'} |" for one in results
    ]
    return "\n".join(lines)


def main() -> int:
    """Read the options, run, print, write; the status says whether every goal is reached."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--seconds", type=float, help="how long each row lasts, instead of its own time")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--redis", action="store_true", help="keep the histories in a Redis (needs redis-server)")
    options = parser.parse_args()
    # Ended by a time limit it still ends its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results = run([row for row in ROWS if row.name in options.only], options.seconds, redis=options.redis)
    print(table(results))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2, default=str) + "\n")
    return 0 if all(one["ok"] for one in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
