"""Train shared: every domain's events into one backbone, published with one adapter a domain."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from domains.errors import NotEnoughData
from domains.events.histories import Histories
from models.cctl.information_flow import ANY_SOURCE
from models.cctl.weigher import CollaborativeTransfer, Part, TransferConfig, TransferReport
from models.ranker import adapters, checkpoint
from models.ranker.network import Ranker
from models.training import loop
from models.training.distributed import Alone
from orchestrator.data import online
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.evaluation import measure
from orchestrator.jobs.runner import RunContext, Step
from orchestrator.jobs.versions import flip, has_data, offer_zero_shot, publish_version
from orchestrator.training.fit import EVALUATED_ROWS, fit, sample, score_rows
from orchestrator.training.recipe import Recipe
from orchestrator.training.torchrun import train_together


def gather_histories(context: RunContext) -> None:
    """Put every user's events of all domains in time order, where training and serving read them."""
    registry, settings = context.registry, context.settings
    Histories.build(
        settings.data_dir,
        [(domain.spec, domain.number) for domain in registry.domains() if has_data(domain)],
    )


def train(context: RunContext) -> None:
    """Train the backbone on the chosen domains, in as many processes as the recipe says; continues after a kill."""
    trained = context.folder / "trained"
    if trained.is_dir():
        return
    recipe, _workspace, _slots = _plan(context)
    if recipe.processes == 1:
        train_here(context, on_progress=lambda progress: context.progress(**told_of(progress)))
        return
    train_together(
        context.run_id,
        processes=recipe.processes,
        settings=context.settings,
        log=context.folder / "training" / "processes.log",
        finished=trained.is_dir,
        on_progress=lambda told: context.progress(**told),
    )


def told_of(progress: loop.Progress) -> dict[str, Any]:
    """What a run shows of its training."""
    return {
        "fraction": progress.fraction,
        "loss": progress.loss,
        "steps": progress.step,
        "examples_per_s": progress.rows_per_s,
    }


def train_here(
    context: RunContext, *, peers: Alone = loop.ALONE, on_progress: Callable[[loop.Progress], None] | None
) -> None:
    """Train the backbone in this process, one of ``peers``; the first of them saves it."""
    recipe, workspace, slots = _plan(context)
    transfer = _transfer(recipe, workspace, slots)
    ranker, encoder = fit(
        workspace,
        recipe,
        slots,
        sample_weigher=transfer,
        checkpoint_dir=context.folder / "training",
        on_progress=on_progress,
        peers=peers,
    )
    if not peers.leads:
        return
    if transfer is not None:
        context.write("source_weighting", _told(transfer.report(), encoder))
    building = context.folder / "trained.building"
    shutil.rmtree(building, ignore_errors=True)
    backbone_id = checkpoint.save_backbone(ranker, building / "backbone")
    encoder.save(building / "backbone")
    for slot, name in enumerate(slots):
        if encoder.source(name) is None:
            checkpoint.save_adapter(ranker, slot, building / name, backbone=backbone_id)
            encoder.save(building / name)
    building.rename(context.folder / "trained")


def evaluate(context: RunContext) -> None:
    """Score each domain's held-out rows beside the plain rows."""
    if context.read("metrics") is not None:
        return
    recipe, workspace, slots = _plan(context)
    ranker, encoder = _trained(context)
    batch_builder = workspace.batch_builder(encoder, slots)
    measured: dict[str, Any] = {}
    for slot, name in enumerate(slots):
        rows = workspace.examples(encoder, name)
        split = workspace.split(rows)
        test = rows.take(sample(split.test, EVALUATED_ROWS))
        if len(test) < 50 or (recipe.task == "ctr" and not 0 < test.label.mean() < 1):
            measured[name] = {"note": f"{len(test)} held-out rows are too few to measure"}
            continue
        known = rows.take(split.train)
        predicted = score_rows(ranker, batch_builder, test, slot)
        measured[name] = {
            "examples": len(test),
            "rows": {
                "train_mean": measure.measure(
                    recipe.task,
                    label=test.label,
                    score=np.full(len(test), known.label.mean()),
                    user=test.user,
                    draws=50,
                ),
                "item_mean": measure.measure(
                    recipe.task,
                    label=test.label,
                    score=measure.item_mean(known.item, known.label, test.item),
                    user=test.user,
                    draws=200,
                ),
                "shared": measure.measure(recipe.task, label=test.label, score=predicted, user=test.user, draws=200),
            },
        }
        context.progress((slot + 1) / len(slots))
    context.write("metrics", measured)


def publish(context: RunContext) -> None:
    """Store the backbone and one adapter a domain, then flip the pointers."""
    registry = context.registry
    recipe, _workspace, slots = _plan(context)
    ranker, encoder = _trained(context)
    measured = context.read("metrics") or {}
    backbone_id = adapters.backbone_hash(ranker)
    publish_version(
        context,
        context.folder / "trained" / "backbone",
        backbone_id,
        kind="backbone",
        metrics=measured,
        report={"source_weighting": context.read("source_weighting")},
        config=recipe.model_dump(mode="json"),
    )
    for name in slots:
        if encoder.source(name) is not None:
            continue
        folder = context.folder / "trained" / name
        version = publish_version(
            context,
            folder,
            checkpoint.load_adapter(folder).content,
            kind="adapter",
            domain=name,
            backbone_id=backbone_id,
            level="adapter",
            metrics=measured.get(name, {}),
            config=recipe.model_dump(mode="json"),
        )
        if registry.live(name) is None:
            flip(context, name, version.id, why=f"trained together with shared model {backbone_id[:12]}")
    flip(context, None, backbone_id, why="shared training finished")
    for domain in registry.domains():
        if domain.name not in slots and domain.role == "target" and registry.live(domain.name) is None:
            offer_zero_shot(context, domain, ranker=ranker, encoder=encoder, backbone_id=backbone_id)
    context.write("result", {"version": backbone_id, "domains": list(slots)})


def refresh_features(context: RunContext) -> None:
    """Write what serving reads online."""
    online.refresh(registry=context.registry, settings=context.settings, on_progress=context.progress)


STEPS = (
    Step("Gather every user's history", gather_histories, 1),
    Step("Train the shared model", train, 10),
    Step("Evaluate each domain", evaluate, 2),
    Step("Publish the shared model", publish, 1),
    Step("Refresh the online features", refresh_features, 1),
)


def _trained(context: RunContext) -> tuple[Ranker, FeatureEncoder]:
    """The trained network with the adapters of the targets it was trained on, in their slots."""
    folder = context.folder / "trained"
    encoder = FeatureEncoder.load(folder / "backbone")
    ranker = checkpoint.load_backbone(folder / "backbone")
    backbone_id = adapters.backbone_hash(ranker)
    for name in encoder.slots:
        if encoder.source(name) is None:
            adapters.attach(ranker, checkpoint.load_adapter(folder / name), backbone=backbone_id)
    return ranker.eval(), encoder


def _transfer(recipe: Recipe, workspace: Workspace, slots: Sequence[str]) -> CollaborativeTransfer | None:
    """What weighs source rows, or None where all count alike or there is no target to ask."""
    targets = tuple(slot for slot, name in enumerate(slots) if workspace.domain(name).role == "target")
    if recipe.source_weighting == "uniform" or not targets:
        return None
    return CollaborativeTransfer(TransferConfig(targets=targets))


def _told(report: TransferReport, encoder: FeatureEncoder) -> dict[str, Any]:
    """A transfer report as JSON, with domains by name and the parts of sources that harm in words."""
    slots = encoder.slots
    fields = {"item": encoder.item_fields, "user": encoder.user_fields, "context": encoder.context_fields}

    def words(part: Part) -> str:
        field = fields[part.group][part.field]
        if not part.code:
            return f"{field.name} not given"
        if field.kind == "category":
            return f"{field.name} {field.values[part.code - 1]}"
        low, high = ((None, *field.edges)[part.code - 1], (*field.edges, None)[part.code - 1])
        return f"{field.name} {'below' if low is None else f'{low:g} to'} {'or more' if high is None else f'{high:g}'}"

    return {
        "verdicts": {
            slots[slot]: {**{k: v for k, v in asdict(verdict).items() if k != "source"}, "verdict": verdict.word}
            for slot, verdict in report.verdicts.items()
        },
        "weights": [{**row, "source": slots[row["source"]]} for row in report.weights],
        "windows": report.windows,
        "target_certainty": report.target,
        "harmful_parts": [
            {
                "source": "every source" if part.source == ANY_SOURCE else slots[part.source],
                "part": words(part),
                "rows": part.rows,
                "worth": part.worth,
                "certainty": part.certainty,
            }
            for part in report.parts
            if part.harms
        ],
    }


def _plan(context: RunContext) -> tuple[Recipe, Workspace, tuple[str, ...]]:
    recipe = Recipe(**context.params)
    held = tuple(domain for domain in context.registry.domains() if has_data(domain))
    workspace = Workspace(context.settings, held)
    chosen = [
        domain
        for domain in held
        if domain.spec.task == recipe.task
        and domain.name not in recipe.leave_out
        and (not recipe.domains or domain.name in recipe.domains)
    ]
    if not any(domain.role == "source" for domain in chosen):
        raise NotEnoughData(f"no source domain with task {recipe.task!r} has data; ingest one first")
    # The plan is fixed by the first step that asks, so that data which arrives during the run cannot move slots.
    slots = context.read("slots")
    if slots is None:
        ordered = sorted(chosen, key=lambda domain: (domain.role != "source", domain.number))
        slots = [domain.name for domain in ordered]
        context.write("slots", slots)
    return recipe, workspace, tuple(slots)
