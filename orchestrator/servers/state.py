"""What is running: the file ``servers.json`` in Graft's home, by which any shell finds and checks the servers."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field

import httpx

from orchestrator.credentials import write_private
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
    """How often it was started again, ever."""
    made_of: str = ""
    """``Server.made_of`` of what was started."""

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
    worker: str = ""
    """The name under which the worker reports to Prefect."""
    servers: list[RunningServer] = field(default_factory=list)

    @property
    def supervised(self) -> bool:
        """Whether the supervisor is alive."""
        return alive(self.supervisor_pid, self.supervisor_created)

    def save(self, settings: Settings) -> None:
        """Write ``servers.json`` atomically.

        Raises:
            OSError: the disk takes no file.
        """
        temporary = settings.servers_file.with_suffix(f".{os.getpid()}")
        write_private(temporary, json.dumps(asdict(self), indent=1))
        temporary.replace(settings.servers_file)


def read(settings: Settings) -> ServersState | None:
    """What ``servers.json`` says; None if there is none, or one that a power cut or another version of Graft left."""
    try:
        stored = json.loads(settings.servers_file.read_text())
        return ServersState(**{**stored, "servers": [RunningServer(**server) for server in stored["servers"]]})
    except (FileNotFoundError, ValueError, TypeError, KeyError):
        return None


def remove(settings: Settings) -> None:
    """Delete ``servers.json``: nothing runs any more."""
    settings.servers_file.unlink(missing_ok=True)


def health(settings: Settings) -> dict[str, bool]:
    """Whether each server answers now at the address where it was started, by name."""
    state = read(settings)
    return {
        server.name: server.alive and (not server.health_url or answers(server.health_url))
        for server in (state.servers if state else [])
    }


def service_faults(settings: Settings) -> list[str]:
    """What the prediction service says is amiss while it answers; empty where it does not answer."""
    try:
        answer = httpx.get(
            f"{settings.service_url}/v1/domains", headers=settings.service_headers, timeout=2.0, trust_env=False
        )
        said = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return []
    faults = []
    if said.get("registry", "up") != "up":
        faults.append(f"registry not read, what was loaded goes on answering: {said['registry']}")
    if said.get("features", "up") != "up":
        faults.append(f"feature store away, popularity answers: {said['features']}")
    if said.get("lost_records"):
        faults.append(f"{said['lost_records']} records of answers could not be kept since it started")
    faults += [f"{one['name']}: {one['fault']}" for one in said.get("domains", []) if one.get("fault")]
    return faults
