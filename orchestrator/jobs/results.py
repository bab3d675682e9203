"""The results of successful runs, as the registry holds them in ``Run.result``."""

from __future__ import annotations

from domains.registry.records import Run
from orchestrator.evaluation.report import Decision
from orchestrator.values import Value


class SharedTraining(Value):
    """The shared model that was published, and the domains it learned from."""

    version: str
    domains: list[str]


class Launch(Value):
    """The version that a launch or a retrain made, and the gate's decision on it."""

    version: str
    decision: Decision


def version_of(run: Run) -> str:
    """The version that a finished run of shared training, a launch or a retrain made."""
    kind: type[SharedTraining | Launch] = SharedTraining if run.kind == "train-shared" else Launch
    return kind.from_dict(run.result).version
