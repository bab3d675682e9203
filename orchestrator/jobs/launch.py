"""Launch: freeze the shared model, fine-tune one adapter, certify, train its baselines, compare, ask the gate."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from domains.errors import NoLiveVersion, NotEnoughData
from domains.events.rehearsal import FEWEST_TRAINING_ROWS, too_little_to_learn
from domains.events.splits import Split
from domains.registry.registry import Domain, Version
from models.ranker import adapters, checkpoint
from models.training import loop
from orchestrator import traffic
from orchestrator.data import version_check
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.scoring import score_rows
from orchestrator.evaluation.report import Certificate, ColdStartReport, Epoch
from orchestrator.jobs import cold_start, results
from orchestrator.jobs.data_steps import GATHER, REFRESH
from orchestrator.jobs.launch_state import (
    CERTIFICATE,
    FINE_TUNED,
    FINE_TUNING,
    OPENED,
    FineTuned,
    FreshSlot,
    LaunchSplit,
    LaunchState,
    Opened,
    comparison_policy,
    load_backbone,
    name_of,
)
from orchestrator.jobs.runner import RESULT, RunContext, Step
from orchestrator.jobs.versions import publish_version
from orchestrator.jobs.zero_shot import offer_zero_shot
from orchestrator.training import baselines
from orchestrator.training.fine_tune import fit_adapter, on_this_machine
from orchestrator.training.recipe import Recipe

RETRAIN = "retrain"
PROBE_ROWS = 256
"""Rows of each other domain whose predictions must stay bit-equal through a launch."""


def open_launch(context: RunContext) -> None:
    """Fix what this launch rests on: shared model, split, baselines.

    Where nothing is live, the shared model answers meanwhile if it beats popularity on the domain's cold users.

    Raises:
        NoLiveVersion: there is no shared model yet.
        NotEnoughData: too few rows, or a label that never varies.
    """
    if context.holds(OPENED):
        return
    registry = context.registry
    domain = registry.domain(name_of(context))
    shared = registry.live(None)
    if shared is None:
        raise NoLiveVersion("there is no shared model yet; run train-shared first", domain=domain.name)
    backbone = registry.version(shared.version_id)
    ranker, encoder = load_backbone(context, backbone)
    recipe = _recipe(context, domain, backbone, encoder)
    workspace = Workspace(context.settings, tuple(registry.domains()))
    offer_zero_shot(context, domain, workspace=workspace, ranker=ranker, encoder=encoder, backbone_id=backbone.id)
    rows = workspace.examples(encoder, domain.name)
    split = workspace.split(rows)
    _check_training_rows(rows, split, encoder.task)
    LaunchSplit.of(rows, split).save(context.folder)
    live = registry.live(domain.name)
    opened = Opened(
        backbone=backbone.id,
        data=workspace.data(domain.name).version,
        live=live.version_id if live else None,
        recipe=recipe,
        policy=comparison_policy(context.settings, recipe, domain),
    )
    context.write(OPENED, opened)


def fine_tune(context: RunContext) -> None:
    """Train only the domain's own parameters, fit its calibrator, and certify that nothing else moved."""
    if (context.folder / "adapter").is_dir():
        return
    launch = LaunchState.of(context)
    fresh = launch.fresh_slot()
    ranker = fresh.ranker
    probe_rows = _probe_rows(launch.workspace, fresh.encoder, fresh.others)
    before = Frozen.of(fresh, probe_rows)
    with launch.costs(FINE_TUNING):
        result = _fit(
            launch,
            fresh,
            seed=launch.recipe.seed,
            checkpoint_dir=context.folder / "fine-tuning",
            on_progress=lambda progress: context.progress(
                progress.fraction, loss=progress.loss, steps=progress.step, examples_per_s=progress.rows_per_s
            ),
        )
    trained = adapters.trained_parameter_count(ranker)
    after = Frozen.of(fresh, probe_rows)
    proof = adapters.certificate(before.hashes, after.hashes)
    moved = [name for name, scores in before.scores.items() if not np.array_equal(scores, after.scores[name])]
    building = context.folder / "adapter.building"
    shutil.rmtree(building, ignore_errors=True)
    named = {"name": launch.name, "level": "adapter"}
    checkpoint.save_adapter(ranker, fresh.slot, building, **named, backbone=launch.backbone.id)
    fresh.encoder.save(building)
    certificate = Certificate(
        ok=proof.ok and not moved,
        changed=list(proof.changed),
        frozen_tensors=len(proof.before),
        trained_parameters=trained,
        before=proof.before_hash,
        after=proof.after_hash,
        hashes=dict(proof.after),
        backbone=launch.backbone.id,
        probe_rows={name: len(rows) for name, (rows, _) in probe_rows.items()},
        predictions_moved=moved,
        all_parameters=sum(parameter.numel() for parameter in ranker.parameters()),
    )
    context.write(CERTIFICATE, certificate)
    epochs = [Epoch.from_dict(row) for row in result.history]
    context.write(FINE_TUNED, FineTuned(seconds=result.seconds, steps=result.steps, history=epochs))
    building.rename(context.folder / "adapter")


def repeat_with_seeds(context: RunContext) -> None:
    """Fine-tune again under the next seeds, as often as is asked, to show how much is chance.

    The version offered is the first seed's, whatever comes of the others: to take the best on the evaluation rows would
    be to select on the test.
    """
    launch = LaunchState.of(context)
    for done, seed in enumerate(launch.seeds[1:]):
        if launch.scores("adapter", seed) is not None:
            continue
        with launch.costs(f"{FINE_TUNING}, seed {seed}"):
            fresh = launch.fresh_slot()
            show = partial(_show, context, f"seed {seed}", done, len(launch.seeds) - 1)
            _fit(launch, fresh, seed=seed, on_progress=show)
            rows = fresh.rows.take(launch.split.evaluation)
            launch.save_scores("adapter", seed, score_rows(fresh.ranker, fresh.batch_builder, rows, fresh.slot))


def train_baselines(context: RunContext) -> None:
    """Train what the policy, the gate or whoever launches wants the adapter compared with, under every seed."""
    launch = LaunchState.of(context)
    work = [(seed, baseline) for seed in launch.seeds for baseline in launch.trained_baselines]
    for done, (seed, baseline) in enumerate(work):
        if launch.scores(baseline, seed) is None:
            with launch.costs(baseline if seed == launch.recipe.seed else f"{baseline}, seed {seed}"):
                fresh = launch.fresh_slot(beside_live=False)
                scores = baselines.predict(
                    baseline,
                    ranker=fresh.ranker,
                    slot=fresh.slot,
                    recipe=launch.recipe.model_copy(update={"seed": seed}),
                    workspace=launch.workspace,
                    batch_builder=fresh.batch_builder,
                    train=fresh.rows.take(launch.split.train),
                    validation=fresh.rows.take(launch.split.validation),
                    test=fresh.rows.take(launch.split.evaluation),
                    on_progress=partial(_show, context, f"{baseline}, seed {seed}", done, len(work)),
                )
                launch.save_scores(baseline, seed, scores)


def offer(context: RunContext) -> None:
    """Record the version with its certificate and report; a passed gate makes it the challenger.

    A refused one takes a live zero-shot version down with it: what was borrowed does not go on answering.

    Raises:
        IllegalTransition: the domain was retired meanwhile.
    """
    launch, registry = LaunchState.of(context), context.registry
    name = launch.name
    asked: dict[str, Any] = {"registry": registry, "by": context.by}
    report = context.result_of(cold_start.REPORT, ColdStartReport)
    if not report.decision.promote:
        # Before the verdict is on record, so that a death between the two never leaves the borrowed model answering.
        traffic.refuse(name, report.decision, **asked)
    evaluated: dict[str, Any] = {
        "metrics": {metric: found.as_dict() for metric, found in report.rows[report.subject].items()},
        "report": report.as_dict(),
        "certificate": context.result_of(CERTIFICATE, Certificate).as_dict(),
        "config": launch.recipe.model_dump(mode="json"),
    }
    version = publish_version(
        context,
        context.folder / "adapter",
        checkpoint.load_adapter(context.folder / "adapter").content,
        kind="adapter",
        domain=name,
        backbone_id=launch.backbone.id,
        level="adapter",
        **evaluated,
    )
    before = ColdStartReport.of(version)
    if before != report:
        verdicts = {"before": before.decision.verdict if before else None, "after": report.decision.verdict}
        version = registry.reevaluate(version.id, **evaluated, by=context.by, noted=verdicts)
    if report.decision.promote:
        traffic.offer(name, version.id, report.decision, **asked)
    else:
        # And after it: shared training that judged the domain meanwhile did not know of it yet.
        traffic.refuse(name, report.decision, **asked)
    context.write(RESULT, results.Launch(version=version.id, decision=report.decision))


def go_live(context: RunContext) -> None:
    """Put a retrained version in front of users when its gate let it pass; a held one leaves the live one alone.

    Raises:
        StalePromotion: somebody promoted another version while this one was trained.
        ArtifactDamaged: the version's files are not what was published.
    """
    result, registry = context.result_of(RESULT, results.Launch), context.registry
    live = registry.live(name_of(context))
    if not result.decision.promote or (live is not None and live.version_id == result.version):
        return
    version_check.check(registry.version(result.version), registry=registry, settings=context.settings)
    registry.promote(
        name_of(context),
        result.version,
        expect=context.result_of(OPENED, Opened).live,
        who=context.by,
        why="; ".join(result.decision.reasons),
    )


STEPS = (
    GATHER,
    Step("Choose the cold users to judge on", open_launch, 1),
    Step("Fine-tune the adapter and certify the rest frozen", fine_tune, 8),
    Step("Fine-tune again under other seeds", repeat_with_seeds, 4),
    Step("Train the baselines", train_baselines, 8),
    Step("Compare on cold users", cold_start.compare, 3),
    Step("Offer the version to the gate", offer, 1),
    REFRESH,
)
RETRAIN_STEPS = (*STEPS, Step("Go live if the gate let it pass", go_live, 1))
"""A launch waits for a person, a schedule does not."""


@dataclass(frozen=True)
class Frozen:
    """What must not change in a launch: hashes of all frozen tensors, and predictions of the probe rows by domain."""

    hashes: dict[str, str]
    scores: dict[str, np.ndarray]

    @classmethod
    def of(cls, fresh: FreshSlot, probe_rows: dict[str, tuple[Examples, int]]) -> Frozen:
        hashes = adapters.fingerprint(fresh.ranker, excluding=fresh.slot)
        scores = {
            name: score_rows(fresh.ranker, fresh.batch_builder, rows, slot) for name, (rows, slot) in probe_rows.items()
        }
        return cls(hashes, scores)


def _recipe(context: RunContext, domain: Domain, backbone: Version, encoder: FeatureEncoder) -> Recipe:
    """What is asked of this launch, on what the shared model is."""
    if domain.spec.task != encoder.task:
        raise NotEnoughData(
            f"domain {domain.name!r} predicts {domain.spec.task}, the shared model {encoder.task}; "
            "train a shared model on domains of the same task",
            domain=domain.name,
        )
    live = context.registry.live(domain.name)
    # A schedule asks for nothing: what somebody once chose for the version that is live holds for its successors.
    before = context.registry.version(live.version_id).config if live and context.kind == RETRAIN else None
    return Recipe.of_launch(domain.spec.task, context.params, backbone.config, before=before)


def _check_training_rows(rows: Examples, split: Split, task: str) -> None:
    label = rows.label[split.train]
    if too_little_to_learn(task, label):
        raise NotEnoughData(
            f"domain {rows.domain!r} has {len(label)} training rows "
            f"with mean label {label.mean() if len(label) else float('nan'):.3f}; "
            f"a launch needs at least {FEWEST_TRAINING_ROWS} rows and both labels",
            domain=rows.domain,
            rows=len(label),
        )


def _fit(
    launch: LaunchState, fresh: FreshSlot, *, seed: int, on_progress: Any, checkpoint_dir: Path | None = None
) -> loop.TrainResult:
    return fit_adapter(
        fresh.ranker,
        fresh.slot,
        launch.recipe.model_copy(update={"seed": seed}),
        fresh.batch_builder,
        fresh.rows.take(launch.split.train),
        validation=fresh.rows.take(launch.split.validation),
        checkpoint_dir=checkpoint_dir,
        on_progress=on_progress,
        **on_this_machine(launch.context.settings),
    )


def _show(context: RunContext, what: str, done: int, of: int, progress: loop.Progress) -> None:
    context.progress((done + progress.fraction) / of, baseline=what)


def _probe_rows(
    workspace: Workspace, encoder: FeatureEncoder, others: dict[str, int]
) -> dict[str, tuple[Examples, int]]:
    """The latest rows of every other domain in the ranker, sources included, and their slots."""
    sources = {source.domain: encoder.slots.index(source.domain) for source in encoder.sources}
    found = {}
    for other, slot in {**sources, **others}.items():
        rows = workspace.examples(encoder, other)
        found[other] = (rows.take(np.arange(max(0, len(rows) - PROBE_ROWS), len(rows))), slot)
    return found
