"""A run: named steps over one folder, each of which can be killed, repeated and resumed.

A step reads what earlier steps left in the run's folder and publishes its own result there by an atomic rename; when
its result already exists it does nothing. So a run that died is continued by starting it again under the same id, and
Prefect, a thread and a test all drive the same steps.
"""

from __future__ import annotations

import json
import logging
import socket
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from domains.events.publishing import point_at
from domains.registry.registry import Registry, Run
from orchestrator.errors import as_line, http_status
from orchestrator.settings import Settings
from orchestrator.values import Value

logger = logging.getLogger(__name__)

PROCESS = "process"
RESULT = "result"
"""Names of two results in every run's folder: the process at work on it, and what the run answers."""

OnProgress = Callable[[float, str, dict[str, Any]], None]
V = TypeVar("V", bound=Value)


class ProcessAtWork(Value):
    """The process that drives a run: host, process id, and when it began (seconds since the epoch)."""

    host: str
    pid: int
    created: float


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
    step: str = field(default="", init=False)
    """Title of the current step."""
    window: tuple[float, float] = field(default=(0.0, 1.0), init=False)
    """Where the current step lies in the run, 0 to 1."""

    @property
    def folder(self) -> Path:
        """Where the run's steps leave their results."""
        folder = self.settings.runs_dir / self.run_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def progress(self, fraction: float, **detail: Any) -> None:
        """Report how far the current step is, 0 to 1."""
        low, high = self.window
        overall = low + (high - low) * min(max(fraction, 0.0), 1.0)
        self.registry.report_progress(self.run_id, overall, self.step, **detail)
        if self.on_progress is not None:
            self.on_progress(overall, self.step, detail)

    def begin(self, step: str, low: float, high: float) -> None:
        """Report that a step begins, which takes the run from ``low`` to ``high``."""
        self.step, self.window = step, (low, high)
        self.progress(0.0)

    def holds(self, name: str) -> bool:
        """Whether an earlier step left a result of this name."""
        return self._path(name).is_file()

    def json_of(self, name: str) -> dict[str, Any] | None:
        """A result as it was written; None before."""
        return json.loads(self._path(name).read_text()) if self.holds(name) else None

    def result_of(self, name: str, kind: type[V]) -> V:
        """The result that an earlier step must have left.

        Raises:
            RuntimeError: it did not; the steps were driven out of order.
        """
        found = self.json_of(name)
        if found is None:
            raise RuntimeError(f"run {self.run_id} holds no {name!r} yet")
        return kind.from_dict(found)

    def write(self, name: str, value: Value) -> None:
        """Publish a result in one step, on the disk before this returns."""
        point_at(self._path(name), value.as_dict())

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


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
    note_process(context)
    total = sum(step.share for step in steps)
    done = 0.0
    try:
        for step in steps:
            context.begin(step.title, done / total, (done + step.share) / total)
            call(step, context)
            done += step.share
    except BaseException as error:
        # Ctrl-C, SIGTERM and Prefect's own signals are no Exceptions: the run was stopped; nothing is wrong with it.
        cancelled = not isinstance(error, Exception)
        where = {"run": context.run_id, "step": context.step}
        if cancelled or http_status(error) != 500:
            # Whoever started the run is told; where it was raised helps nobody.
            logger.warning("run ended: %s", as_line(error), extra=where)
        else:
            logger.exception("run failed", extra=where)
        registry.finish_run(
            context.run_id,
            state="cancelled" if cancelled else "failed",
            error=as_line(error),
        )
        raise
    return registry.finish_run(context.run_id, state="succeeded", result=context.json_of(RESULT) or {})


def note_process(context: RunContext) -> None:
    """Write down that this process drives the run, for ``close_dead`` of another."""
    context.write(PROCESS, _this_process())


def close_dead(registry: Registry, settings: Settings) -> list[str]:
    """Record as failed every run without Prefect whose process has ended on this machine; returns their ids.

    A process that is killed cannot record its end, and whoever waits for the run would wait for ever. Started again
    under its id, the run continues.
    """
    closed = []
    for run in registry.unfinished_runs():
        if run.state == "running" and run.flow_run_id is None and process_died(run.id, settings):
            registry.finish_run(run.id, state="failed", error="its process ended without a word; it can be continued")
            closed.append(run.id)
    return closed


def process_died(run_id: str, settings: Settings) -> bool:
    """Whether a run was at work in a process of this machine that is gone."""
    path = settings.runs_dir / run_id / f"{PROCESS}.json"
    try:
        process = ProcessAtWork.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return False
    return process.host == socket.gethostname() and not alive(process.pid, process.created)


def _this_process() -> ProcessAtWork:
    own = psutil.Process()
    return ProcessAtWork(host=socket.gethostname(), pid=own.pid, created=own.create_time())


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
