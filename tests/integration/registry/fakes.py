"""Specs, versions and rows made up for the registry's tests, and callers that race."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from domains.errors import (
    DomainFault,
)
from domains.registry.records import Version
from domains.registry.registry import Registry
from domains.spec import DomainSpec

ROOT = Path(__file__).parents[3]


def spec(name: str = "live-rooms", **other: object) -> DomainSpec:
    declared = {"name": name, "role": "target", "task": "ctr", "owner": "team-live"}
    return DomainSpec.from_mapping({**declared, "interactions": {"user": "u", "item": "i", "label": "click"}, **other})


def adapter(id: str, domain: str = "live-rooms") -> Version:
    return Version(id=id, kind="adapter", domain=domain, backbone_id="shared", level="adapter", artifact=f"tag:{id}")


def ready(registry: Registry, *ids: str, name: str = "live-rooms") -> Registry:
    """A domain with data, and these adapters of it on one backbone."""
    registry.register_domain(spec(name), by="ann")
    registry.record_ingest(name, "first", {"rows_added": 10})
    registry.add_version(Version(id="shared", kind="backbone", artifact="tag:shared"))
    for id in ids:
        registry.add_version(adapter(id, name))
    return registry


def at_once(callers: int, action: Callable[[int], object]) -> list[object]:
    """Call from many threads that start together; what each got, or the fault that it met."""
    gate = threading.Barrier(callers)

    def call(number: int) -> object:
        gate.wait()
        try:
            return action(number)
        except DomainFault as fault:
            return fault

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(call, range(callers)))


def process(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def prediction(item: str = "i1", request: str = "q1", **other: object) -> dict[str, object]:
    return {"request_id": request, "domain": "live-rooms", "user_id": "u1", "item_id": item, "score": 0.5, **other}


def click(item: str = "i1", request: str = "q1", action: str = "click", **other: object) -> dict[str, object]:
    return {"request_id": request, "item_id": item, "action": action, **other}
