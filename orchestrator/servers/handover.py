"""One supervisor a home, and what it finds of the one before: which servers run on, and which of them it takes over."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator

from orchestrator.credentials import make_home
from orchestrator.errors import ServersUnavailable
from orchestrator.servers import state
from orchestrator.servers.plan import Server
from orchestrator.servers.state import RunningServer, ServersState
from orchestrator.servers.watch import end, kill_group
from orchestrator.settings import Settings


@contextlib.contextmanager
def only_supervisor(settings: Settings) -> Iterator[None]:
    """Hold the home's supervisor lock; it is let go with the process that holds it, however that ends.

    Raises:
        ServersUnavailable: another one holds it.
    """
    make_home(settings.home)
    with (settings.home / "supervisor.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise up_already(settings) from None
        yield


def up_already(settings: Settings) -> ServersUnavailable:
    """What to raise where a supervisor is at work."""
    return ServersUnavailable(
        f"the servers of {settings.home} are up already; `graft status` shows them, `graft down` stops them"
    )


def refuse_second_start(settings: Settings) -> None:
    """Raises ServersUnavailable where a supervisor is at work."""
    running = state.read(settings)
    if running is not None and running.supervised:
        raise up_already(settings)


def left_behind(settings: Settings) -> ServersState | None:
    """What runs without a supervisor, as one was killed or left; None if nothing does."""
    left = state.read(settings)
    return left if left is not None and any(server.alive for server in left.servers) else None


def take_over(left: ServersState | None, plan: list[Server]) -> dict[str, RunningServer]:
    """The living servers that were started just as they would be now; the others are ended, as they hold the ports."""
    wanted = {server.name: server.made_of for server in plan}
    taken = {}
    for record in left.servers if left else []:
        if not record.alive:
            kill_group(record.pid)  # children that it left
        elif wanted.get(record.name) == record.made_of:
            taken[record.name] = record
        else:
            end(record.pid)
    return taken


def holds(left: ServersState | None, name: str) -> bool:
    """Whether the server of that name runs on."""
    return left is not None and any(server.name == name and server.alive for server in left.servers)
