"""Runs the service's workers: one process that has imported everything, and forks them.

    python -m deployment.http.serve --host 127.0.0.1 --port 3000

A worker that is started anew is away for as long as torch, Feast and BentoML take to import, 12 s and more. Here
the imports are done once, by a template that has one thread and answers nothing; a worker that dies is forked again
within a second, and all workers share the pages of what was imported.

Where the template is killed its workers go on. Whoever looks after the service starts another one, which binds the
same port beside them (``SO_REUSEPORT``); as soon as a worker of its own answers, those that were left are asked to end.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

import psutil
from setproctitle import setproctitle

from orchestrator.settings import Settings

if TYPE_CHECKING:
    import uvicorn

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 12.0
"""A worker that was asked to end is killed after this long."""
ORPHAN_S = 180.0
"""Workers whose template was killed end by themselves after this long, if none took its place."""
LONGEST_PAUSE_S = 30.0
"""The longest pause before a worker is forked again that dies before it answers."""
_SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}


def main() -> int:
    """Bind, import, fork, and look after the workers until told to end."""
    settings = Settings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default=settings.bind_host)
    parser.add_argument("--port", type=int, default=settings.service_port)
    options = parser.parse_args()
    where = f"{options.host}:{options.port}"
    setproctitle(f"graft: template of the service on {where}")
    # What arrives while it imports is looked at afterwards.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    listener = bound(options.host, options.port)
    # What takes long, once for all workers; none of it starts a thread. The service first: it says where counts are
    # kept before anything counts.
    from deployment.http import service  # noqa: I001
    from deployment.engine import prepared, serving  # noqa: F401

    loaded = prepared.prepare(settings)
    service.PREPARED[:] = [loaded] if loaded else []
    return Template(listener, where, settings.service_workers).run()


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound, beside workers that an earlier template left there; a worker that is ready listens.

    Raises:
        OSError: the port is another program's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.set_inheritable(True)
    return listener


@dataclass
class _Slot:
    """One worker's place."""

    number: int
    pid: int = 0
    answered: bool = False
    failures: int = 0
    """Deaths before the first answer, one after the other."""
    due: float = field(default_factory=time.monotonic)


class Template:
    """Forks workers over a bound socket, and again when one dies."""

    def __init__(self, listener: socket.socket, where: str, workers: int) -> None:
        self._listener = listener
        self._where = where
        self._slots = [_Slot(number) for number in range(1, workers + 1)]
        self._left = orphans(where)
        self._ready, self._say_ready = os.pipe()
        self._was_ready = False

    def run(self) -> int:
        """The exit status: 0 when told to end, a worker's where none has ever answered."""
        gc.collect()
        gc.freeze()  # a collection in a worker would write to, and so copy, every page
        while True:
            for slot in self._slots:
                if not slot.pid and time.monotonic() >= slot.due:
                    self._fork(slot)
            told = signal.sigtimedwait(_SIGNALS, self._pause_s())
            if told is not None and told.si_signo != signal.SIGCHLD:
                self._end()
                return 0
            self._note_ready()
            for slot, status in self._dead():
                if not self._was_ready:
                    self._end()
                    return status or 1
                self._after_death(slot, status)

    def _pause_s(self) -> float:
        due = [slot.due for slot in self._slots if not slot.pid]
        return max(0.0, min([1.0, *(at - time.monotonic() for at in due)]))

    def _fork(self, slot: _Slot) -> None:
        template = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._work(slot.number, template)
        slot.pid, slot.answered = pid, False

    def _work(self, number: int, template: int) -> NoReturn:
        """A worker's whole life."""
        status = 1
        try:
            setproctitle(f"graft: worker.service {number} on {self._where}")
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            threading.Thread(target=_end_when_left, args=(template,), daemon=True, name="template").start()
            status = self._serve()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        except BaseException:
            logger.exception("worker failed")
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)  # nothing of the template's is to be cleaned up here

    def _serve(self) -> int:
        import uvicorn

        from deployment.http.service import Graft

        template = self

        class Server(uvicorn.Server):
            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                if self.started:
                    template.answers()

        config = uvicorn.Config(
            Graft.to_asgi(),  # type: ignore[attr-defined]
            http="deployment.http.connections:BoundedConnection",  # type: ignore[arg-type]
            backlog=2048,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(STOP_LIMIT_S) - 4,
        )
        server: uvicorn.Server = Server(config)
        server.run(sockets=[self._listener])
        return 0 if server.started else 3

    def answers(self) -> None:
        """Called in a worker when it answers: it says so, and asks those to end that it replaces."""
        os.write(self._say_ready, os.getpid().to_bytes(4, "little"))
        for left in self._left:
            with contextlib.suppress(psutil.Error):
                left.terminate()

    def _note_ready(self) -> None:
        while select.select([self._ready], [], [], 0)[0]:
            pid = int.from_bytes(os.read(self._ready, 4), "little")
            self._was_ready = True
            for slot in self._slots:
                if slot.pid == pid:
                    slot.answered, slot.failures = True, 0

    def _dead(self) -> list[tuple[_Slot, int]]:
        found = []
        for slot in self._slots:
            if slot.pid and (ended := os.waitpid(slot.pid, os.WNOHANG))[0]:
                slot.pid = 0
                found.append((slot, os.waitstatus_to_exitcode(ended[1])))
        return found

    def _after_death(self, slot: _Slot, status: int) -> None:
        slot.failures += not slot.answered
        # The first time at once: it may have been killed.
        pause_s = min(2.0 ** (slot.failures - 1) - 1, LONGEST_PAUSE_S) if slot.failures else 0.0
        slot.due = time.monotonic() + pause_s
        with contextlib.suppress(OSError):  # where the log lies there may be no room
            print(f"worker {slot.number} ended with status {status}; another one in {pause_s:.0f} s", file=sys.stderr)

    def _end(self) -> None:
        """Ask every worker to end, and kill those that do not."""
        family = [*self._left]
        for slot in self._slots:
            with contextlib.suppress(psutil.Error):
                family += [psutil.Process(slot.pid)] if slot.pid else []
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.terminate()
        _, hung = psutil.wait_procs(family, timeout=STOP_LIMIT_S)
        for process in hung:
            with contextlib.suppress(psutil.Error):
                process.kill()


def orphans(where: str) -> list[psutil.Process]:
    """Workers on an address whose template is gone."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            title = _title(process)
            if not (title.startswith("graft: worker.service ") and title.endswith(f" on {where}")):
                continue
            parent = process.parent()
            if parent is None or not _title(parent).startswith("graft: template "):
                found.append(process)
    return found


def _title(process: psutil.Process) -> str:
    # A title shorter than the command that it replaces is filled up.
    return " ".join(process.cmdline()).strip()


def _end_when_left(template: int) -> None:
    while os.getppid() == template:
        time.sleep(1)
    time.sleep(ORPHAN_S)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    raise SystemExit(main())
