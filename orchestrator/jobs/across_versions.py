"""Whether users change sides between the versions of a domain: who was cold once stays cold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from domains.events.splits import VALIDATION_SHARE, Split, held_out
from domains.events.vocabulary import Vocabulary
from domains.registry.registry import Registry
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.evaluation.report import ColdStartReport, SplitDraw


def draw_of(workspace: Workspace, name: str, cut_us: int | None) -> SplitDraw:
    """How a domain's cold users are drawn now."""
    vocabulary = workspace.data(name).user_vocabulary
    return SplitDraw(
        seed=workspace.split_seed,
        share=workspace.cold_share or workspace.domain(name).spec.gate.cold_share,
        validation_share=VALIDATION_SHARE,
        cut_us=cut_us,
        users=len(vocabulary),
        digest=_digest(vocabulary, len(vocabulary)),
    )


def earlier_draws(registry: Registry, name: str) -> dict[str, SplitDraw]:
    """How the cold users of each version that a launch made were drawn, by its id."""
    reports = ((version.id, ColdStartReport.of(version)) for version in registry.versions(name, "adapter"))
    return {version: report.drawn for version, report in reports if report is not None and report.drawn is not None}


def crossings(workspace: Workspace, rows: Examples, split: Split, earlier: Mapping[str, SplitDraw]) -> Iterator[str]:
    """Users on whom an earlier version was judged and who are trained on now, a sentence for each version."""
    vocabulary = workspace.data(rows.domain).user_vocabulary
    taught = np.unique(rows.user[np.r_[split.train, split.validation]])
    for version, drawn in earlier.items():
        if drawn.users > len(vocabulary) or _digest(vocabulary, drawn.users) != drawn.digest:
            yield (
                f"users have other numbers than when version {version[:12]} was judged, so its cold users are unknown: "
                "its data was taken in again from the start"
            )
            continue
        known = taught[(taught > 0) & (taught < drawn.users)]
        hidden, _ = held_out(known, share=drawn.share, validation_share=drawn.validation_share, seed=drawn.seed)
        if hidden.any():
            yield (
                f"{int(hidden.sum())} users who were held out as cold from version {version[:12]}, at a share of "
                f"{drawn.share:g}, are trained on now; set gate.cold_share to {drawn.share:g} or more again"
            )


def _digest(vocabulary: Vocabulary, users: int) -> str:
    """A hash of the ids of the first users, the unknown one counted."""
    ids = vocabulary.names().slice(0, max(users - 1, 0)).to_pylist()
    return hashlib.sha256("\n".join(ids).encode("utf-8", "surrogatepass")).hexdigest()
