"""What serving reads online, brought up to date: the one place that tells Feast where Graft's data lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.registry.registry import Registry
from feature_repo.definitions import FeatureRepo
from feature_repo.materialise import materialise
from orchestrator.settings import Settings


def feature_repo(settings: Settings) -> FeatureRepo:
    """Feast's folder and online store for these settings."""
    return FeatureRepo(
        settings.features_dir,
        online_store=settings.online_store,
        online_store_address=settings.online_store_address,
    )


def refresh(
    *, registry: Registry, settings: Settings, on_progress: Callable[..., None] | None = None
) -> dict[str, Any]:
    """Write profiles and histories into Feast, offline and online. Safe to repeat."""
    held = [domain for domain in registry.domains() if domain.counts.get("rows_added")]

    def report(fraction: float, step: str) -> None:
        if on_progress is not None:
            on_progress(fraction, doing=step)

    written = materialise(
        feature_repo(settings),
        domains=held,
        data_dir=settings.data_dir,
        histories=Histories.open(settings.data_dir),
        users=DomainData(settings.data_dir, held[0].name).user_vocabulary,
        on_progress=report,
    )
    return written.as_dict()
