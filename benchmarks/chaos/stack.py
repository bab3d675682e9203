"""Servers of Graft on free ports of loopback, over a small simulated marketplace in a folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import psutil

from domains.events.domain_data import DomainData
from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatedDomain, SimulatorConfig, simulate
from orchestrator import use_cases
from orchestrator.servers import plan, state
from orchestrator.settings import Settings

BY = "chaos"
TARGET = "live"
"""The domain that answers from an adapter, and whose versions are set live in turns."""


class Redis:
    """A Redis that writes what it is given into files of a folder (its append-only file), as one in service should."""

    def __init__(self, folder: Path, port: int) -> None:
        folder.mkdir()
        self._words = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
        self.address = f"127.0.0.1:{port}"
        self.process = self._started()

    def keep_going(self) -> None:
        """Start it again, where it does not run."""
        if self.process.poll() is not None:
            self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*self._words, "--appendonly", "yes"], stdout=subprocess.DEVNULL)


class Stack:
    """A trained marketplace and its servers; ``close`` ends them and removes the folder.

    Args:
        redis: keep the histories in a Redis of its own instead of SQLite.
    """

    def __init__(self, *, redis: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="graft-chaos-"))
        with ExitStack() as held:
            probes = [held.enter_context(socket.socket()) for _ in range(4)]
            for probe in probes:
                probe.bind(("127.0.0.1", 0))
            service, prefect, ui, store = (probe.getsockname()[1] for probe in probes)
        self.redis = Redis(self.folder / "redis", store) if redis else None
        self.settings = Settings(
            home=self.folder / "home",
            service_port=service,
            prefect_port=prefect,
            ui_port=ui,
            required_seeds=1,
            required_baselines=("popularity",),
            threads=1,
            online_store="redis" if self.redis else "sqlite",
            online_store_address=self.redis.address if self.redis else "",
        )
        self.registry: Registry = use_cases.open_registry(self.settings)

    @cached_property
    def market(self) -> dict[str, SimulatedDomain]:
        """The simulated domains with their files, by name."""
        made = simulate(SimulatorConfig(size="tiny"), self.folder / "market")
        return {one.spec.name: one for one in made}

    @property
    def url(self) -> str:
        return self.settings.service_url

    def prepare(self) -> None:
        """Register, ingest, train one epoch, and set two versions of the target live, one after the other."""
        sources = [name for name, one in self.market.items() if one.spec.role == "source"]
        for name in (*sources, TARGET):
            use_cases.register(self.market[name].spec, registry=self.registry, by=BY)
            self.ingest(name)
        known: dict[str, Any] = {"registry": self.registry, "settings": self.settings, "by": BY}
        quick: dict[str, Any] = {"epochs": 1, "width": 8, "lifelong": 20}
        use_cases.train_shared(**known, **quick)
        for seed in (1, 2):
            version = use_cases.launch(TARGET, **known, **quick, seed=seed, fine_tune_epochs=1)
            self.set_live(version.id)

    def ingest(self, name: str) -> None:
        """Add a domain's files; again they change nothing."""
        files = self.market[name]
        use_cases.ingest_data(
            name,
            interactions=[files.interactions],
            items=files.items,
            users=files.users,
            registry=self.registry,
            settings=self.settings,
            by=BY,
        )

    def set_live(self, version_id: str) -> None:
        """Set a version of the target live, whatever its gate says."""
        use_cases.promote(
            TARGET,
            version_id,
            registry=self.registry,
            settings=self.settings,
            who=BY,
            why="a fault is rehearsed",
            force=True,
        )

    def versions(self) -> list[str]:
        """The target's trained versions."""
        return [one.id for one in self.registry.versions(TARGET, "adapter") if one.level == "adapter"]

    def people(self) -> tuple[list[str], list[str]]:
        """Users and items of the target."""
        data = DomainData(self.settings.data_dir, TARGET)
        users = data.interactions(["user_id"])["user_id"].unique().to_pylist()
        return users, data.item_vocabulary.names().to_pylist()

    def command(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """A command of Graft's from another shell."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator.cli", *words],
            env=plan.environment(self.settings),
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self) -> None:
        """Start the servers, or have them looked after again."""
        done = self.command("up", "--background")
        if done.returncode != 0:
            raise RuntimeError(f"the servers did not come up: {done.stdout}{done.stderr}")

    def settle(self, within_s: float = 180) -> None:
        """Wait until every server answers again."""
        try:
            wait_for(lambda: all(state.health(self.settings).values()) and self._ready(), within_s, "healthy servers")
        except TimeoutError as late:
            raise TimeoutError(f"{late}: {state.health(self.settings)}, ready {self._ready()}") from None

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", timeout=2).status_code == 200
        except httpx.HTTPError:
            return False

    def server(self, name: str) -> psutil.Process | None:
        """The process of a server; None where it is gone just now."""
        running = state.read(self.settings)
        found = [one for one in running.servers if one.name == name] if running else []
        try:
            return psutil.Process(found[0].pid) if found and found[0].alive else None
        except psutil.NoSuchProcess:
            return None

    def scorers(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        parent = self.server("service")
        try:
            children = parent.children(recursive=True) if parent else []
            return [one for one in children if "worker.service" in " ".join(one.cmdline())]
        except psutil.Error:
            return []

    def close(self) -> None:
        """End the servers and remove the folder; with GRAFT_CHAOS_KEEP set the folder stays."""
        self.command("down")
        if self.redis is not None:
            self.redis.process.kill()
            self.redis.process.wait()
        if not os.environ.get("GRAFT_CHAOS_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)


def wait_for(holds: Callable[[], bool], within_s: float, what: str) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: it did not in time.
    """
    until = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"no {what} within {within_s:.0f} s")
        time.sleep(0.25)
