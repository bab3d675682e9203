"""The first and the last step that several kinds of runs share."""

from __future__ import annotations

from orchestrator.data import online
from orchestrator.data.dataset import gather_histories
from orchestrator.jobs.runner import RunContext, Step


def gather(context: RunContext) -> None:
    """Put every user's events in time order, where training and serving read them."""
    gather_histories(context.registry, context.settings)


def refresh(context: RunContext) -> None:
    """Write what serving reads online."""
    online.refresh(registry=context.registry, settings=context.settings, on_progress=context.progress)


GATHER = Step("Gather every user's history", gather, 1)
REFRESH = Step("Refresh the online features", refresh, 1)
