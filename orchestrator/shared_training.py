"""Train shared: every domain's events into one backbone, published with one adapter a domain."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from domains.errors import NotEnoughData
from domains.histories import Histories
from domains.registry import Domain, Version
from models import adapters, checkpoint, training
from models.ranker import DomainConfig, Ranker, RankerConfig
from orchestrator import evaluation, serving_data
from orchestrator.artifacts import Artifacts
from orchestrator.encoding import Layout
from orchestrator.recipe import Recipe
from orchestrator.runs import RunContext, Step
from orchestrator.training_data import EpochOfDomains, Examples
from orchestrator.workspace import Workspace

EVALUATED_ROWS = 50_000


def gather_histories(context: RunContext) -> None:
    """Put every user's events of all domains in time order, where training and serving read them."""
    registry, settings = context.registry, context.settings
    Histories.build(
        settings.data_dir,
        [(domain.spec, domain.number) for domain in registry.domains() if domain.counts.get("rows_added")],
    )


def train(context: RunContext) -> None:
    """Train the backbone on the chosen domains; continues from its checkpoint after a kill."""
    if (context.folder / "backbone").is_dir():
        return
    recipe, workspace, slots = _plan(context)
    rows_of = {}
    cut_us: int | None = None
    layout = workspace.fit_layout(
        task=recipe.task,
        slots=slots,
        lifelong=recipe.lifelong,
        short=recipe.short,
        with_users=recipe.user_embedding,
        until_us=None,
    )
    train_parts: list[tuple[Examples, int]] = []
    validation_parts: list[tuple[Examples, int]] = []
    for slot, name in enumerate(slots):
        rows = workspace.examples(layout, name)
        split = workspace.split(rows)
        rows_of[name] = rows
        train_parts.append((rows.take(split.train), slot))
        validation_parts.append((rows.take(_sample(split.validation, EVALUATED_ROWS)), slot))
        if len(split.train):
            cut_us = max(cut_us or 0, int(rows.time_us[split.train].max()))
    layout = replace(layout, trained_until_us=cut_us)
    assembler = workspace.assembler(layout, slots)
    data = EpochOfDomains(assembler, train_parts, batch_size=recipe.batch_size, seed=recipe.seed)
    validation = EpochOfDomains(
        assembler, [part for part in validation_parts if len(part[0])], batch_size=4096, seed=0, shuffle=False
    )
    ranker = new_ranker(workspace, layout, recipe)
    training.train(
        ranker,
        data,
        config=training.TrainConfig(
            task=recipe.task,
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            patience=recipe.patience,
            auxiliary_weight=recipe.contrastive_weight,
            seed=recipe.seed,
            checkpoint_every_steps=recipe.checkpoint_every_steps,
        ),
        validation=validation if len(validation) else None,
        checkpoint_dir=context.folder / "training",
        on_progress=lambda progress: context.progress(
            progress.fraction, loss=progress.loss, step=progress.step, examples_per_s=progress.rows_per_s
        ),
    )
    building = context.folder / "backbone.building"
    shutil.rmtree(building, ignore_errors=True)
    checkpoint.save_backbone(ranker, building)
    layout.save(building)
    building.rename(context.folder / "backbone")


def evaluate(context: RunContext) -> None:
    """Score each domain's held-out rows beside the plain rows."""
    if context.read("metrics") is not None:
        return
    recipe, workspace, slots = _plan(context)
    ranker = checkpoint.load_backbone(context.folder / "backbone")
    layout = Layout.load(context.folder / "backbone")
    assembler = workspace.assembler(layout, slots)
    measured: dict[str, Any] = {}
    for slot, name in enumerate(slots):
        rows = workspace.examples(layout, name)
        split = workspace.split(rows)
        test = rows.take(_sample(split.test, EVALUATED_ROWS))
        if len(test) < 50 or (recipe.task == "ctr" and not 0 < test.label.mean() < 1):
            measured[name] = {"note": f"{len(test)} held-out rows are too few to measure"}
            continue
        known = rows.take(split.train)
        predicted = score_rows(ranker, assembler, test, slot)
        measured[name] = {
            "examples": len(test),
            "rows": {
                "train_mean": evaluation.measure(
                    recipe.task, label=test.label, score=np.full(len(test), known.label.mean()), user=test.user, draws=50
                ),
                "item_mean": evaluation.measure(
                    recipe.task,
                    label=test.label,
                    score=evaluation.item_mean(known.item, known.label, test.item),
                    user=test.user,
                    draws=200,
                ),
                "shared": evaluation.measure(
                    recipe.task, label=test.label, score=predicted, user=test.user, draws=200
                ),
            },
        }
        context.progress((slot + 1) / len(slots))
    context.write("metrics", measured)


def publish(context: RunContext) -> None:
    """Store the backbone and one adapter a domain, then flip the pointers."""
    registry, settings = context.registry, context.settings
    recipe, workspace, slots = _plan(context)
    folder = context.folder / "backbone"
    ranker = checkpoint.load_backbone(folder)
    backbone_id = checkpoint.content_hash(folder)
    measured = context.read("metrics") or {}
    store = Artifacts(settings.artifacts_dir)
    backbone = registry.add_version(
        Version(
            id=backbone_id,
            kind="backbone",
            domain=None,
            backbone_id=None,
            rung=None,
            artifact=store.publish("backbone", folder, backbone_id),
            metrics=measured,
            report={},
            certificate={},
            config=recipe.model_dump(mode="json"),
            created_at=datetime.now(UTC),
            created_by=context.by,
        )
    )
    layout = Layout.load(folder)
    for slot, name in enumerate(slots):
        domain = workspace.domain(name)
        adapter = adapters.extract(ranker, slot)
        version = publish_adapter(
            context, domain, adapter, layout=layout, backbone_id=backbone.id, rung="adapter", metrics=measured.get(name, {})
        )
        if domain.role == "source" or registry.live(name) is None:
            flip(context, name, version.id, why=f"trained together with shared model {backbone.id[:12]}")
    flip(context, None, backbone.id, why="shared training finished")
    for domain in registry.domains():
        if domain.name not in slots and domain.role == "target" and registry.live(domain.name) is None:
            offer_zero_shot(context, domain, ranker=ranker, layout=layout, backbone_id=backbone.id)
    context.write("result", {"version": backbone.id, "domains": list(slots)})


def refresh_features(context: RunContext) -> None:
    """Write what serving reads online."""
    serving_data.refresh(registry=context.registry, settings=context.settings, on_progress=context.progress)


STEPS = (
    Step("Gather every user's history", gather_histories, 1),
    Step("Train the shared model", train, 10),
    Step("Evaluate each domain", evaluate, 2),
    Step("Publish the shared model", publish, 1),
    Step("Refresh the online features", refresh_features, 1),
)


def new_ranker(workspace: Workspace, layout: Layout, recipe: Recipe) -> Ranker:
    """A fresh network for a layout, with a slot for each of its domains."""
    torch.manual_seed(recipe.seed)
    ranker = Ranker(
        RankerConfig(
            source_items=layout.source_rows_total,
            item_fields=tuple(field.size for field in layout.item_fields),
            user_fields=tuple(field.size for field in layout.user_fields),
            context_fields=tuple(field.size for field in layout.context_fields),
            domain_fields=tuple(field.size for field in layout.domain_fields),
            users=layout.users,
            width=recipe.width,
            task=recipe.task,
            interest=recipe.interest,
            contrastive=recipe.contrastive_weight > 0,
        ),
        torch.from_numpy(workspace.source_item_codes(layout)),
    )
    for name in layout.slots:
        add_domain(ranker, workspace, layout, name)
    return ranker


def add_domain(ranker: Ranker, workspace: Workspace, layout: Layout, name: str) -> int:
    """A fresh slot for a domain; sources read the backbone's item table, targets own theirs."""
    domain = workspace.domain(name)
    codes = None if layout.source(name) else torch.from_numpy(workspace.item_codes(layout, name))
    config = DomainConfig(items=0 if codes is None else len(codes), feature_codes=layout.domain_codes(domain.spec))
    return ranker.add_domain(config, codes)


def score_rows(ranker: Ranker, assembler: Any, rows: Examples, slot: int) -> np.ndarray:
    """Calibrated predictions of rows in their order, (N,)."""
    ranker.eval()
    scores = []
    with torch.inference_mode():
        for at in range(0, len(rows), 4096):
            part = rows.take(np.arange(at, min(at + 4096, len(rows))))
            scores.append(ranker.probability(assembler.batch(part, slot)).float().numpy())
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def publish_adapter(
    context: RunContext,
    domain: Domain,
    adapter: adapters.Adapter,
    *,
    layout: Layout,
    backbone_id: str,
    rung: str,
    metrics: dict[str, Any],
    report: dict[str, Any] | None = None,
    certificate: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
) -> Version:
    """Store an adapter under its content hash and record it; publishing it again changes nothing."""
    folder = context.folder / f"adapter-{domain.name}-{rung}"
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    adapter_id = checkpoint.save_adapter(adapter, building)
    layout.save(building)
    shutil.rmtree(folder, ignore_errors=True)
    building.rename(folder)
    return context.registry.add_version(
        Version(
            id=adapter_id,
            kind="adapter",
            domain=domain.name,
            backbone_id=backbone_id,
            rung=rung,
            artifact=Artifacts(context.settings.artifacts_dir).publish("adapter", folder, adapter_id),
            metrics=metrics,
            report=report or {},
            certificate=certificate or {},
            config=config or {},
            created_at=datetime.now(UTC),
            created_by=context.by,
        )
    )


def offer_zero_shot(
    context: RunContext, domain: Domain, *, ranker: Ranker, layout: Layout, backbone_id: str
) -> Version | None:
    """Let a domain that has items but no training answer with the backbone and its nearest domain's cross-attention.

    Returns None where the domain's task is not the backbone's, or it has no data at all.
    """
    workspace = Workspace(context.settings, tuple(context.registry.domains()))
    if domain.spec.task != layout.task or not domain.counts.get("rows_added"):
        return None
    slot = zero_shot_slot(ranker, workspace, layout, domain.name)
    version = publish_adapter(
        context, domain, adapters.extract(ranker, slot), layout=layout, backbone_id=backbone_id, rung="zero_shot", metrics={}
    )
    flip(context, domain.name, version.id, why="first answers before any training on this domain")
    return version


def zero_shot_slot(ranker: Ranker, workspace: Workspace, layout: Layout, name: str) -> int:
    """A fresh slot that borrows the attention of the target domain whose features agree most; ties keep the backbone's."""
    slot = add_domain(ranker, workspace, layout, name)
    own = layout.domain_codes(workspace.domain(name).spec)
    agreement = {
        other: sum(a == b and a > 0 for a, b in zip(own, layout.domain_codes(workspace.domain(other_name).spec), strict=True))
        for other, other_name in enumerate(layout.slots)
        if workspace.domain(other_name).role == "target" and other_name != name
    }
    if agreement and max(agreement.values()) > 0:
        nearest = max(agreement, key=lambda other: (agreement[other], -other))
        adapters.borrow_attention(ranker, slot, nearest)
    return slot


def flip(context: RunContext, domain: str | None, version_id: str, *, why: str) -> None:
    """Point a domain at a version; flipping to what is already live changes nothing."""
    live = context.registry.live(domain)
    if live is not None and live.version_id == version_id:
        return
    context.registry.promote(
        domain, version_id, expect=live.version_id if live else None, who=context.by, why=why
    )


def _plan(context: RunContext) -> tuple[Recipe, Workspace, tuple[str, ...]]:
    recipe = Recipe(**context.params)
    held = tuple(domain for domain in context.registry.domains() if domain.counts.get("rows_added"))
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


def _sample(index: np.ndarray, most: int) -> np.ndarray:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(0).choice(index, most, replace=False))
