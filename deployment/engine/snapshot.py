"""Which versions answer: read from the registry, loaded, checked, and swapped in whole.

The request path holds one immutable ``Snapshot``. A watcher thread builds the next one beside it and replaces it in one
assignment, so a promotion costs no request. Where a version does not load, the status says so and the domain goes on
with the one before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deployment.engine.scorer import LiveDomain, LiveModel, Popularity
from domains.events.domain_data import DomainData
from domains.lifecycle import State
from domains.registry.registry import Domain, Registry
from models.ranker import adapters, checkpoint
from models.ranker.checkpoint import CorruptCheckpoint
from models.ranker.network import Ranker
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

LOOK_LIMIT_S = 15.0
"""A look at the registry that takes longer is an outage: the database holds the connection and does not answer."""


@dataclass(frozen=True)
class Snapshot:
    """Everything the request path reads; ``generation`` is the registry's when it was built."""

    generation: int = -1
    domains: Mapping[str, LiveDomain] = field(default_factory=dict)

    @property
    def faults(self) -> dict[str, str]:
        return {name: domain.fault for name, domain in self.domains.items() if domain.fault is not None}


@dataclass(frozen=True)
class _Catalogue:
    """What a domain's data says without any model; renewed when it ingests."""

    stamp: str
    item_index: Mapping[str, int]
    popularity: Popularity


NO_CATALOGUE = _Catalogue("", {}, Popularity(np.zeros(1)))


class SnapshotBuilder:
    """Builds snapshots, loading only what changed since the one before."""

    def __init__(self, *, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._settings = settings
        self._artifacts = Artifacts(settings.artifacts_dir)
        self._backbones: dict[str, tuple[Ranker, FeatureEncoder]] = {}
        self._backbone_of: dict[str, str] = {}
        self._catalogues: dict[str, _Catalogue] = {}

    def build(self, previous: Snapshot) -> Snapshot:
        """The registry as it is now; a domain whose live version does not load keeps what ``previous`` had."""
        # The generation first: a promotion between the two reads is then seen at the next look, and never missed.
        generation = self._registry.generation()
        lives = {live.domain: live.version_id for live in self._registry.lives()}
        domains, forced = tuple(self._registry.domains()), self._registry.forced()
        workspace = Workspace(self._settings, domains)
        answering = {}
        for domain in domains:
            if domain.state is not State.RETIRED:
                before = previous.domains.get(domain.name)
                loaded = self._domain(domain, lives.get(domain.name), lives.get(None), before)
                move = None if loaded.model is None else forced.get(loaded.model.version_id)
                sources, why = workspace.sources_of(domain.name), None if move is None else move.why
                answering[domain.name] = replace(loaded, sources=sources, forced=why)
        self._forget_backbones(answering, lives.get(None))
        return Snapshot(generation=generation, domains=answering)

    def _domain(
        self, domain: Domain, version_id: str | None, backbone_id: str | None, before: LiveDomain | None
    ) -> LiveDomain:
        fault = None
        try:
            catalogue = self._catalogue(domain)
        except Exception as error:
            fault = f"data: {type(error).__name__}: {error}"
            catalogue = self._catalogues.get(domain.name) or NO_CATALOGUE
        model = before.model if before is not None else None
        item_codes = before.item_codes if before is not None else np.zeros((1, 0), np.int64)
        # A source domain has no adapter: its slot is part of the shared model.
        wanted = backbone_id if domain.role == "source" else version_id
        try:
            if wanted is None:
                model = None
            elif model is None or model.version_id != wanted:
                model = self._source_model(domain, wanted) if domain.role == "source" else self._target_model(wanted)
            changed = before is None or before.model is not model or before.item_index is not catalogue.item_index
            if model is not None and changed:
                item_codes = Workspace(self._settings, (domain,)).item_codes(model.encoder, domain.name)
        # Whatever is wrong with one version (files gone, bytes changed, another backbone), the others still answer.
        except Exception as error:
            fault = f"version {str(wanted)[:12]}: {type(error).__name__}: {error}"
            model = before.model if before is not None else None
        if fault is not None and (before is None or before.fault != fault):
            logger.error("version not loaded", extra={"domain": domain.name, "version": wanted, "fault": fault})
        return LiveDomain(
            name=domain.name,
            number=domain.number,
            role=domain.role,
            task=domain.spec.task,
            state=str(domain.state),
            item_index=catalogue.item_index,
            popularity=catalogue.popularity,
            model=model,
            item_codes=item_codes,
            fault=fault,
            label_range=domain.spec.interactions.label_range,
            features={
                "items": domain.spec.items.features if domain.spec.items else {},
                "user": domain.spec.users.features if domain.spec.users else {},
                "context": domain.spec.interactions.context,
            },
        )

    def _source_model(self, domain: Domain, backbone_id: str) -> LiveModel | None:
        backbone, encoder = self._backbone(backbone_id)
        source = encoder.source(domain.name)
        if source is None:
            return None
        slot = encoder.slots.index(domain.name)
        return _live_model(
            backbone, version_id=backbone_id, level="adapter", slot=slot, encoder=encoder, items=source.size
        )

    def _target_model(self, version_id: str) -> LiveModel:
        version = self._registry.version(version_id)
        if version.backbone_id is None:
            raise CorruptCheckpoint(Path(version.artifact), "names no backbone")
        self._backbone_of[version_id] = version.backbone_id
        backbone, _ = self._backbone(version.backbone_id)
        folder = self._artifacts.verified(version.artifact)
        adapter = checkpoint.load_adapter(folder)
        if adapter.content != version.id:
            raise CorruptCheckpoint(folder, f"holds {adapter.content[:12]}, not the version that was promoted")
        ranker = backbone.with_own_domains()
        slot = adapters.attach(ranker, adapter, backbone=version.backbone_id)
        ranker.eval()
        return _live_model(
            ranker,
            version_id=version.id,
            level=version.level or "adapter",
            slot=slot,
            encoder=FeatureEncoder.load(folder),
            items=adapter.config.items,
        )

    def _backbone(self, backbone_id: str) -> tuple[Ranker, FeatureEncoder]:
        if backbone_id not in self._backbones:
            folder = self._artifacts.verified(self._registry.version(backbone_id).artifact)
            ranker = checkpoint.load_backbone(folder)
            if adapters.backbone_hash(ranker) != backbone_id:
                raise CorruptCheckpoint(folder, "is not the backbone that its version names")
            self._backbones[backbone_id] = (ranker.requires_grad_(requires_grad=False), FeatureEncoder.load(folder))
        return self._backbones[backbone_id]

    def _forget_backbones(self, answering: Mapping[str, LiveDomain], live: str | None) -> None:
        used = {live}
        for domain in answering.values():
            if domain.model is not None and domain.role == "target":
                used.add(self._backbone_of.get(domain.model.version_id))
        for backbone_id in set(self._backbones) - used:
            del self._backbones[backbone_id]

    def _catalogue(self, domain: Domain) -> _Catalogue:
        data = DomainData(self._settings.data_dir, domain.name)
        held = self._catalogues.get(domain.name)
        if held is not None and held.stamp == data.version:
            return held
        catalogue = NO_CATALOGUE
        if data:
            table = data.popularity()
            score = np.zeros(len(table) + 1)
            score[1:] = table["score"].to_numpy()
            # Item 0 stands for all unknown ones: they score what an item without events scores, the domain's mean.
            events, mean = table["events"].to_numpy(), table["label_mean"].to_numpy(zero_copy_only=False)
            score[0] = float(np.nansum(events * np.nan_to_num(mean)) / max(events.sum(), 1))
            index = {name: at for at, name in enumerate(table["item_id"].to_pylist(), start=1)}
            catalogue = _Catalogue(data.version, index, Popularity(score))
        self._catalogues[domain.name] = catalogue
        return catalogue


def _live_model(ranker: Ranker, **rest: Any) -> LiveModel:
    with torch.inference_mode():
        return LiveModel(ranker=ranker, stack=ranker.stack(range(len(ranker.domains))), **rest)


class Watcher:
    """Keeps ``snapshot`` equal to what the registry says, from a thread of its own.

    Args:
        snapshot: what to begin with, brought up to date at the start.
        before_swap: called with the old snapshot and the new one before requests see the new one.
        on_swap: called after each swap, with the new snapshot.
    """

    def __init__(
        self,
        builder: SnapshotBuilder,
        registry: Registry,
        *,
        snapshot: Snapshot,
        every_s: float,
        before_swap: Callable[[Snapshot, Snapshot], None],
        on_swap: Callable[[Snapshot], None],
    ) -> None:
        self.snapshot = snapshot
        self._fault: str | None = "not read yet"
        self._looked = time.monotonic()
        self._identity: object = None
        self._pause_s = every_s
        self._builder = builder
        self._registry = registry
        self._every_s = every_s
        self._before_swap = before_swap
        self._on_swap = on_swap
        self._stop = threading.Event()
        self._look_now = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Build the first snapshot before this returns, then watch in the thread.

        A registry that does not answer yet leaves the snapshot empty; the thread goes on asking.
        """
        self._look()
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._look_now.set()
        self._thread.join(5)

    @property
    def fault(self) -> str | None:
        """Why the snapshot may be behind the registry: the last look failed, or none has ended for a while."""
        quiet_s = time.monotonic() - self._looked
        if self._fault is None and quiet_s > self._pause_s + LOOK_LIMIT_S:
            return f"no answer for {quiet_s:.0f} s"
        return self._fault

    def look_now(self) -> None:
        """Look again before the next turn, as when a request names a domain that nobody knows."""
        self._look_now.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look_now.wait(self._pause_s)
            self._look_now.clear()
            began = time.monotonic()
            self._look()
            # With thousands of domains a look takes a while: then look less often, never with over a tenth of a core.
            if self._fault is None:
                self._pause_s = max(self._every_s, 10 * (time.monotonic() - began))

    def _look(self) -> None:
        try:
            snapshot = self._read()
        except Exception as error:
            self._failed(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return
        if self._fault is not None:
            logger.info("registry read", extra={"generation": snapshot.generation})
        if snapshot is not self.snapshot:
            self._swap(snapshot)
        self._fault = None
        self._looked = time.monotonic()

    def _read(self) -> Snapshot:
        """The registry as it is now; the snapshot at hand where nothing changed."""
        held = self.snapshot
        identity = self._registry.identity()
        if identity == self._identity and self._registry.generation() == held.generation and not held.faults:
            return held
        snapshot = self._builder.build(held)
        same = snapshot.generation == held.generation and snapshot.faults == held.faults
        # A restored backup may have the same generation and say something else.
        if same and identity == self._identity:
            return held
        self._identity = identity
        return snapshot

    def _failed(self, reason: str) -> None:
        # Once per outage: a look comes twice a second.
        if reason != self._fault:
            logger.error("registry not read", extra={"reason": reason})
        self._fault = reason

    def _swap(self, snapshot: Snapshot) -> None:
        self._before_swap(self.snapshot, snapshot)
        self.snapshot = snapshot
        logger.info(
            "snapshot swapped",
            extra={"generation": snapshot.generation, "domains": len(snapshot.domains), "faults": snapshot.faults},
        )
        self._on_swap(snapshot)
