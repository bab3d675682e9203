"""The servers of one machine: Prefect's server and worker, the prediction service and the UI, started and ended as one.

``up`` stays in the foreground and looks after them: it restarts one that dies, hands new schedules to Prefect, and ends
all of them on Ctrl-C or SIGTERM. What runs is written to ``stack.json`` in Graft's home, so ``down`` and ``status``
work from any other shell.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import psutil

from domains.registry.registry import Registry
from orchestrator import prefect_client
from orchestrator.jobs.runner import alive, close_dead
from orchestrator.servers.plan import Server, StackFault, answers, environment, refuse_busy_ports, servers
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

START_LIMIT_S = 180
"""A server that is not healthy by then has failed to start."""
STOP_LIMIT_S = 15
"""A server that is asked to end gets this long before it is killed."""
RESTARTS_ALLOWED = 5
"""A server that dies more often than this stays down; its log says why."""
CHORES_EVERY_S = 5
PRUNE_EVERY_S = 3600
LOST_AFTER_S = 30
"""A flow run that ended this long ago without the registry knowing is not going to be resumed."""

Say = Callable[[str], None]


@dataclass
class Running:
    """One server of a started stack, as ``stack.json`` records it."""

    name: str
    pid: int
    created: float
    """When the process started, seconds since the epoch: a reused process id is not mistaken for ours."""
    address: str
    log: str
    health_url: str = ""
    healthy: bool = False
    restarts: int = 0


@dataclass
class StackState:
    """What ``stack.json`` holds."""

    supervisor_pid: int
    supervisor_created: float
    ready: bool = False
    servers: list[Running] = field(default_factory=list)

    @property
    def supervised(self) -> bool:
        """Whether the process that looks after the servers is alive."""
        return alive(self.supervisor_pid, self.supervisor_created)


def up(settings: Settings, *, ui: bool = True, say: Say = print, stop: threading.Event | None = None) -> None:
    """Start every server, wait until each is healthy, look after them until told to end.

    Args:
        say: Receives each line meant for a person.
        stop: Ends the stack when set; SIGINT and SIGTERM set it too when called from the main thread.

    Raises:
        StackFault: it runs already, a port is taken, or a server does not come up.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    plan = servers(settings, ui=ui)
    _refuse_second_stack(settings)
    refuse_busy_ports(plan, settings)
    for folder in (settings.home, settings.logs_dir, settings.artifacts_dir, settings.runs_dir):
        folder.mkdir(parents=True, exist_ok=True)
    registry = Registry(settings.registry_url)
    registry.migrate()
    _Supervisor(settings, plan, registry, say, stop).run()


def up_in_background(settings: Settings, *, ui: bool = True, say: Say = print) -> StackState:
    """Start the stack as a process of its own that outlives this one; returns when all servers are healthy.

    Raises:
        StackFault: it did not come up; the message ends with the last lines of its log.
    """
    _refuse_second_stack(settings)
    refuse_busy_ports(servers(settings, ui=ui), settings)
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    log = settings.logs_dir / "stack.log"
    command = [sys.executable, "-m", "orchestrator.cli", "up", *([] if ui else ["--no-ui"])]
    with log.open("w") as sink:
        process = subprocess.Popen(
            command,
            env=environment(settings),
            stdout=sink,
            stderr=sink,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    said: set[str] = set()
    while process.poll() is None:
        state = read_state(settings)
        if state is not None and state.supervisor_pid == process.pid:
            for server in state.servers:
                if server.healthy and server.name not in said:
                    said.add(server.name)
                    say(_is_up(server))
            if state.ready:
                return state
        time.sleep(0.2)
    raise StackFault(f"the servers did not come up: {_tail(log, 3)} (all of it: {log})")


def down(settings: Settings, *, say: Say = print) -> list[str]:
    """End the stack from any shell; returns the names of the servers that were still running, [] if none was."""
    state = read_state(settings)
    if state is None:
        return []
    running = [server for server in state.servers if alive(server.pid, server.created)]
    if state.supervised:
        os.kill(state.supervisor_pid, signal.SIGTERM)
        _wait_until(lambda: not state.supervised, len(state.servers) * STOP_LIMIT_S + STOP_LIMIT_S)
    for server in reversed(running):
        if alive(server.pid, server.created):  # its supervisor was killed
            _end(server.pid)
        say(f"{server.name} ended")
    _state_path(settings).unlink(missing_ok=True)
    return [server.name for server in running]


def read_state(settings: Settings) -> StackState | None:
    """What ``stack.json`` says; None if there is none."""
    try:
        held = json.loads(_state_path(settings).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return StackState(**{**held, "servers": [Running(**server) for server in held["servers"]]})


def health(settings: Settings) -> dict[str, bool]:
    """Whether each server of the stack answers now where it was started, by name."""
    state = read_state(settings)
    return {
        server.name: alive(server.pid, server.created) and (not server.health_url or answers(server.health_url))
        for server in (state.servers if state else [])
    }


class _Supervisor:
    def __init__(
        self, settings: Settings, plan: list[Server], registry: Registry, say: Say, stop: threading.Event
    ) -> None:
        self._settings, self._plan, self._registry, self._say, self._stop = settings, plan, registry, say, stop
        self._environment = environment(settings)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        own = psutil.Process()
        self._state = StackState(own.pid, own.create_time())
        self._schedules: dict[str, str | None] = {}
        self._ended_since: dict[str, float] = {}
        self._chores_next = 0.0
        self._prune_next = 0.0

    def run(self) -> None:
        try:
            self._start_all()
            if not self._stop.is_set():
                self._state.ready = True
                self._save()
                self._say("all servers are up; Ctrl-C or `graft down` ends them")
            while not self._stop.wait(1.0):
                self._restart_the_dead()
                self._do_chores()
        finally:
            self._end_all()

    def _start_all(self) -> None:
        # The worker needs Prefect's work pool; the others load while Prefect starts.
        *first, worker = self._plan
        for server in first:
            self._start(server)
        if first[0].name == "prefect":
            self._await(first[0])
        if self._stop.is_set():
            return
        self._deploy()
        if first[0].name == "prefect":
            abandoned = prefect_client.resume_abandoned(api_url=self._settings.prefect_url)
            if abandoned:
                self._say(f"{abandoned} runs were cut short by the last stop and go on now")
        self._start(worker)
        for server in self._plan:
            self._await(server)

    def _start(self, server: Server, restarts: int = 0) -> None:
        log = self._settings.logs_dir / f"{server.name}.log"
        with log.open("ab" if restarts else "wb") as sink:
            process = self._spawn(server.command, sink)
        self._processes[server.name] = process
        created = psutil.Process(process.pid).create_time()
        record = Running(
            server.name, process.pid, created, server.address, str(log), server.health_url, restarts=restarts
        )
        self._state.servers = [old for old in self._state.servers if old.name != server.name] + [record]
        self._save()

    def _spawn(self, command: tuple[str, ...], sink: IO[bytes]) -> subprocess.Popen[bytes]:
        # A session of its own: a terminal's Ctrl-C reaches only the supervisor, which ends the servers in order.
        return subprocess.Popen(
            command,
            env=self._environment,
            cwd=self._settings.home,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )

    def _await(self, server: Server) -> None:
        record = self._record(server.name)
        if record.healthy:
            return
        deadline = time.monotonic() + START_LIMIT_S
        while not server.healthy():
            if self._stop.is_set():
                return
            status = self._processes[server.name].poll()
            if status is not None:
                raise StackFault(f"the {server.name} ended with status {status}: {_tail(record.log)} ({record.log})")
            if time.monotonic() > deadline:
                raise StackFault(f"the {server.name} is not healthy after {START_LIMIT_S} s; see {record.log}")
            self._stop.wait(0.2)
        record.healthy = True
        self._save()
        self._say(_is_up(record))

    def _deploy(self) -> None:
        """Write deployments in a process of its own: Prefect reads its settings once, at import."""
        log = self._settings.logs_dir / "deploy.log"
        with log.open("wb") as sink:
            process = self._spawn((sys.executable, "-m", "orchestrator.cli", "deploy"), sink)
        while process.poll() is None and not self._stop.wait(0.1):
            continue
        if process.poll() is None:
            _end(process.pid)
        elif process.returncode != 0:
            raise StackFault(f"the flows could not be deployed: {_tail(log)} ({log})")

    def _restart_the_dead(self) -> None:
        for server in self._plan:
            status = self._processes[server.name].poll()
            record = self._record(server.name)
            if status is None:
                if not record.healthy and server.healthy():
                    record.healthy = True
                    self._save()
                continue
            if record.restarts >= RESTARTS_ALLOWED:
                if record.healthy or record.restarts == RESTARTS_ALLOWED:
                    record.restarts, record.healthy = RESTARTS_ALLOWED + 1, False
                    self._save()
                    self._say(f"{server.name} died {RESTARTS_ALLOWED + 1} times and stays down; see {record.log}")
                continue
            self._say(f"{server.name} ended with status {status}; starting it again")
            _kill_group(self._processes[server.name].pid)  # what it left behind may hold its port
            self._stop.wait(2**record.restarts - 1)
            if not self._stop.is_set():
                self._start(server, restarts=record.restarts + 1)

    def _do_chores(self) -> None:
        if time.monotonic() < self._chores_next:
            return
        self._chores_next = time.monotonic() + CHORES_EVERY_S
        try:
            self._hand_over_schedules()
            for flow_run in prefect_client.resume_crashed(api_url=self._settings.prefect_url):
                self._say(f"the process of flow run {flow_run} died; it goes on where it stopped")
            self._close_lost_runs()
            close_dead(self._registry, self._settings)
            self._prune()
        except Exception:  # the stack outlives a locked registry or a Prefect server that restarts
            logger.warning("chores put off", exc_info=True)

    def _hand_over_schedules(self) -> None:
        """Domains are registered at several doors; this one place tells Prefect of their schedules."""
        for domain in self._registry.domains():
            cron = domain.spec.schedule
            if self._schedules.get(domain.name) != cron:
                prefect_client.schedule_retrain(domain.name, cron, api_url=self._settings.prefect_url)
                self._schedules[domain.name] = cron

    def _prune(self) -> None:
        days = self._settings.keep_predictions_days
        if not days or time.monotonic() < self._prune_next:
            return
        self._prune_next = time.monotonic() + PRUNE_EVERY_S
        gone = self._registry.forget_answers(datetime.now(UTC) - timedelta(days=days))
        if gone:
            self._say(f"{gone:,} rows of answers and feedback older than {days:g} days deleted")

    def _close_lost_runs(self) -> None:
        """A run whose process ended without a word, and which nothing resumes, fails in the registry too."""
        for run in self._registry.runs():
            if run.state not in ("queued", "running") or run.flow_run_id is None:
                continue
            state = prefect_client.state(run.flow_run_id, api_url=self._settings.prefect_url)
            since = self._ended_since.setdefault(run.id, time.monotonic()) if state.final else None
            if since is None:
                self._ended_since.pop(run.id, None)
            elif time.monotonic() - since > LOST_AFTER_S:
                cancelled = state.kind == "CANCELLED"
                self._registry.finish_run(
                    run.id, state="cancelled" if cancelled else "failed", error=state.message or state.name
                )

    def _end_all(self) -> None:
        self._stop.set()
        # Prefect's server goes last: the worker reports to it what became of its runs.
        for name in sorted(self._processes, key=("worker", "ui", "service", "prefect").index):
            process = self._processes[name]
            if process.poll() is None:
                _end(process.pid)
                process.wait()
                self._say(f"{name} ended")
        _state_path(self._settings).unlink(missing_ok=True)

    def _record(self, name: str) -> Running:
        return next(server for server in self._state.servers if server.name == name)

    def _save(self) -> None:
        path = _state_path(self._settings)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self._state), indent=1))
        temporary.replace(path)


def _refuse_second_stack(settings: Settings) -> None:
    state = read_state(settings)
    if state is None:
        return
    if state.supervised:
        raise StackFault(
            f"the servers of {settings.home} are up already; `graft status` shows them, `graft down` ends them"
        )
    # Its supervisor was killed: what it left behind would hold the ports.
    down(settings, say=logger.info)


def _end(pid: int) -> None:
    """SIGTERM to a server, then SIGKILL to whatever is left of it and of its children."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
        leader.terminate()
    except psutil.NoSuchProcess:
        family = []
    _, left = psutil.wait_procs(family, timeout=STOP_LIMIT_S)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    _kill_group(pid)
    psutil.wait_procs(left, timeout=5)


def _kill_group(leader_pid: int) -> None:
    """Every server leads a process group of its own, which outlives it while a child does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def _wait_until(done: Callable[[], bool], limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not done() and time.monotonic() < deadline:
        time.sleep(0.1)


def _is_up(server: Running) -> str:
    return f"{server.name} is up" + (f" at {server.address}" if server.address else "")


def _tail(log: str | Path, lines: int = 1) -> str:
    """The last lines of a log that say something."""
    text = Path(log).read_text(errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in text[-lines:]) or "no word in its log"


def _state_path(settings: Settings) -> Path:
    return settings.home / "stack.json"
