"""Versions: published under their content hash, attached to their backbone, set live."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domains.lifecycle import State
from domains.registry.records import VersionKind
from domains.registry.registry import Version
from models.ranker import adapters, checkpoint
from models.ranker.network import Ranker
from orchestrator.data import version_check
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.jobs.runner import RunContext
from orchestrator.training.fit import add_domain


def publish_version(context: RunContext, folder: Path, version_id: str, *, kind: VersionKind, **fields: Any) -> Version:
    """Store a finished folder under the version's content hash and record it; doing it again changes nothing.

    Args:
        fields: those of ``Version`` beside its id, kind, artifact and creator.
    """
    store = Artifacts(context.settings.artifacts_dir)
    tag = store.publish(kind, folder, version_id)
    version = Version(id=version_id, kind=kind, artifact=tag, created_by=context.by, **fields)
    recorded = context.registry.add_version(version)
    # Old files of the same content may have been deleted as of an old version until the line before this one.
    store.publish(kind, folder, version_id)
    return recorded


def attach_live(
    context: RunContext, ranker: Ranker, backbone_id: str, *, leave_out: str | None = None
) -> dict[str, int]:
    """Attach every target's live adapter that was trained on this backbone; returns their slots by name.

    A retired target answers nothing, so nothing about it has to stay as it is.
    """
    store = Artifacts(context.settings.artifacts_dir)
    open_ones = {domain.name for domain in context.registry.domains() if domain.state is not State.RETIRED}
    slots = {}
    for live in context.registry.lives():
        if live.domain not in open_ones or live.domain == leave_out or live.level != "adapter":
            continue
        version = context.registry.version(live.version_id)
        if version.backbone_id == backbone_id:
            adapter = checkpoint.load_adapter(store.path(version.artifact))
            slots[live.domain] = adapters.attach(ranker, adapter, backbone=backbone_id)
    return slots


def zero_shot_slot(
    ranker: Ranker, workspace: Workspace, encoder: FeatureEncoder, name: str, others: dict[str, int]
) -> int:
    """A fresh slot that starts from the attention of the target domain whose features agree most, if any agree.

    Args:
        others: slots of other target domains in this ranker, by name.
    """
    own = encoder.domain_codes(workspace.domain(name).spec)
    agreement = {
        other: sum(
            a == b and a > 0 for a, b in zip(own, encoder.domain_codes(workspace.domain(other).spec), strict=True)
        )
        for other in others
        if other != name
    }
    nearest = max(agreement, key=lambda other: (agreement[other], other), default=None)
    like = others[nearest] if nearest is not None and agreement[nearest] > 0 else None
    return add_domain(ranker, workspace, encoder, name, like=like)


def set_live(context: RunContext, domain: str | None, version_id: str, *, why: str) -> None:
    """Point a domain at a version that could answer; where that version is live already nothing changes.

    Raises:
        ArtifactDamaged: its files are not what was published, or what it scores are no numbers.
    """
    live = context.registry.live(domain)
    if live is not None and live.version_id == version_id:
        return
    version_check.check(context.registry.version(version_id), registry=context.registry, settings=context.settings)
    context.registry.promote(domain, version_id, expect=live.version_id if live else None, who=context.by, why=why)
