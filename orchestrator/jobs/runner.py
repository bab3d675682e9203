"""A run: named steps over one folder, each of which can be killed, repeated and resumed.

A step reads what earlier steps left in the run's folder and publishes its own result there by an atomic rename; when
its result already exists it does nothing. So a run that died is continued by starting it again under the same id, and
Prefect, a thread and a test all drive the same steps.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from domains.registry.registry import Registry, Run
from orchestrator.errors import as_line
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

PROCESS = "process"
"""Name of what a run's folder says of the process at work on it."""

OnProgress = Callable[[float, str, dict[str, Any]], None]


@dataclass
class RunContext:
    """What a step may touch."""

    run_id: str
    kind: str
    domain: str | None
    params: dict[str, Any]
    by: str
    registry: Registry
    settings: Settings
    on_progress: OnProgress | None = None
    _window: tuple[float, float] = field(default=(0.0, 1.0), repr=False)
    _step: str = field(default="", repr=False)

    @property
    def folder(self) -> Path:
        folder = self.settings.runs_dir / self.run_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def progress(self, fraction: float, **detail: Any) -> None:
        """Report how far the current step is, 0 to 1."""
        low, high = self._window
        overall = low + (high - low) * min(max(fraction, 0.0), 1.0)
        self.registry.report_progress(self.run_id, overall, self._step, **detail)
        if self.on_progress is not None:
            self.on_progress(overall, self._step, detail)

    def read(self, name: str) -> Any | None:
        """A JSON result of an earlier step, or None."""
        path = self.folder / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def result_of(self, name: str) -> Any:
        """A JSON result that an earlier step must have left.

        Raises:
            RuntimeError: it did not; the steps were driven out of order.
        """
        value = self.read(name)
        if value is None:
            raise RuntimeError(f"run {self.run_id} holds no {name!r} yet")
        return value

    def write(self, name: str, value: Any) -> None:
        """Publish a JSON result atomically."""
        temporary = self.folder / f".{name}.{uuid.uuid4().hex}"
        temporary.write_text(json.dumps(value, indent=1, default=str))
        os.replace(temporary, self.folder / f"{name}.json")


@dataclass(frozen=True)
class Step:
    """One step of a run: a title for people, the work, and its share of the run's time."""

    title: str
    work: Callable[[RunContext], None]
    share: float = 1.0


Call = Callable[[Step, RunContext], None]
"""Calls one step of a run."""


def call_directly(step: Step, context: RunContext) -> None:
    """Call a step as it is."""
    step.work(context)


def execute(steps: Sequence[Step], context: RunContext, *, call: Call = call_directly) -> Run:
    """Drive a run to its end and record it; ``call`` lets Prefect wrap each step in a task.

    Raises:
        whatever a step raises, after the run is recorded as failed.
    """
    registry = context.registry
    registry.start_run(context.kind, context.domain, params=context.params, by=context.by, run_id=context.run_id)
    context.write(PROCESS, _this_process())
    total = sum(step.share for step in steps)
    done = 0.0
    try:
        for step in steps:
            context._window = (done / total, (done + step.share) / total)
            context._step = step.title
            context.progress(0.0)
            call(step, context)
            done += step.share
    except BaseException as error:
        logger.exception("run failed", extra={"run": context.run_id, "step": context._step})
        # Ctrl-C, SIGTERM and Prefect's own signals are no Exceptions: somebody stopped it, nothing is wrong with it.
        cancelled = not isinstance(error, Exception)
        registry.finish_run(
            context.run_id,
            state="cancelled" if cancelled else "failed",
            error=as_line(error),
        )
        raise
    return registry.finish_run(context.run_id, state="succeeded", result=context.read("result") or {})


def close_dead(registry: Registry, settings: Settings) -> list[str]:
    """Record as failed every run without Prefect whose process has ended on this machine; says which.

    Such a process says nothing when it is killed, and what waits for the run would wait for ever. Started again under
    its id, the run continues.
    """
    closed = []
    for run in registry.runs(limit=200):
        path = settings.runs_dir / run.id / f"{PROCESS}.json"
        if run.state != "running" or run.flow_run_id is not None or not path.is_file():
            continue
        by = json.loads(path.read_text())
        if by["host"] == socket.gethostname() and not alive(by["pid"], by["created"]):
            registry.finish_run(run.id, state="failed", error="its process ended without a word; it can be continued")
            closed.append(run.id)
    return closed


def _this_process() -> dict[str, Any]:
    own = psutil.Process()
    return {"host": socket.gethostname(), "pid": own.pid, "created": own.create_time()}


def alive(pid: int, created: float) -> bool:
    """Whether the process of that number which began then, seconds since the epoch, is at work: no later one."""
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def new_run_id(kind: str) -> str:
    """A fresh id that starts with what the run does."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"
