"""What an operator has to know of a home, asked of each part by itself: no part that is away keeps another unsaid."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import httpx
from sqlalchemy.exc import SQLAlchemyError

from domains.registry.registry import Registry
from orchestrator import prefect_client
from orchestrator.jobs import retention
from orchestrator.servers import state
from orchestrator.settings import Settings

WAIT_S = 2.0
"""How long a part may take to answer."""
LITTLE_ROOM = 0.05
"""Share of the disk under which its room is a fault."""
WAITING_MANY = 1_000
WAITING_LONG_S = 60.0
COLLECTED_WITHIN_S = 3 * 3600.0


@dataclass(frozen=True)
class Part:
    """One part of a home: how it is."""

    name: str
    says: str
    well: bool = True


def overview(settings: Settings) -> list[Part]:
    """Every part, in an order to read them in."""
    return [part for look in (_supervision, _registry, _service, _prefect, _disk, _upkeep) for part in look(settings)]


def _supervision(settings: Settings) -> Iterator[Part]:
    running = state.read(settings)
    if running is None:
        return
    if not running.supervised:
        yield Part("supervisor", "gone: what dies stays down; `graft up` takes the servers over", well=False)
    restarts = {server.name: server.restarts for server in running.servers if server.restarts}
    said = ", ".join(f"{name} {count} times" for name, count in restarts.items())
    if running.supervised:
        yield Part("supervisor", f"started again: {said}" if said else "nothing had to be started again")


def _registry(settings: Settings) -> Iterator[Part]:
    """Whether it can be read and written, what runs, and how much feedback waits for the online store."""
    registry = Registry(settings.registry_url, wait_s=WAIT_S)
    began = time.monotonic()
    try:
        domains, runs = registry.domains(), registry.unfinished_runs()
        live = {pointer.domain for pointer in registry.lives()}
        outbox = registry.outbox_size()
    except (SQLAlchemyError, OSError) as fault:
        yield Part("registry", _database_line(fault), well=False)
        return
    try:
        registry.check_writable()
        says = f"read and written in {(time.monotonic() - began) * 1e3:.0f} ms"
        yield Part("registry", says)
    except (SQLAlchemyError, OSError) as fault:
        yield Part("registry", f"can be read, not written: {_database_line(fault)}", well=False)
    finally:
        registry.close()
    answering = sum(domain.name in live for domain in domains)
    says = f"{len(domains)} domain{'s' if len(domains) != 1 else ''}, {answering} with a live version of its own"
    yield Part("domains", f"{says}, {len(runs)} run{'s' if len(runs) != 1 else ''} in progress")
    says = f"{outbox.events:,} events of feedback wait for the online store"
    says += f", the oldest for {outbox.oldest_s:.0f} s" if outbox.events else ""
    yield Part("outbox", says, well=outbox.events < WAITING_MANY and outbox.oldest_s < WAITING_LONG_S)


def _service(settings: Settings) -> Iterator[Part]:
    """What the prediction service says of its registry and its feature store."""
    if state.read(settings) is None:
        return
    try:
        answer = httpx.get(
            f"{settings.service_url}/v1/domains", headers=settings.service_headers, timeout=WAIT_S, trust_env=False
        )
        answer.raise_for_status()
        told = answer.json()
    except (httpx.HTTPError, ValueError) as fault:
        yield Part("service", f"does not answer at {settings.service_url}: {_first_line(fault)}", well=False)
        return
    lost = told.get("lost_records", 0)
    yield Part(
        "service", f"{lost:,} records of the log lost since it started" if lost else "lost no record", well=not lost
    )
    for name, part in (("registry", "its registry"), ("features", "feature store")):
        yield Part(part, str(told.get(name)), well=told.get(name) == "up")


def _prefect(settings: Settings) -> Iterator[Part]:
    if not settings.prefect_api_url and state.read(settings) is None:
        return
    well = prefect_client.healthy(settings.prefect_url, timeout_s=WAIT_S)
    yield Part(
        "Prefect", "answers" if well else f"does not answer at {settings.prefect_url}; no run can start", well=well
    )


def _disk(settings: Settings) -> Iterator[Part]:
    room = shutil.disk_usage(settings.home)
    says = f"{room.free / 1e9:,.1f} GB free of {room.total / 1e9:,.1f} GB"
    yield Part("disk", says, well=room.free > LITTLE_ROOM * room.total)


def _upkeep(settings: Settings) -> Iterator[Part]:
    last = retention.last(settings)
    if last is None:
        yield Part(
            "upkeep", "nothing was ever deleted here; `graft up` or `graft upkeep` does it every hour", well=False
        )
        return
    well, at = time.time() - last.at < COLLECTED_WITHIN_S, datetime.fromtimestamp(last.at, UTC)
    yield Part("upkeep", f"last at {at:%Y-%m-%d %H:%M} UTC: {last.in_words() or 'nothing to delete'}", well=well)


def _database_line(fault: BaseException) -> str:
    said = getattr(fault, "orig", None) or fault
    return _first_line(said)


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]
