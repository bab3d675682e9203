"""Several processes that train one model together on this machine: torchrun, what it says, and its end.

The processes tell their progress as JSON lines on standard output and keep the rest to a log. One that dies takes the
group with it; the group is then started again and continues from the last checkpoint that all of them had saved.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.errors import RunFailed
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

ENTRY = "orchestrator.jobs.torchrun_worker"
TRIES = 4
"""How often a group is started, the first time included, before its run fails."""
PATIENCE_S = 10
"""How long torchrun may take to end its processes before it is killed."""


class ProcessesFailed(RunFailed):
    """Training in several processes ended without a model."""


def train_together(
    run_id: str,
    *,
    processes: int,
    settings: Settings,
    log: Path,
    finished: Callable[[], bool],
    on_progress: Callable[[dict[str, Any]], None],
) -> None:
    """Train a run's model in ``processes`` processes; returns when ``finished`` says so.

    Args:
        log: what the processes write to standard error is added here.

    Raises:
        ProcessesFailed: a process met a fault that would come again, or the group died ``TRIES`` times.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(TRIES):
        status, fault = _run_group(run_id, processes, settings, log, on_progress)
        if finished():
            return
        if fault:
            raise ProcessesFailed(fault)
        logger.warning("training processes died", extra={"run": run_id, "status": status})
    raise ProcessesFailed(f"{processes} training processes died {TRIES} times; the reason is in {log}")


def _run_group(
    run_id: str, processes: int, settings: Settings, log: Path, on_progress: Callable[[dict[str, Any]], None]
) -> tuple[int, str]:
    """One life of the group: torchrun's exit status, and the fault that a process told of, if one did."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(processes), "-m", ENTRY, run_id, "--ends-with-input"]
    fault = ""
    with log.open("ab") as errors:
        group = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=group_environment(settings, processes),
            text=True,
            start_new_session=True,
        )
    assert group.stdin is not None
    assert group.stdout is not None
    try:
        for line in group.stdout:
            told = _told(line)
            fault = fault or told.pop("fault", "")
            if told:
                on_progress(told)
        return group.wait(), fault
    finally:
        # torchrun gives each process a session of its own, out of a signal's reach: they end with their input, which
        # closes too where this process is killed and nothing here runs.
        group.stdin.close()
        group.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            group.wait(PATIENCE_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group.pid, signal.SIGKILL)
        group.wait()
        group.stdout.close()


def group_environment(settings: Settings, processes: int) -> dict[str, str]:
    """The same settings for the processes, the cores shared out among them, and talk that stays on this machine."""
    own = settings.as_environment()
    threads = {"OMP_NUM_THREADS": str(max(1, (settings.threads or os.cpu_count() or 1) // processes))}
    talk = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {}
    return {**talk, **threads, **os.environ, **own, **(threads if settings.threads else {})}


def _told(line: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
