"""Launch: freeze the shared model, fine-tune one adapter, certify, train its baselines, compare, ask the gate."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

import numpy as np

from domains.errors import NoLiveVersion, NotEnoughData
from domains.lifecycle import State
from models.ranker import adapters, checkpoint
from models.training import loop
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.jobs import cold_start
from orchestrator.jobs.launch_state import (
    FINE_TUNING,
    LaunchState,
    demands,
    later_rows_of_known_users,
    load_backbone,
    name_of,
)
from orchestrator.jobs.runner import RunContext, Step
from orchestrator.jobs.versions import attach_live, offer_zero_shot, publish_version, zero_shot_slot
from orchestrator.training import baselines
from orchestrator.training.fine_tune import fit_adapter, on_this_machine
from orchestrator.training.fit import score_rows
from orchestrator.training.recipe import Recipe

RETRAIN = "retrain"
PROBE_ROWS = 256
"""Rows of each other domain whose predictions must stay bit-equal through a launch."""


def open_launch(context: RunContext) -> None:
    """Fix what this launch stands on (shared model, split, baselines); the domain answers at level zero-shot meanwhile.

    Raises:
        NoLiveVersion: there is no shared model yet.
        NotEnoughData: too few rows, or a label that never varies.
    """
    if context.read("opened") is not None:
        return
    registry = context.registry
    domain = registry.domain(name_of(context))
    live = registry.live(None)
    if live is None:
        raise NoLiveVersion("there is no shared model yet; run train-shared first", domain=domain.name)
    backbone = registry.version(live.version_id)
    ranker, encoder = load_backbone(context, backbone)
    if domain.spec.task != encoder.task:
        raise NotEnoughData(
            f"domain {domain.name!r} predicts {domain.spec.task}, the shared model {encoder.task}; "
            "train a shared model on domains of the same task",
            domain=domain.name,
        )
    standing = registry.live(domain.name)
    # A schedule asks for nothing: what somebody once chose for the version that is live holds for its successors.
    before = registry.version(standing.version_id).config if standing and context.kind == RETRAIN else None
    recipe = Recipe.of_launch(domain.spec.task, context.params, backbone.config, before=before)
    if standing is None:
        offer_zero_shot(context, domain, ranker=ranker, encoder=encoder, backbone_id=backbone.id)
    workspace = Workspace(context.settings, tuple(registry.domains()))
    rows = workspace.examples(encoder, domain.name)
    split = workspace.split(rows)
    label = rows.label[split.train]
    if len(split.train) < 50 or (encoder.task == "ctr" and not 0 < label.mean() < 1):
        raise NotEnoughData(
            f"domain {domain.name!r} has {len(split.train)} training rows "
            f"with mean label {label.mean() if len(label) else float('nan'):.3f}; "
            "a launch needs at least 50 rows and both labels",
            domain=domain.name,
            rows=len(split.train),
        )
    np.savez(
        context.folder / "split.npz",
        train=split.train,
        validation=split.validation,
        test=split.test,
        cold_users=split.cold_users,
        warm=later_rows_of_known_users(rows, split),
        cut_us=np.array([] if split.cut_us is None else [split.cut_us], np.int64),
    )
    standing = registry.live(domain.name)
    registry.move(domain.name, State.TRAINING, by=context.by, why=f"launch {context.run_id}")
    context.write(
        "opened",
        {
            "backbone": backbone.id,
            "data": workspace.data(domain.name).version,
            "live": standing.version_id if standing else None,
            "recipe": recipe.model_dump(mode="json"),
            "demands": demands(context.settings, recipe, domain).as_dict(),
        },
    )


def fine_tune(context: RunContext) -> None:
    """Train only the domain's own parameters, fit its calibrator, and certify that nothing else moved."""
    if (context.folder / "adapter").is_dir():
        return
    launch = LaunchState.of(context)
    ranker, encoder, batch_builder = launch.shared_model()
    rows = launch.rows(encoder)
    others = attach_live(context, ranker, launch.backbone.id, leave_out=launch.name)
    slot = zero_shot_slot(ranker, launch.workspace, encoder, launch.name, others)
    probe_rows = _probe_rows(launch.workspace, encoder, others)
    frozen_before = adapters.fingerprint(ranker, excluding=slot)
    seen_before = {other: score_rows(ranker, batch_builder, witness, at) for other, (witness, at) in probe_rows.items()}
    with launch.costs(FINE_TUNING):
        result = fit_adapter(
            ranker,
            slot,
            launch.recipe,
            batch_builder,
            rows.take(launch.split["train"]),
            rows.take(launch.split["validation"]),
            checkpoint_dir=context.folder / "fine-tuning",
            on_progress=lambda progress: context.progress(
                progress.fraction, loss=progress.loss, steps=progress.step, examples_per_s=progress.rows_per_s
            ),
            **on_this_machine(context.settings),
        )
    certificate = adapters.certificate(
        frozen_before,
        adapters.fingerprint(ranker, excluding=slot),
        trained_parameters=adapters.trained_parameter_count(ranker),
    )
    ranker.eval()
    moved = [
        other
        for other, (witness, at) in probe_rows.items()
        if not np.array_equal(seen_before[other], score_rows(ranker, batch_builder, witness, at))
    ]
    building = context.folder / "adapter.building"
    shutil.rmtree(building, ignore_errors=True)
    checkpoint.save_adapter(ranker, slot, building, backbone=launch.backbone.id)
    encoder.save(building)
    context.write(
        "certificate",
        {
            **certificate.as_dict(),
            "ok": certificate.ok and not moved,
            "backbone": launch.backbone.id,
            "probe_rows": {other: len(witness) for other, (witness, _) in probe_rows.items()},
            "predictions_moved": moved,
            "all_parameters": sum(parameter.numel() for parameter in ranker.parameters()),
        },
    )
    context.write("fine-tuned", {"seconds": result.seconds, "steps": result.steps, "history": result.history})
    building.rename(context.folder / "adapter")


def repeat_with_seeds(context: RunContext) -> None:
    """Fine-tune again under the next seeds, as often as is asked, to show how much is chance.

    The version offered is the first seed's, whatever comes of the others: to take the best on the rows that judge would
    be to select on the test.
    """
    launch = LaunchState.of(context)
    for done, seed in enumerate(launch.seeds[1:]):
        if launch.scores("adapter", seed) is not None:
            continue
        with launch.costs(f"{FINE_TUNING}, seed {seed}"):
            ranker, encoder, batch_builder = launch.shared_model()
            rows = launch.rows(encoder)
            others = attach_live(context, ranker, launch.backbone.id, leave_out=launch.name)
            slot = zero_shot_slot(ranker, launch.workspace, encoder, launch.name, others)
            fit_adapter(
                ranker,
                slot,
                launch.recipe.model_copy(update={"seed": seed}),
                batch_builder,
                rows.take(launch.split["train"]),
                rows.take(launch.split["validation"]),
                on_progress=partial(_show, context, f"seed {seed}", done, len(launch.seeds) - 1),
                **on_this_machine(context.settings),
            )
            launch.keep_scores("adapter", seed, score_rows(ranker, batch_builder, rows.take(launch.judged), slot))


def train_baselines(context: RunContext) -> None:
    """Train what the policy, the gate or whoever launches wants the adapter compared with, under every seed."""
    launch = LaunchState.of(context)
    work = [(seed, baseline) for seed in launch.seeds for baseline in launch.demands.trained]
    for done, (seed, baseline) in enumerate(work):
        if launch.scores(baseline, seed) is None:
            with launch.costs(baseline if seed == launch.recipe.seed else f"{baseline}, seed {seed}"):
                ranker, encoder, batch_builder = launch.shared_model()
                rows = launch.rows(encoder)
                scores = baselines.predict(
                    baseline,
                    ranker=ranker,
                    slot=zero_shot_slot(ranker, launch.workspace, encoder, launch.name, {}),
                    recipe=launch.recipe.model_copy(update={"seed": seed}),
                    workspace=launch.workspace,
                    batch_builder=batch_builder,
                    known=rows.take(launch.split["train"]),
                    validation=rows.take(launch.split["validation"]),
                    test=rows.take(launch.judged),
                    on_progress=partial(_show, context, f"{baseline}, seed {seed}", done, len(work)),
                )
                launch.keep_scores(baseline, seed, scores)


def offer(context: RunContext) -> None:
    """Record the version with its certificate and report; a passed gate makes it the challenger."""
    launch = LaunchState.of(context)
    name = launch.name
    report, certificate = context.result_of("report"), context.result_of("certificate")
    judged: dict[str, Any] = {
        "metrics": report["rows"]["adapter"],
        "report": report,
        "certificate": certificate,
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
        **judged,
    )
    if version.report != report:
        version = context.registry.reevaluate(version.id, **judged, by=context.by)
    live = context.registry.live(name)
    already_live = live is not None and live.version_id == version.id
    state = State.LIVE if already_live else State.CHALLENGER if report["decision"]["promote"] else State.DATA_READY
    if not report["decision"]["promote"] and live is not None:
        held = context.registry.version(live.version_id)
        if held.level == "adapter":
            state = State.LIVE
    context.registry.move(name, state, by=context.by, why="; ".join(report["decision"]["reasons"]))
    context.write("result", {"version": version.id, "decision": report["decision"]})


def go_live(context: RunContext) -> None:
    """Put a retrained version in front of users when its gate let it pass; a held one leaves the live one alone.

    Raises:
        StalePromotion: somebody promoted another version while this one was trained.
    """
    result, registry = context.result_of("result"), context.registry
    live = registry.live(name_of(context))
    if not result["decision"]["promote"] or (live is not None and live.version_id == result["version"]):
        return
    expected = context.result_of("opened")["live"]
    registry.promote(
        name_of(context),
        result["version"],
        expect=expected,
        who=context.by,
        why="; ".join(result["decision"]["reasons"]),
    )


STEPS = (
    Step("Choose the cold users to judge on", open_launch, 1),
    Step("Fine-tune the adapter and certify the rest frozen", fine_tune, 8),
    Step("Fine-tune again under other seeds", repeat_with_seeds, 4),
    Step("Train the baselines", train_baselines, 8),
    Step("Compare on cold users", cold_start.compare, 3),
    Step("Offer the version to the gate", offer, 1),
)

GO_LIVE = Step("Go live if the gate let it pass", go_live, 1)
"""The last step of a retrain: a launch waits for a person, a schedule does not."""


def _show(context: RunContext, what: str, done: int, of: int, progress: loop.Progress) -> None:
    context.progress((done + progress.fraction) / of, baseline=what)


def _probe_rows(workspace: Workspace, encoder: FeatureEncoder, others: dict[str, int]) -> dict[str, tuple[Any, int]]:
    """A few rows of every other domain in the ranker, sources included, and their slots."""
    sources = {source.domain: encoder.slots.index(source.domain) for source in encoder.sources}
    found = {}
    for other, slot in {**sources, **others}.items():
        rows = workspace.examples(encoder, other)
        found[other] = (rows.take(np.arange(max(0, len(rows) - PROBE_ROWS), len(rows))), slot)
    return found
