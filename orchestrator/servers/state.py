"""What is running: the file ``servers.json`` in Graft's home, by which any shell finds and checks the servers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from orchestrator.jobs.runner import alive
from orchestrator.servers.plan import answers
from orchestrator.settings import Settings


@dataclass
class RunningServer:
    """One server that was started."""

    name: str
    pid: int
    created: float
    """When the process started, seconds since the epoch: tells it from a later process of the same id."""
    address: str
    log: str
    health_url: str = ""
    healthy: bool = False
    restarts: int = 0

    @property
    def alive(self) -> bool:
        """Whether its process is alive."""
        return alive(self.pid, self.created)


@dataclass
class ServersState:
    """The supervisor and the servers that it started."""

    supervisor_pid: int
    supervisor_created: float
    ready: bool = False
    """Whether all servers have come up."""
    servers: list[RunningServer] = field(default_factory=list)

    @property
    def supervised(self) -> bool:
        """Whether the supervisor is alive."""
        return alive(self.supervisor_pid, self.supervisor_created)

    def save(self, settings: Settings) -> None:
        """Write ``servers.json`` atomically."""
        temporary = _path(settings).with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.replace(_path(settings))


def read(settings: Settings) -> ServersState | None:
    """What ``servers.json`` says; None if there is none."""
    try:
        stored = json.loads(_path(settings).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return ServersState(**{**stored, "servers": [RunningServer(**server) for server in stored["servers"]]})


def remove(settings: Settings) -> None:
    """Delete ``servers.json``: nothing runs any more."""
    _path(settings).unlink(missing_ok=True)


def health(settings: Settings) -> dict[str, bool]:
    """Whether each server answers now at the address where it was started, by name."""
    state = read(settings)
    return {
        server.name: server.alive and (not server.health_url or answers(server.health_url))
        for server in (state.servers if state else [])
    }


def _path(settings: Settings) -> Path:
    return settings.home / "servers.json"
