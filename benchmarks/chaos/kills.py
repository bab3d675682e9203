"""Processes are killed at random moments while callers ask, a run is under way and files are ingested."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict

import numpy as np
import psutil

from benchmarks.chaos.load import Load, Log
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import TARGET, Stack, wait_for
from domains.events.domain_data import DomainData
from feature_repo.definitions import RECENT_EVENTS
from feature_repo.online import OnlineFeatures
from orchestrator import use_cases
from orchestrator.data.online import feature_repo
from orchestrator.servers import plan, state

EVERY_S = 4.0
"""A kill on average every so often."""
SETTLES_S = 300.0
"""Runs that have not ended by then are stuck."""
GAP_S = 3.0
VICTIMS = ("scorer", "scorer", "scorer", "service", "prefect", "worker", "run", "ingest", "supervisor", "ui")


def kills(stack: Stack, seconds: float) -> Measured:
    """Kill with SIGKILL, let everything come back, then look for what was acknowledged, for runs and for doubles."""
    chance, killed, gaps = random.Random(0), Counter[str](), []
    before = _rows(stack)
    runs = [use_cases.start("retrain", TARGET, params={"epochs": 1}, **_known(stack))]
    with Load(stack, per_s=10) as log:
        until = time.monotonic() + seconds
        ingest = _ingest(stack)
        while time.monotonic() < until:
            if ingest.poll() is not None:
                ingest = _ingest(stack)
            at, victim = time.monotonic(), chance.choice(VICTIMS)
            if _kill(stack, victim, ingest):
                killed[victim] += 1
            if victim == "supervisor":
                stack.up()
            time.sleep(chance.uniform(0.5, 2 * EVERY_S - 0.5))
            if victim in ("scorer", "service"):
                gaps.append((victim, log.gap_s(at, time.monotonic())))
        ingest.wait()
        stack.settle()
        # The last answers come from servers that stand again.
        time.sleep(3)
    wait_for(lambda: not stack.registry.unpushed(), 60, "empty outbox")
    stuck = _stuck(stack, runs)
    lost, offline = _lost_in_registry(stack, log), _lost_online(stack, log)
    doubles = _rows(stack) - before
    p95 = float(np.percentile([gap for _, gap in gaps], 95)) if gaps else 0.0
    return Measured(
        f"{sum(killed.values())} kills, {len(log.told)} acknowledged: {lost} lost in the registry, {offline} online; "
        f"{len(stuck)} runs stuck, {doubles} rows twice; gap p95 {p95:.1f} s",
        not lost and not offline and not stuck and not doubles and p95 < GAP_S,
        {"killed": killed, "gaps_s": gaps, "stuck": stuck, "answers": len(log.answers), "failed": len(log.failed)},
    )


def _known(stack: Stack) -> dict:
    return {"registry": stack.registry, "settings": stack.settings, "by": "chaos"}


def _rows(stack: Stack) -> int:
    """Events of the target; its file, ingested once more, adds none."""
    return DomainData(stack.settings.data_dir, TARGET).interactions(["time_us"]).num_rows


def _ingest(stack: Stack) -> subprocess.Popen[bytes]:
    """Ingest the target's file once more, in a process of its own."""
    files = stack.market[TARGET]
    words = ["ingest", TARGET, "-i", str(files.interactions), "--items", str(files.items), "--users", str(files.users)]
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=plan.environment(stack.settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _kill(stack: Stack, victim: str, ingest: subprocess.Popen[bytes]) -> bool:
    """Kill a process of the kind, if there is one now."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        if victim == "scorer":
            found = stack.scorers()[:1]
        elif victim == "run":
            worker = stack.server("worker")
            found = worker.children()[:1] if worker else []
        elif victim == "ingest":
            found = [psutil.Process(ingest.pid)] if ingest.poll() is None else []
        elif victim == "supervisor":
            running = state.read(stack.settings)
            found = [psutil.Process(running.supervisor_pid)] if running and running.supervised else []
        elif server := stack.server(victim):
            found = [server]
        for process in found:
            process.kill()
    return bool(found)


def _stuck(stack: Stack, runs: list) -> list[str]:
    """Runs that nobody ended."""

    def unended() -> list[str]:
        return [run.id for run in stack.registry.runs(limit=1000) if run.state in ("queued", "running")]

    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not unended(), SETTLES_S, "end of all runs")
    lost = [run.id for run in runs if stack.registry.run(run.id).state != "succeeded"]
    return sorted({*unended(), *lost})


def _lost_in_registry(stack: Stack, log: Log) -> int:
    kept: set[tuple[str, str]] = set()
    after = 0
    while page := stack.registry.feedback(TARGET, after):
        kept |= {(row["request_id"], row["item_id"]) for row in page}
        after = page[-1]["id"]
    return sum((one.request_id, one.item_id) not in kept for one in log.told)


def _lost_online(stack: Stack, log: Log) -> int:
    """Acknowledged events that the online store does not hold, of those that it has room for."""
    told: dict[str, list[int]] = defaultdict(list)
    for one in log.told:
        told[one.user_id].append(one.time_us)
    online, lost = OnlineFeatures(feature_repo(stack.settings)), 0
    for user, times in told.items():
        features = online.read_user(user, TARGET)
        held = [] if features is None else features.recent.time_us.tolist()
        oldest = min(held) if len(held) >= RECENT_EVENTS else 0
        lost += sum(time_us not in set(held) for time_us in times if time_us >= oldest)
    return lost


ROWS = (
    Row(
        "kills",
        f"kills at random over all processes: 0 acknowledged lost, 0 stuck, 0 twice, gap p95 < {GAP_S:.0f} s",
        200,
        kills,
    ),
)
