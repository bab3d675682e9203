"""What a worker would do at its start, done before it is forked: loaded versions, and everything used once.

It is done without a thread, and nothing of it stays open: the registry's connections are not carried over a fork, and
the feature store is let go.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from dataclasses import dataclass

import numpy as np
import torch

from deployment.engine import scorer
from deployment.engine.scorer import LiveDomain
from deployment.engine.snapshot import Snapshot, SnapshotBuilder
from deployment.messages import Candidate
from domains.registry.registry import Registry
from feature_repo.online import Events, FeatureStoreDown, OnlineFeatures, UserFeatures
from orchestrator.data.online import feature_repo
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A snapshot, perhaps no longer the latest, and the builder that made it and holds what it loaded."""

    builder: SnapshotBuilder
    snapshot: Snapshot


def prepare(settings: Settings) -> Prepared | None:
    """Load what is live and use it once; None where the registry cannot be read now."""
    torch.set_num_threads(1)
    builder = SnapshotBuilder(registry=Registry(settings.registry_url), settings=settings)
    try:
        snapshot = builder.build(Snapshot())
    except Exception as error:  # each worker then goes on asking
        logger.warning("nothing loaded before the workers start", extra={"reason": f"{type(error).__name__}: {error}"})
        return None
    for domain in snapshot.domains.values():
        warm(domain)
    with contextlib.suppress(FeatureStoreDown):
        OnlineFeatures(feature_repo(settings)).read_user("-", "-")
    gc.collect()  # the store's connection is closed by nothing else
    return Prepared(builder, snapshot)


def warm(domain: LiveDomain) -> None:
    """Score a made-up request, so that no real one pays for the first use of a version."""
    if domain.model is None:
        return
    now = time.time_ns() // 1_000
    one = np.ones(1, np.int64)
    events = Events(one, one * domain.number, one, one.astype(np.float64), one * (now - 1))
    user = UserFeatures("-", 0, {}, events, Events.none())
    try:
        scorer.score(domain, [Candidate(item_id="-")] * 8, user=user, now_us=now)
    except Exception:
        logger.exception("warm-up failed", extra={"domain": domain.name})
