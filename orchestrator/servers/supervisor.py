"""Starts and stops the servers of one machine: Prefect's server and worker, the prediction service and the UI.

``up`` stays in the foreground as their supervisor: it restarts a server that dies or freezes, does the chores, and
stops all of them on Ctrl-C, SIGTERM or a closed terminal. ``servers.json`` in Graft's home records what runs, so that
``down`` works from any shell, and the next ``up`` takes over the servers of a supervisor that was killed.
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

import psutil

from orchestrator import prefect_client, use_cases
from orchestrator.errors import ServersUnavailable
from orchestrator.servers import doors, handover, logs, state
from orchestrator.servers.chores import Chores
from orchestrator.servers.plan import Server, environment, refuse_busy_ports, servers
from orchestrator.servers.state import RunningServer, ServersState
from orchestrator.servers.watch import HUNG_AFTER, STOP_LIMIT_S, Watched, end, kill_group
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

START_LIMIT_S = 180
"""A server that is not healthy by then has failed to start."""
POLL_S = 0.25
"""How often the supervisor looks for dead processes."""
LOOK_EVERY_S = 2.0
"""How often each server is asked whether it is healthy."""
ENDING_ORDER = ("worker", "ui", "service", "prefect")
"""Prefect's server goes last: the worker reports to it how its runs ended."""

Say = Callable[[str], None]


def up(settings: Settings, *, ui: bool = True, say: Say = print, stop: threading.Event | None = None) -> None:
    """Start every server, wait until each is healthy, and supervise them until told to stop.

    Args:
        say: Receives each line meant for a person.
        stop: Stops the servers when set; SIGINT, SIGTERM and SIGHUP set it too when called from the main thread, and
            SIGUSR1 ends the supervisor alone.

    Raises:
        ServersUnavailable: they run already, a port is taken, or a server does not come up.
    """
    stop, leave = stop or threading.Event(), threading.Event()
    if threading.current_thread() is threading.main_thread():
        _heed_signals(stop, leave)
    doors.refuse_open_doors(settings, ui=ui)
    with handover.only_supervisor(settings):
        left = handover.left_behind(settings)
        plan = servers(settings, ui=ui, worker=left.worker if left else "")
        taken_over = handover.take_over(left, plan)
        refuse_busy_ports([server for server in plan if server.name not in taken_over], settings)
        for folder in (settings.logs_dir, settings.artifacts_dir, settings.runs_dir):
            folder.mkdir(parents=True, exist_ok=True)
        doors.note_policy(use_cases.open_registry(settings), settings)
        if (warning := doors.warning(settings)) is not None:
            say(warning)
        Supervisor(settings, plan, say, stop, leave=leave, taken_over=taken_over).run()


def up_in_background(settings: Settings, *, ui: bool = True, say: Say = print) -> ServersState:
    """Start the servers under a process that outlives this one; returns when all of them are healthy.

    Raises:
        ServersUnavailable: they did not come up; the message ends with the last lines of the log.
    """
    handover.refuse_second_start(settings)
    doors.refuse_open_doors(settings, ui=ui)
    left = handover.left_behind(settings)
    plan = servers(settings, ui=ui, worker=left.worker if left else "")
    refuse_busy_ports([server for server in plan if not handover.holds(left, server.name)], settings)
    log = settings.logs_dir / "supervisor.log"
    command = [sys.executable, "-m", "orchestrator.cli", "up", *([] if ui else ["--no-ui"])]
    with logs.open_log(log, "the supervisor") or open(os.devnull, "wb") as sink:
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
    handover.refuse_second_start(settings)  # another one was started at the same moment
    raise ServersUnavailable(f"the servers did not come up: {logs.tail(log, 3)} (all of it: {log})")


def down(settings: Settings, *, say: Say = print, supervisor_only: bool = False) -> list[str]:
    """Stop the servers from any shell; returns the names of those that were still running.

    Args:
        supervisor_only: end the supervisor alone; its servers go on, and the next ``up`` takes them over.
    """
    running = state.read(settings)
    if running is None:
        return []
    living = [server for server in running.servers if server.alive]
    if running.supervised:
        os.kill(running.supervisor_pid, signal.SIGUSR1 if supervisor_only else signal.SIGTERM)
        deadline = time.monotonic() + (len(running.servers) + 1) * STOP_LIMIT_S
        while running.supervised and time.monotonic() < deadline:
            time.sleep(0.1)
    if supervisor_only:
        say("the supervisor ended; its servers go on")
        return [server.name for server in living]
    for server in sorted(living, key=lambda server: _ending(server.name)):
        if server.alive:  # its supervisor was killed
            end(server.pid)
        say(f"{server.name} ended")
    state.remove(settings)
    return [server.name for server in living]


class Supervisor:
    """Runs planned servers in this process until ``stop`` is set; until ``leave`` is, when they go on without it.

    Args:
        taken_over: servers that run already, by name.
    """

    def __init__(
        self,
        settings: Settings,
        plan: list[Server],
        say: Say,
        stop: threading.Event,
        *,
        leave: threading.Event | None = None,
        taken_over: dict[str, RunningServer] | None = None,
    ) -> None:
        self._settings, self._plan, self._stop = settings, plan, stop
        self._listener = say
        self._leave = leave or threading.Event()
        self._file, self._forgotten = threading.Lock(), False
        self._chores = Chores(settings, use_cases.open_registry(settings), self._say)
        self._environment = environment(settings)
        worker = next(
            (server.command[server.command.index("--name") + 1] for server in plan if "--name" in server.command), ""
        )
        own = psutil.Process()
        self._state = ServersState(own.pid, own.create_time(), worker=worker)
        self._watched = {
            server.name: Watched(server, record)
            for server in plan
            if (record := (taken_over or {}).get(server.name)) is not None
        }

    def run(self) -> None:
        """Start them, restart those that die, and stop all of them at the end."""
        try:
            self._save()
            self._start_all()
            if not self._stop.is_set():
                self._state.ready = True
                self._save()
                self._say("all servers are up; Ctrl-C or `graft down` stops them")
            # In threads of their own: what hangs must not keep the other servers from being looked after.
            for work, every_s in ((self._look, LOOK_EVERY_S), (self._chores.do, 1.0), (self._rotate_logs, 1.0)):
                threading.Thread(target=self._again_and_again, args=(work, every_s), daemon=True).start()
            while not self._stop.wait(POLL_S):
                for watched in list(self._watched.values()):
                    with contextlib.suppress(OSError):  # no process, no file now: tried again in a moment
                        self._care_for(watched)
        finally:
            self._end(came_up=self._state.ready)

    def _again_and_again(self, work: Callable[[], None], every_s: float) -> None:
        while not self._stop.wait(every_s):
            try:
                work()
            except Exception:
                logger.warning("done again later", exc_info=True)

    def _start_all(self) -> None:
        # The worker needs Prefect's work pool; the others load while Prefect starts.
        *first, worker = self._plan
        for name in self._watched:
            self._say(f"{name} runs already and is taken over")
        for server in first:
            if server.name not in self._watched:
                self._start(server)
        if first[0].name == "prefect":
            self._await(first[0])
        if self._stop.is_set():
            return
        self.deploy_flows()
        if worker.name not in self._watched:
            if first[0].name == "prefect":
                abandoned = prefect_client.resume_abandoned(api_url=self._settings.prefect_api)
                if abandoned:
                    self._say(f"{abandoned} runs were interrupted by the last stop and continue now")
            self._start(worker)
        for server in self._plan:
            self._await(server)

    def _start(self, server: Server) -> None:
        log = self._settings.logs_dir / f"{server.name}.log"
        process = self._spawn(server.command, log, server.name)
        before = self._watched.get(server.name)
        record = RunningServer(
            server.name,
            process.pid,
            psutil.Process(process.pid).create_time(),
            server.address,
            str(log),
            server.health_url,
            restarts=before.record.restarts + 1 if before else 0,
            made_of=server.made_of,
        )
        self._watched[server.name] = Watched(server, record, process, deaths=before.deaths if before else 0)
        self._save()

    def _spawn(self, command: tuple[str, ...], log: Path, name: str) -> subprocess.Popen[bytes]:
        # A session of its own: a terminal's Ctrl-C reaches only the supervisor, which ends the servers in order.
        with logs.open_log(log, name) or open(os.devnull, "wb") as sink:
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
        watched = self._watched[server.name]
        deadline = time.monotonic() + START_LIMIT_S
        while not server.healthy():
            if self._stop.is_set():
                return
            if watched.process is None and (watched.ended() or time.monotonic() > deadline - START_LIMIT_S + 30):
                end(watched.record.pid)  # it died, or hangs, since it was taken over
                self._start(server)
                watched = self._watched[server.name]
            if watched.ended():
                log = watched.record.log
                raise ServersUnavailable(f"the {server.name} {watched.how()}: {logs.tail(log)} ({log})")
            if time.monotonic() > deadline:
                log = watched.record.log
                raise ServersUnavailable(f"the {server.name} is not healthy after {START_LIMIT_S} s; see {log}")
            self._stop.wait(0.2)
        if not watched.record.healthy:
            watched.look(healthy=True, responds=True)
            self._save()
            self._say(_is_up(watched.record))

    def deploy_flows(self) -> None:
        """Write the deployments, in a process of its own because Prefect reads its settings once, at import."""
        log = self._settings.logs_dir / "deploy.log"
        process = self._spawn((sys.executable, "-m", "orchestrator.cli", "deploy"), log, "deploy")
        while process.poll() is None and not self._stop.wait(0.1):
            continue
        if process.poll() is None:
            end(process.pid)
        elif process.returncode != 0:
            raise ServersUnavailable(f"the flows could not be deployed: {logs.tail(log)} ({log})")

    def _care_for(self, watched: Watched) -> None:
        """Start a server again whose process is gone, after a wait that grows with its deaths of late."""
        if watched.due is None:
            if not watched.ended():
                return
            watched.deaths += 1
            watched.due = time.monotonic() + watched.wait_s()
            watched.record.healthy = False
            self._save()
            wait_s = watched.wait_s()
            again = f"starting it again in {wait_s:.0f} s" if wait_s else "starting it again"
            self._say(
                f"{watched.server.name} {watched.how()}; {again}" + (f", see {watched.record.log}" if wait_s else "")
            )
            if not watched.server.hands_over:
                kill_group(watched.record.pid)  # its children may still hold the port
        if time.monotonic() >= watched.due:
            self._start(watched.server)

    def _look(self) -> None:
        """Ask every living server how it is; end one that was healthy and answers nothing any more."""
        for watched in list(self._watched.values()):
            if self._stop.is_set() or watched.due is not None or watched.ended():
                continue
            was = watched.record.healthy
            healthy = watched.server.healthy()
            watched.look(healthy=healthy, responds=healthy or watched.server.responds())
            if healthy != was:
                self._save()
            if watched.silent >= HUNG_AFTER:
                self._say(f"{watched.server.name} has answered nothing for a while; it is ended and started again")
                watched.silent = 0
                kill_group(watched.record.pid)

    def _rotate_logs(self) -> None:
        most_bytes, kept = self._settings.log_mb * 1_000_000, self._settings.log_files
        for log in self._settings.logs_dir.glob("*.log"):
            logs.rotate(log, most_bytes=most_bytes, kept=kept)

    def _end(self, *, came_up: bool) -> None:
        asked = self._stop.is_set()
        self._stop.set()
        if self._leave.is_set():
            self._say("the supervisor ends; its servers go on, and the next `graft up` takes them over")
            return
        for name in sorted(self._watched, key=_ending):
            watched = self._watched[name]
            if watched.ended():
                kill_group(watched.record.pid)  # what it left
                continue
            # A start that failed must not end what answered before it.
            if not asked and not came_up and watched.process is None:
                continue
            end(watched.record.pid)
            if watched.process is not None:
                watched.process.wait()
            self._say(f"{name} ended")
        with self._file:
            if all(watched.ended() for watched in self._watched.values()):
                self._forgotten = True
                state.remove(self._settings)

    def _save(self) -> None:
        with self._file:
            if not self._forgotten:
                self._write_state()

    def _write_state(self) -> None:
        self._state.servers = [watched.record for watched in self._watched.values()]
        try:
            self._state.save(self._settings)
        except OSError:  # a full disk must not end the supervisor, and with it the servers
            logger.warning("servers.json not written", exc_info=True)

    def _say(self, line: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone, or the log's disk full
            self._listener(line)


def _heed_signals(stop: threading.Event, leave: threading.Event) -> None:
    """Python calls these between two steps of the main thread; setting an event is all that they may do."""

    def end_alone(*_: object) -> None:
        leave.set()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Under nohup a hang-up stays ignored.
        if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
            signal.signal(number, lambda *_: stop.set())
    signal.signal(signal.SIGUSR1, end_alone)


def _ending(name: str) -> int:
    return ENDING_ORDER.index(name) if name in ENDING_ORDER else len(ENDING_ORDER)


def _is_up(server: RunningServer) -> str:
    return f"{server.name} is up" + (f" at {server.address}" if server.address else "")
