"""The shared model, untrained on a domain, as its first version: judged against popularity before it may answer."""

from __future__ import annotations

import shutil

import numpy as np

from domains.errors import NotEnoughData
from domains.registry.registry import Domain
from models.ranker import checkpoint
from models.ranker.network import Ranker
from orchestrator.data.dataset import Workspace, has_data
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.scoring import score_rows
from orchestrator.evaluation.gate import row_of, unvouched
from orchestrator.evaluation.measure import EvaluationRows
from orchestrator.evaluation.plain_rows import plain_rows
from orchestrator.evaluation.report import ColdStartReport, Decision, ZeroShotReport
from orchestrator.jobs.leak_scan import declared_features, suspects
from orchestrator.jobs.runner import RunContext
from orchestrator.jobs.versions import attach_live, publish_version, set_live, zero_shot_slot
from orchestrator.training.fit import EVALUATED_ROWS, sample

POPULARITY = "popularity"


def offer_zero_shot(
    context: RunContext,
    domain: Domain,
    *,
    workspace: Workspace,
    ranker: Ranker,
    encoder: FeatureEncoder,
    backbone_id: str,
) -> None:
    """Record a domain's zero-shot version with its judgement; only one that passed answers.

    Does nothing where the domain's task is not the backbone's, where it has no data, where something is live, or where
    a launch has judged the domain already: what a launch held back does not come again by another door.
    """
    registry = context.registry
    if domain.spec.task != encoder.task or not has_data(domain) or registry.live(domain.name) is not None:
        return
    if any(ColdStartReport.of(version) for version in registry.versions(domain.name, "adapter")):
        return
    slot = zero_shot_slot(ranker, workspace, encoder, domain.name, attach_live(context, ranker, backbone_id))
    folder = context.folder / f"zero-shot-{domain.name}"
    if not folder.is_dir():
        building = context.folder / f"zero-shot-{domain.name}.building"
        shutil.rmtree(building, ignore_errors=True)
        named = {"name": domain.name, "level": "zero_shot"}
        checkpoint.save_adapter(ranker, slot, building, **named, backbone=backbone_id)
        encoder.save(building)
        building.rename(folder)
    judged = judge(workspace, ranker, encoder, slot, domain)
    measured = judged.rows.get("shared", {})
    evaluated = {
        "metrics": {metric: found.as_dict() for metric, found in measured.items()},
        "report": judged.as_dict(),
    }
    version = publish_version(
        context,
        folder,
        checkpoint.load_adapter(folder).content,
        kind="adapter",
        domain=domain.name,
        backbone_id=backbone_id,
        level="zero_shot",
        **evaluated,
    )
    if ZeroShotReport.of(version) != judged:  # the same weights, judged on newer data
        unchanged = {"certificate": version.certificate, "config": version.config}
        verdict = {"after": judged.decision.verdict}
        registry.reevaluate(version.id, **evaluated, **unchanged, by=context.by, noted=verdict)
    if judged.decision.promote:
        set_live(context, domain.name, version.id, why="; ".join(judged.decision.reasons))


def judge(workspace: Workspace, ranker: Ranker, encoder: FeatureEncoder, slot: int, domain: Domain) -> ZeroShotReport:
    """Compare the shared model with popularity on the domain's own cold users, by the metric of its gate."""
    gate, task = domain.spec.gate, domain.spec.task
    baseline = row_of(POPULARITY, task)
    rows = workspace.examples(encoder, domain.name)
    try:
        split = workspace.split(rows)
    except NotEnoughData as fault:
        return _held(gate.metric, baseline, 0, 0, f"nothing to judge it on: {fault}")
    test, train = rows.take(sample(split.test, EVALUATED_ROWS)), rows.take(split.train)
    cold = EvaluationRows.of(task, test)
    users = len(np.intersect1d(test.user, split.cold_users))
    if users < gate.minimum_cold_users:
        why = f"only {users} cold users to judge on; the gate asks for {gate.minimum_cold_users}"
        return _held(gate.metric, baseline, users, len(test), why)
    if not cold.enough:
        why = f"{len(test)} rows of cold users are too few to judge on, or all have one label"
        return _held(gate.metric, baseline, users, len(test), why)
    told = suspects(workspace, rows, split, list(declared_features(workspace, encoder, rows)))
    if waiting := list(unvouched(told, gate)):
        return _held(gate.metric, baseline, users, len(test), "; ".join(waiting))
    scores = plain_rows(task, train, test, (baseline,))
    scores["shared"] = score_rows(ranker, workspace.batch_builder(encoder, [domain.name]), test, slot)
    gain = cold.gain(gate.metric, scores["shared"], scores[baseline])
    measured = f"{gain.value:+.4f}, 95% interval {gain.low:+.4f} to {gain.high:+.4f}"
    if gain.low > 0:
        why = f"{gate.metric} on {users} cold users beats {baseline} by {measured}, before any training here"
        decision = Decision(promote=True, verdict="ship", reasons=[why])
    elif not np.isfinite(gain.value):
        why = f"{gate.metric} on {users} cold users is not defined, so it does not beat {baseline}"
        decision = Decision(promote=False, verdict="hold", reasons=[why])
    else:
        why = f"{gate.metric} on {users} cold users does not beat {baseline} for certain: {measured}"
        decision = Decision(promote=False, verdict="hold", reasons=[why])
    return ZeroShotReport(
        metric=gate.metric,
        baseline=baseline,
        cold_users=users,
        examples=len(test),
        rows=cold.table(scores),
        gain=gain,
        decision=decision,
    )


def _held(metric: str, baseline: str, cold_users: int, examples: int, why: str) -> ZeroShotReport:
    decision = Decision(promote=False, verdict="hold", reasons=[why])
    return ZeroShotReport(metric=metric, baseline=baseline, cold_users=cold_users, examples=examples, decision=decision)
