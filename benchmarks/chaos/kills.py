"""Processes are killed at random moments while callers ask, runs are under way and files are ingested."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import psutil

from benchmarks.chaos.load import Load, Log
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import TARGET, Stack, wait_for
from domains.events.domain_data import DomainData
from domains.registry.registry import Run
from feature_repo.definitions import RECENT_EVENTS
from feature_repo.online import OnlineFeatures
from orchestrator import use_cases
from orchestrator.data.online import feature_repo
from orchestrator.servers import plan, state

KILLS = 50
SETTLES_S = 300.0
"""Runs that have not ended by then are stuck."""
GAP_S = 3.0
VICTIMS = ("scorer", "scorer", "scorer", "service", "prefect", "worker", "run", "run", "ingest", "supervisor", "ui")
MOST_INGESTS = 8
RUNS = 2
"""Retrains of the target at most, one after the other: each is cut short again and again."""


@dataclass
class Rehearsal:
    """One round of kills: what was killed and when, and what was under way."""

    stack: Stack
    chance: random.Random = field(default_factory=lambda: random.Random(0))
    killed: Counter[str] = field(default_factory=Counter)
    cuts: list[tuple[str, float]] = field(default_factory=list)
    """Kills that callers may feel: of what, and when (monotonic clock)."""
    ingest: subprocess.Popen[bytes] | None = None
    supervising: subprocess.Popen[bytes] | None = None
    runs: list[Run] = field(default_factory=list)

    def go(self, seconds: float) -> None:
        """Kill fifty times at random moments; on a busy machine, as often as half as much time again suffices for."""
        until = time.monotonic() + 1.5 * seconds
        while time.monotonic() < until and self.killed.total() < KILLS:
            self._keep_going()
            at, victim = time.monotonic(), self.chance.choice(self._victims())
            # There is always one to kill: without a bound it would take the turns of those that are just coming back.
            if (victim != "ingest" or self.killed[victim] < MOST_INGESTS) and self._kill(victim):
                self.killed[victim] += 1
                if victim in ("scorer", "service", "redis"):
                    self.cuts.append((victim, at))
                time.sleep(self.chance.uniform(0, 2 * seconds / KILLS))
            else:
                time.sleep(0.2)

    def end(self) -> None:
        """Have everything stand again."""
        until = time.monotonic() + SETTLES_S
        while time.monotonic() < until:
            self._keep_going(ingest=False)
            running = state.read(self.stack.settings)
            if running is not None and running.supervised and running.ready and self.supervising is None:
                break
            time.sleep(0.5)
        if self.ingest is not None:
            self.ingest.wait()
        self.stack.settle()

    def _victims(self) -> tuple[str, ...]:
        return (*VICTIMS, "redis") if self.stack.redis is not None else VICTIMS

    def _keep_going(self, *, ingest: bool = True) -> None:
        """What a person or a machine does after a death: start again what nothing here looks after."""
        if self.stack.redis is not None:
            self.stack.redis.keep_going()
        if self.supervising is not None and self.supervising.poll() is not None:
            self.supervising = None
        running = state.read(self.stack.settings)
        if self.supervising is None and (running is None or not running.supervised):
            self.supervising = _command(self.stack, "up", "--background")
        if ingest and (self.ingest is None or self.ingest.poll() is not None):
            files = self.stack.market[TARGET]
            words = ["-i", str(files.interactions), "--items", str(files.items), "--users", str(files.users)]
            self.ingest = _command(self.stack, "ingest", TARGET, *words)
        # One at a time, as a second is refused: each as soon as Prefect takes it.
        if len(self.runs) < RUNS and not _unended(self.stack):
            with contextlib.suppress(Exception):
                self.runs.append(use_cases.start("retrain", TARGET, params={"epochs": 1}, **_known(self.stack)))

    def _kill(self, victim: str) -> bool:
        """Kill a process of the kind, if there is one now."""
        found: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            if victim == "scorer":
                found = self.chance.sample(scorers, 1) if (scorers := self.stack.scorers()) else []
            elif victim == "run":
                worker = self.stack.server("worker")
                found = worker.children()[:1] if worker else []
            elif victim == "ingest":
                found = [psutil.Process(self.ingest.pid)] if self.ingest and self.ingest.poll() is None else []
            elif victim == "supervisor":
                running = state.read(self.stack.settings)
                found = [psutil.Process(running.supervisor_pid)] if running and running.supervised else []
            elif victim == "redis" and self.stack.redis is not None:
                found = [psutil.Process(self.stack.redis.process.pid)]
            elif server := self.stack.server(victim):
                found = [server]
            for process in found:
                process.kill()
        return bool(found)


def kills(stack: Stack, seconds: float) -> Measured:
    """Kill with SIGKILL, let everything come back, then look for what was acknowledged, for runs and for doubles."""
    before, rehearsal = _rows(stack), Rehearsal(stack)
    with Load(stack, per_s=10) as log:
        rehearsal.go(seconds)
        ended = time.monotonic()
        rehearsal.end()
        # The last answers come from servers that stand again.
        time.sleep(3)
    wait_for(lambda: not stack.registry.unpushed(), 60, "empty outbox")
    stuck = _stuck(stack, rehearsal.runs)
    settled_s = time.monotonic() - ended
    lost, (offline, twice) = _lost_in_registry(stack, log), _online(stack, log)
    doubles = _rows(stack) - before + twice
    gaps = [(victim, log.gap_after(at)) for victim, at in rehearsal.cuts]
    p95 = float(np.percentile([gap for _, gap in gaps], 95)) if gaps else 0.0
    killed, runs = rehearsal.killed, len(rehearsal.runs)
    clean = not lost and not offline and not stuck and not doubles
    return Measured(
        f"{killed.total()} kills, {len(log.told)} acknowledged: {lost} lost in the registry, {offline} online, "
        f"{doubles} twice; {len(stuck)} of {runs} runs stuck after {settled_s:.0f} s; gap p95 {p95:.1f} s",
        clean and p95 < GAP_S and runs > 0 and killed.total() == KILLS,
        {"killed": killed, "gaps_s": gaps, "stuck": stuck, "answers": len(log.answers), "failed": log.failures()},
    )


def _known(stack: Stack) -> dict:
    return {"registry": stack.registry, "settings": stack.settings, "by": "chaos"}


def _rows(stack: Stack) -> int:
    """Events of the target; its file, ingested once more, adds none."""
    return DomainData(stack.settings.data_dir, TARGET).interactions(["time_us"]).num_rows


def _command(stack: Stack, *words: str) -> subprocess.Popen[bytes]:
    """A command of Graft's in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=plan.environment(stack.settings),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _unended(stack: Stack) -> list[str]:
    return [run.id for run in stack.registry.runs(limit=1000) if run.state in ("queued", "running")]


def _stuck(stack: Stack, runs: list[Run]) -> list[str]:
    """Runs that nobody ended, and retrains that did not come through."""
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: not _unended(stack), SETTLES_S, "end of all runs")
    lost = [run.id for run in runs if stack.registry.run(run.id).state != "succeeded"]
    return sorted({*_unended(stack), *lost})


def _lost_in_registry(stack: Stack, log: Log) -> int:
    kept: set[tuple[str, str]] = set()
    after = 0
    while page := stack.registry.feedback(TARGET, after):
        kept |= {(row["request_id"], row["item_id"]) for row in page}
        after = page[-1]["id"]
    return sum((one.request_id, one.item_id) not in kept for one in log.told)


def _online(stack: Stack, log: Log) -> tuple[int, int]:
    """Acknowledged events that the online store does not hold, of those that it has room for; and those held twice."""
    told: dict[str, list[int]] = defaultdict(list)
    for one in log.told:
        told[one.user_id].append(one.time_us)
    online, lost, twice = OnlineFeatures(feature_repo(stack.settings)), 0, 0
    for user, times in told.items():
        features = online.read_user(user, TARGET)
        held = Counter([] if features is None else features.recent.time_us.tolist())
        oldest = min(held) if held.total() >= RECENT_EVENTS else 0
        lost += sum(time_us not in held for time_us in times if time_us >= oldest)
        twice += sum(held[time_us] > 1 for time_us in set(times))
    return lost, twice


ROWS = (
    Row(
        "kills",
        f"{KILLS} kills at random over all processes: 0 acknowledged lost, 0 stuck, 0 twice, gap p95 < {GAP_S:.0f} s",
        130,
        kills,
    ),
)
