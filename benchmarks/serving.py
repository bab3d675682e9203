"""How long a rank request takes, and where: features, model, HTTP.

    python -m benchmarks.serving --json serving.json

Makes a small simulated marketplace, gives its users histories of the asked length, trains one epoch, starts the service
on a free port of loopback with one worker, and asks it from one caller and from several, each on one connection.
Queue (waiting for the requests before it), features and model are what the service says of itself (its Server-Timing);
HTTP is the rest of what the caller waits. The callers share the machine with the service: on few cores the figures at
several callers are pessimistic.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.registry.registry import Registry
from domains.simulation.marketplace import MARKETPLACE
from domains.simulation.simulator import SimulatorConfig, simulate
from orchestrator import use_cases
from orchestrator.servers import plan
from orchestrator.settings import Settings

DOMAIN = "live"
PARTS = ("queue", "features", "model", "http", "whole")


def prepare(settings: Settings, *, events: int, users: int, lifelong: int) -> None:
    """A trained marketplace whose ``live`` domain answers from its adapter."""
    registry = Registry(settings.registry_url)
    registry.migrate()
    # A catalogue per user that is larger than a marketplace's, so that few users have many candidates to rank.
    shapes = tuple(replace(shape, item_share=10.0) if shape.name == DOMAIN else shape for shape in MARKETPLACE)
    with tempfile.TemporaryDirectory() as folder:
        for domain in simulate(SimulatorConfig(events=events, users=users, domains=shapes), Path(folder)):
            use_cases.register(domain.spec, registry=registry, by="benchmark")
            use_cases.ingest_data(
                domain.spec.name,
                interactions=[domain.interactions],
                items=domain.items,
                users=domain.users,
                registry=registry,
                settings=settings,
                by="benchmark",
            )
    use_cases.train_shared(
        registry=registry, settings=settings, by="benchmark", epochs=1, lifelong=lifelong, batch_size=512
    )


class Caller(threading.Thread):
    """Asks without pause until a moment, and keeps what each answer took, in milliseconds."""

    def __init__(self, url: str, bodies: list[bytes], until: float) -> None:
        super().__init__()
        self._url, self._bodies, self._until = url, bodies, until
        self.took: list[dict[str, float]] = []
        self.failed = 0

    def run(self) -> None:
        """Ask until it is time to stop."""
        at = 0
        with httpx.Client(timeout=30) as client:
            while time.monotonic() < self._until:
                began = time.perf_counter()
                answer = client.post(
                    self._url,
                    content=self._bodies[at % len(self._bodies)],
                    headers={"content-type": "application/json"},
                )
                whole = (time.perf_counter() - began) * 1e3
                at += 1
                if answer.status_code != 200 or answer.json()["served_by"] == "prior":
                    self.failed += 1
                    continue
                said = dict(part.strip().split(";dur=") for part in answer.headers["server-timing"].split(","))
                rank = float(said["rank"])
                self.took.append(
                    {
                        "queue": float(said["queue"]),
                        "features": float(said["features"]),
                        "model": float(said["model"]),
                        "http": whole - rank - float(said["queue"]),
                        "whole": whole,
                    }
                )


def measure(url: str, bodies: list[bytes], *, callers: int, seconds: float, worker: psutil.Process) -> dict[str, Any]:
    """Percentiles of the parts, requests a second, and requests per second of the worker's own CPU time."""
    before, began = worker.cpu_times(), time.monotonic()
    threads = [Caller(url, bodies[number::callers] or bodies, began + seconds) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasted, after = time.monotonic() - began, worker.cpu_times()
    took = [one for thread in threads for one in thread.took]
    cpu_s = after.user + after.system - before.user - before.system
    return {
        "callers": callers,
        "requests": len(took),
        "failed": sum(thread.failed for thread in threads),
        "requests_per_s": len(took) / lasted,
        "requests_per_cpu_s": len(took) / cpu_s,
        **{part: {f"p{q}": float(np.percentile([one[part] for one in took], q)) for q in (50, 99)} for part in PARTS},
    }


def requests_of(settings: Settings, *, candidates: int, history: int, users: int) -> tuple[list[bytes], float]:
    """Bodies of requests by the users with the longest histories, and the mean number of events that they have."""
    data = DomainData(settings.data_dir, DOMAIN)
    store = Histories.open(settings.data_dir).source
    everyone = np.arange(1, len(data.user_vocabulary))
    start, stop = store.window(everyone, np.array([np.iinfo(np.int64).max]), history)
    longest = everyone[np.argsort(start - stop)][:users]
    held = np.sort(stop - start)[::-1][:users]
    random = np.random.default_rng(0)
    items = data.item_vocabulary.names().to_pylist()
    bodies = []
    for user in longest:
        chosen = random.choice(items, candidates, replace=False)
        body = {
            "user_id": data.user_vocabulary.name(int(user)),
            "items": [{"item_id": str(item)} for item in chosen],
        }
        bodies.append(json.dumps(body).encode())
    return bodies, float(held.mean())


def run(*, history: int, candidates: int, callers: list[int], seconds: float) -> dict[str, Any]:
    """Prepare, serve, ask, stop; the figures as plain JSON."""
    home = Path(tempfile.mkdtemp(prefix="graft-serving-"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = Settings(home=home, bind_host="127.0.0.1", service_port=port, service_workers=1)
    process = None
    try:
        # Three quarters of the events are in sources: enough for every asked user to have a full history.
        prepare(settings, events=120 * history, users=60, lifelong=history)
        bodies, held = requests_of(settings, candidates=candidates, history=history, users=40)
        process = subprocess.Popen(plan.service(settings).command, env=plan.environment(settings))
        _wait(settings, process)
        url = f"{settings.service_url}/v1/domains/{DOMAIN}/rank"
        [worker] = [
            child
            for child in psutil.Process(process.pid).children(recursive=True)
            if "worker.service" in " ".join(child.cmdline())
        ]
        measure(url, bodies, callers=1, seconds=2, worker=worker)
        rows = [measure(url, bodies, callers=count, seconds=seconds, worker=worker) for count in callers]
        memory = worker.memory_info().rss / 2**20
    finally:
        if process is not None:
            process.terminate()
            process.wait(30)
        shutil.rmtree(home, ignore_errors=True)
    return {
        "history": history,
        "mean_events": held,
        "candidates": candidates,
        "worker_mib": memory,
        "machine": {"cpus": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "load_average": os.getloadavg()[0],
        "rows": rows,
    }


def _wait(settings: Settings, process: subprocess.Popen[bytes], timeout_s: float = 120) -> None:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError("the service ended before it was ready")
        try:
            if httpx.get(f"{settings.service_url}/readyz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"the service was not ready within {timeout_s:.0f} s")


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        f"history {figures['mean_events']:.0f} events, {figures['candidates']} candidates, one worker of "
        f"{figures['worker_mib']:.0f} MiB; load average {figures['load_average']:.1f} "
        f"on {figures['machine']['cpus']} cores",
        "",
        "| callers | requests/s | per CPU second | "
        + " | ".join(f"{part} p50 / p99 ms" for part in PARTS)
        + " | failed |",
        "|---|---|---|" + "---|" * len(PARTS) + "---|",
    ]
    for row in figures["rows"]:
        parts = " | ".join(f"{row[part]['p50']:.2f} / {row[part]['p99']:.2f}" for part in PARTS)
        lines.append(
            f"| {row['callers']} | {row['requests_per_s']:.0f} | {row['requests_per_cpu_s']:.0f} | {parts} "
            f"| {row['failed']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--history", type=int, default=500, help="events of each user, and what the network reads")
    parser.add_argument("--candidates", type=int, default=200, help="items of each request")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8], help="how many ask at the same time")
    parser.add_argument("--seconds", type=float, default=15, help="how long each is measured")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    figures = run(
        history=options.history, candidates=options.candidates, callers=options.callers, seconds=options.seconds
    )
    print(table(figures))
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
