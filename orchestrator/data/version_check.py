"""Whether a version could answer: its files are whole, its model loads, and what it says are numbers.

Asked before a pointer moves, so that whoever sets a damaged version live is told, and no service has to find out.
"""

from __future__ import annotations

import numpy as np

from domains.registry.registry import Registry, Version
from models.ranker import adapters, checkpoint
from orchestrator.data.dataset import Workspace, has_data
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.data.scoring import score_rows
from orchestrator.errors import ArtifactDamaged, ArtifactMissing
from orchestrator.settings import Settings

PROBE_ROWS = 64


def check(version: Version, *, registry: Registry, settings: Settings) -> None:
    """Load a version as a service would and score a few rows of its domain, or of each source of a shared model.

    Raises:
        ArtifactDamaged: its files, or those of its shared model, are missing or not what was published; it does not
            load; or a score is not a finite number.
    """
    store = Artifacts(settings.artifacts_dir)
    workspace = Workspace(settings, tuple(registry.domains()))
    backbone = version if version.backbone_id is None else registry.version(version.backbone_id)
    try:
        folder = store.verified(backbone.artifact)
        ranker, encoder = checkpoint.load_backbone(folder), FeatureEncoder.load(folder)
        if adapters.backbone_hash(ranker) != backbone.id:
            raise ArtifactDamaged(f"{folder} holds another shared model than version {backbone.id[:12]}")
        slots = {source.domain: encoder.slots.index(source.domain) for source in encoder.sources}
        if version.domain is not None:
            folder = store.verified(version.artifact)
            adapter, encoder = checkpoint.load_adapter(folder), FeatureEncoder.load(folder)
            if adapter.content != version.id:
                raise ArtifactDamaged(f"{folder} holds another adapter than version {version.id[:12]}")
            slots = {version.domain: adapters.attach(ranker, adapter, backbone=backbone.id)}
    except ArtifactDamaged:
        raise
    except (ArtifactMissing, ValueError, KeyError, TypeError, OSError) as fault:
        raise ArtifactDamaged(f"version {version.id[:12]} does not load: {fault}") from fault
    for name, slot in slots.items():
        if has_data(workspace.domain(name)):
            rows = workspace.first_examples(encoder, name, most=PROBE_ROWS)
            scores = score_rows(ranker, workspace.batch_builder(encoder, [name]), rows, slot)
            if not np.isfinite(scores).all():
                raise ArtifactDamaged(f"version {version.id[:12]} gives no finite number for {name!r}", domain=name)
