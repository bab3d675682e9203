"""One of several processes that train a run's shared model; started by torchrun, here or on several machines.

    torchrun --nproc-per-node 2 -m orchestrator.jobs.torchrun_worker RUN_ID

Settings come from the environment as everywhere, the recipe from the run in the registry. The first process writes a
JSON line on standard output for each report of progress, and one for a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from typing import Any

from domains.registry.registry import Registry
from models.training.allocator import keep_freed_memory
from models.training.distributed import joined
from models.training.loop import Progress
from orchestrator.jobs import train_shared
from orchestrator.jobs.runner import RunContext
from orchestrator.settings import Settings


def main() -> None:
    parser = argparse.ArgumentParser(description="One process of a shared training run; start it with torchrun.")
    parser.add_argument("run_id", help="the run, as the registry names it")
    parser.add_argument(
        "--ends-with-input", action="store_true", help="end when standard input closes: whoever started this is gone"
    )
    asked = parser.parse_args()
    if asked.ends_with_input:
        threading.Thread(target=_end_with_input, daemon=True, name="end-with-input").start()
    keep_freed_memory()
    settings = Settings()
    registry = Registry(settings.registry_url)
    run = registry.run(asked.run_id)
    context = RunContext(run.id, run.kind, run.domain, run.params, "", registry, settings)
    with joined(settings.device) as peers:
        try:
            train_shared.train_here(context, peers=peers, on_progress=_tell_progress if peers.leads else None)
        except ValueError as fault:
            # Bad data or a loss that is no number: every process meets it, and would again.
            if peers.leads:
                _tell({"fault": f"{type(fault).__name__}: {fault}"})
            raise


def _tell_progress(progress: Progress) -> None:
    _tell(train_shared.progress_detail(progress))


def _tell(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def _end_with_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
