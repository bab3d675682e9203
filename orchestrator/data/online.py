"""Brings the online features up to date: the only module that gives Feast the paths of Graft's data."""

from __future__ import annotations

from collections.abc import Callable

from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.registry.registry import Registry
from feature_repo.definitions import FeatureRepo
from feature_repo.materialise import materialise
from orchestrator.data.dataset import domains_with_data
from orchestrator.settings import Settings


def feature_repo(settings: Settings) -> FeatureRepo:
    """Feast's folder and online store for these settings."""
    return FeatureRepo(
        settings.features_dir,
        online_store=settings.online_store,
        online_store_address=settings.online_store_address,
    )


def refresh(*, registry: Registry, settings: Settings, on_progress: Callable[..., None] | None = None) -> None:
    """Write profiles and histories into Feast, offline and online. Safe to repeat."""
    held = domains_with_data(registry)

    def report(fraction: float, step: str) -> None:
        if on_progress is not None:
            on_progress(fraction, doing=step)

    materialise(
        feature_repo(settings),
        domains=held,
        data_dir=settings.data_dir,
        histories=Histories.open(settings.data_dir),
        users=DomainData(settings.data_dir, held[0].name).user_vocabulary,
        on_progress=report,
    )
