"""Starts and stops the servers of one machine: Prefect's server and worker, the prediction service and the UI.

``up`` stays in the foreground as their supervisor: it restarts a server that dies, does the chores, and stops all of
them on Ctrl-C or SIGTERM. ``servers.json`` in Graft's home records what runs, so that ``down`` works from any shell.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import psutil

from orchestrator import prefect_client, use_cases
from orchestrator.errors import ServersUnavailable
from orchestrator.servers import state
from orchestrator.servers.chores import Chores
from orchestrator.servers.plan import Server, environment, refuse_busy_ports, servers
from orchestrator.servers.state import RunningServer, ServersState
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

START_LIMIT_S = 180
"""A server that is not healthy by then has failed to start."""
STOP_LIMIT_S = 15
"""A server that is asked to stop is killed after this long."""
RESTARTS_ALLOWED = 5
"""A server that dies more often than this stays down; its log says why."""

Say = Callable[[str], None]


def up(settings: Settings, *, ui: bool = True, say: Say = print, stop: threading.Event | None = None) -> None:
    """Start every server, wait until each is healthy, and supervise them until told to stop.

    Args:
        say: Receives each line meant for a person.
        stop: Stops the servers when set; SIGINT and SIGTERM set it too when called from the main thread.

    Raises:
        ServersUnavailable: they run already, a port is taken, or a server does not come up.
    """
    stop = stop or threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    plan = servers(settings, ui=ui)
    _refuse_second_start(settings)
    _refuse_open_doors(settings, ui=ui)
    refuse_busy_ports(plan, settings)
    for folder in (settings.logs_dir, settings.artifacts_dir, settings.runs_dir):
        folder.mkdir(parents=True, exist_ok=True)
    Supervisor(settings, plan, say, stop).run()


def up_in_background(settings: Settings, *, ui: bool = True, say: Say = print) -> ServersState:
    """Start the servers under a process that outlives this one; returns when all of them are healthy.

    Raises:
        ServersUnavailable: they did not come up; the message ends with the last lines of the log.
    """
    _refuse_second_start(settings)
    _refuse_open_doors(settings, ui=ui)
    refuse_busy_ports(servers(settings, ui=ui), settings)
    settings.logs_dir.mkdir(parents=True, exist_ok=True)
    log = settings.logs_dir / "supervisor.log"
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
        running = state.read(settings)
        if running is not None and running.supervisor_pid == process.pid:
            for server in running.servers:
                if server.healthy and server.name not in said:
                    said.add(server.name)
                    say(_is_up(server))
            if running.ready:
                return running
        time.sleep(0.2)
    raise ServersUnavailable(f"the servers did not come up: {_tail(log, 3)} (all of it: {log})")


def down(settings: Settings, *, say: Say = print) -> list[str]:
    """Stop the servers from any shell; returns the names of those that were still running."""
    running = state.read(settings)
    if running is None:
        return []
    living = [server for server in running.servers if server.alive]
    if running.supervised:
        os.kill(running.supervisor_pid, signal.SIGTERM)
        deadline = time.monotonic() + (len(running.servers) + 1) * STOP_LIMIT_S
        while running.supervised and time.monotonic() < deadline:
            time.sleep(0.1)
    for server in reversed(living):
        if server.alive:  # its supervisor was killed
            _end(server.pid)
        say(f"{server.name} ended")
    state.remove(settings)
    return [server.name for server in living]


class Supervisor:
    """Runs planned servers in this process until ``stop`` is set."""

    def __init__(self, settings: Settings, plan: list[Server], say: Say, stop: threading.Event) -> None:
        self._settings, self._plan, self._say, self._stop = settings, plan, say, stop
        self._chores = Chores(settings, use_cases.open_registry(settings), say)
        self._environment = environment(settings)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        own = psutil.Process()
        self._state = ServersState(own.pid, own.create_time())

    def run(self) -> None:
        """Start them, restart those that die, and stop all of them at the end."""
        try:
            self._start_all()
            if not self._stop.is_set():
                self._state.ready = True
                self._state.save(self._settings)
                self._say("all servers are up; Ctrl-C or `graft down` stops them")
            while not self._stop.wait(1.0):
                self._restart_the_dead()
                self._chores.do()
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
        self.deploy_flows()
        if first[0].name == "prefect":
            abandoned = prefect_client.resume_abandoned(api_url=self._settings.prefect_api)
            if abandoned:
                self._say(f"{abandoned} runs were interrupted by the last stop and continue now")
        self._start(worker)
        for server in self._plan:
            self._await(server)

    def _start(self, server: Server, restarts: int = 0) -> None:
        log = self._settings.logs_dir / f"{server.name}.log"
        with log.open("ab" if restarts else "wb") as sink:
            process = self._spawn(server.command, sink)
        self._processes[server.name] = process
        created = psutil.Process(process.pid).create_time()
        record = RunningServer(
            server.name, process.pid, created, server.address, str(log), server.health_url, restarts=restarts
        )
        self._state.servers = [old for old in self._state.servers if old.name != server.name] + [record]
        self._state.save(self._settings)

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
                raise ServersUnavailable(
                    f"the {server.name} ended with status {status}: {_tail(record.log)} ({record.log})"
                )
            if time.monotonic() > deadline:
                raise ServersUnavailable(f"the {server.name} is not healthy after {START_LIMIT_S} s; see {record.log}")
            self._stop.wait(0.2)
        record.healthy = True
        self._state.save(self._settings)
        self._say(_is_up(record))

    def deploy_flows(self) -> None:
        """Write the deployments, in a process of its own because Prefect reads its settings once, at import."""
        log = self._settings.logs_dir / "deploy.log"
        with log.open("wb") as sink:
            process = self._spawn((sys.executable, "-m", "orchestrator.cli", "deploy"), sink)
        while process.poll() is None and not self._stop.wait(0.1):
            continue
        if process.poll() is None:
            _end(process.pid)
        elif process.returncode != 0:
            raise ServersUnavailable(f"the flows could not be deployed: {_tail(log)} ({log})")

    def _restart_the_dead(self) -> None:
        for server in self._plan:
            status = self._processes[server.name].poll()
            record = self._record(server.name)
            if status is None:
                if not record.healthy and server.healthy():
                    record.healthy = True
                    self._state.save(self._settings)
                continue
            if record.restarts >= RESTARTS_ALLOWED:
                if record.healthy or record.restarts == RESTARTS_ALLOWED:
                    record.restarts, record.healthy = RESTARTS_ALLOWED + 1, False
                    self._state.save(self._settings)
                    self._say(f"{server.name} died {RESTARTS_ALLOWED + 1} times and stays down; see {record.log}")
                continue
            self._say(f"{server.name} ended with status {status}; starting it again")
            _kill_group(self._processes[server.name].pid)  # its children may still hold the port
            self._stop.wait(2**record.restarts - 1)
            if not self._stop.is_set():
                self._start(server, restarts=record.restarts + 1)

    def _end_all(self) -> None:
        self._stop.set()
        # Prefect's server goes last: the worker reports to it how its runs ended.
        for name in sorted(self._processes, key=("worker", "ui", "service", "prefect").index):
            process = self._processes[name]
            if process.poll() is None:
                _end(process.pid)
                process.wait()
                self._say(f"{name} ended")
        state.remove(self._settings)

    def _record(self, name: str) -> RunningServer:
        return next(server for server in self._state.servers if server.name == name)


def _refuse_second_start(settings: Settings) -> None:
    running = state.read(settings)
    if running is None:
        return
    if running.supervised:
        raise ServersUnavailable(
            f"the servers of {settings.home} are up already; `graft status` shows them, `graft down` stops them"
        )
    # The supervisor was killed: the servers that it left would hold the ports.
    down(settings, say=logger.info)


def _refuse_open_doors(settings: Settings, *, ui: bool) -> None:
    """On an interface wider than loopback everything that answers must know who asks; the pages do not."""
    if settings.bind_host == "localhost" or settings.bind_host.startswith("127.") or settings.bind_host == "::1":
        return
    where = f"the setting bind_host ({settings.bind_host}) is wider than loopback"
    if ui:
        raise ServersUnavailable(f"{where} and the pages have no login: start with --no-ui, or bind to 127.0.0.1")
    if all(key.revoked_at for key in use_cases.open_registry(settings).api_keys()):
        raise ServersUnavailable(f"{where} and there is no API key; `graft keys add` makes one")


def _end(pid: int) -> None:
    """SIGTERM to a server, then SIGKILL to it and to those of its children that are left."""
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
    """Kill a server's whole process group, which lives on while one of its children does."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def _is_up(server: RunningServer) -> str:
    return f"{server.name} is up" + (f" at {server.address}" if server.address else "")


def _tail(log: str | Path, lines: int = 1) -> str:
    """The last lines of a log."""
    text = Path(log).read_text(errors="replace").strip().splitlines()
    return " / ".join(line.strip() for line in text[-lines:]) or "its log is empty"
