"""Five times as many requests as the service can answer."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import psutil

from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import TARGET, Stack
from orchestrator.servers import plan

TIMES = 5.0
GOODPUT = 0.8
SHED_MS, ALIVE_MS = 20.0, 100.0
GROWTH_MB = 30.0
CALIBRATION_S = 8.0


def overload(stack: Stack, seconds: float) -> Measured:
    """Capacity before and after by callers that wait for each other, and in between a flood that does not wait."""
    before = _flood(stack, seconds=CALIBRATION_S)["goodput_per_s"]
    memory = _memory_mb(stack)
    flood = _flood(stack, seconds=seconds, per_s=TIMES * before)
    grown = _memory_mb(stack) - memory
    after = _flood(stack, seconds=CALIBRATION_S)["goodput_per_s"]
    share = flood["goodput_per_s"] / ((before + after) / 2)
    shed = flood["shed_ms"] or {"p50": 0.0, "p99": 0.0}
    others = {status: count for status, count in flood["statuses"].items() if status not in ("200", "503")}
    return Measured(
        f"{flood['sent'] / seconds:.0f}/s of which {flood['goodput_per_s']:.0f}/s answered, {share:.0%} of capacity "
        f"({before:.0f}/s before, {after:.0f}/s after); turned away in {shed['p50']:.1f} ms (p99 {shed['p99']:.0f}); "
        f"/livez at worst {flood['livez_worst_ms']:.0f} ms; {grown:+.0f} MB; {sum(others.values())} others",
        share >= GOODPUT
        and shed["p50"] < SHED_MS
        and flood["livez_worst_ms"] < ALIVE_MS
        and grown < GROWTH_MB
        and not others,
        {"before_per_s": before, "after_per_s": after, "flood": flood, "grown_mb": grown},
    )


def _flood(stack: Stack, *, seconds: float, per_s: float | None = None) -> dict[str, Any]:
    """What a process of its own saw; so the caller's work does not hold up this one."""
    users, items = stack.people()
    bodies = stack.folder / "bodies.json"
    bodies.write_text(
        json.dumps([{"user_id": user, "items": [{"item_id": item} for item in items[:100]]} for user in users[:50]])
    )
    words = [f"{stack.url}/v1/domains/{TARGET}/rank", str(bodies), "--seconds", str(seconds)]
    words += ["--headers", json.dumps(stack.settings.service_headers)]
    if per_s is not None:
        words += ["--per-s", str(per_s)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos.flood", *words],
        env=plan.environment(stack.settings),
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
    )
    return json.loads(done.stdout)


def _memory_mb(stack: Stack) -> float:
    held = 0
    for process in stack.scorers():
        try:
            held += process.memory_info().rss
        except psutil.Error:
            continue
    return held / 2**20


ROWS = (
    Row(
        "overload",
        f"{TIMES:.0f} x capacity: goodput >= {GOODPUT:.0%}, turned away in < {SHED_MS:.0f} ms, "
        f"/livez < {ALIVE_MS:.0f} ms, memory flat",
        60,
        overload,
    ),
)
