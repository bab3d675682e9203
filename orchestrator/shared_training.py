"""Train shared: every domain's events into one backbone, published with one adapter a domain."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.errors import NotEnoughData
from domains.histories import ACTIONS, Histories
from domains.records import VersionKind
from domains.registry import Domain, Version
from models import adapters, checkpoint, training
from models.distributed import Alone
from models.evidence import LEVELS
from models.ranker import DomainConfig, Ranker, RankerConfig
from models.transfer import CollaborativeTransfer, TransferConfig, TransferReport
from orchestrator import evaluation, serving_data
from orchestrator.artifacts import Artifacts
from orchestrator.encoding import Layout
from orchestrator.evidence_fit import fit_evidence
from orchestrator.item_means import ItemMeans, item_means, without_itself
from orchestrator.processes import train_together
from orchestrator.recipe import Recipe
from orchestrator.runs import RunContext, Step
from orchestrator.training_data import EpochOfDomains, Examples
from orchestrator.workspace import Workspace

EVALUATED_ROWS = 50_000
WARM_UP_STEPS = 100
"""Steps in which all source rows count alike, before their weights are learned."""


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


def told_of(progress: training.Progress) -> dict[str, Any]:
    """What a run shows of its training."""
    return {
        "fraction": progress.fraction,
        "loss": progress.loss,
        "steps": progress.step,
        "examples_per_s": progress.rows_per_s,
    }


def train_here(
    context: RunContext, *, peers: Alone = training.ALONE, on_progress: Callable[[training.Progress], None] | None
) -> None:
    """Train the backbone in this process, one of ``peers``; the first of them saves it."""
    recipe, workspace, slots = _plan(context)
    transfer = _transfer(recipe, workspace, slots)
    ranker, layout = fit(
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
        context.write("borrowing", _told(transfer.report(), slots))
    building = context.folder / "trained.building"
    shutil.rmtree(building, ignore_errors=True)
    backbone_id = checkpoint.save_backbone(ranker, building / "backbone")
    layout.save(building / "backbone")
    for slot, name in enumerate(slots):
        if layout.source(name) is None:
            checkpoint.save_adapter(ranker, slot, building / name, backbone=backbone_id)
            layout.save(building / name)
    building.rename(context.folder / "trained")


def evaluate(context: RunContext) -> None:
    """Score each domain's held-out rows beside the plain rows."""
    if context.read("metrics") is not None:
        return
    recipe, workspace, slots = _plan(context)
    ranker, layout = _trained(context)
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
                    recipe.task,
                    label=test.label,
                    score=np.full(len(test), known.label.mean()),
                    user=test.user,
                    draws=50,
                ),
                "item_mean": evaluation.measure(
                    recipe.task,
                    label=test.label,
                    score=evaluation.item_mean(known.item, known.label, test.item),
                    user=test.user,
                    draws=200,
                ),
                "shared": evaluation.measure(recipe.task, label=test.label, score=predicted, user=test.user, draws=200),
            },
        }
        context.progress((slot + 1) / len(slots))
    context.write("metrics", measured)


def publish(context: RunContext) -> None:
    """Store the backbone and one adapter a domain, then flip the pointers."""
    registry = context.registry
    recipe, _workspace, slots = _plan(context)
    ranker, layout = _trained(context)
    measured = context.read("metrics") or {}
    backbone_id = adapters.backbone_hash(ranker)
    publish_version(
        context,
        context.folder / "trained" / "backbone",
        backbone_id,
        kind="backbone",
        metrics=measured,
        report={"borrowing": context.read("borrowing")},
        config=recipe.model_dump(mode="json"),
    )
    for name in slots:
        if layout.source(name) is not None:
            continue
        folder = context.folder / "trained" / name
        version = publish_version(
            context,
            folder,
            checkpoint.load_adapter(folder).content,
            kind="adapter",
            domain=name,
            backbone_id=backbone_id,
            rung="adapter",
            metrics=measured.get(name, {}),
            config=recipe.model_dump(mode="json"),
        )
        if registry.live(name) is None:
            flip(context, name, version.id, why=f"trained together with shared model {backbone_id[:12]}")
    flip(context, None, backbone_id, why="shared training finished")
    for domain in registry.domains():
        if domain.name not in slots and domain.role == "target" and registry.live(domain.name) is None:
            offer_zero_shot(context, domain, ranker=ranker, layout=layout, backbone_id=backbone_id)
    context.write("result", {"version": backbone_id, "domains": list(slots)})


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


def fit(
    workspace: Workspace,
    recipe: Recipe,
    slots: Sequence[str],
    *,
    sample_weigher: training.SampleWeigher | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[training.Progress], None] | None = None,
    peers: Alone = training.ALONE,
) -> tuple[Ranker, Layout]:
    """A network trained on the training rows of the named domains, sources first; one slot each, in that order.

    Where ``peers`` train it together, it is whole in the first of them only.
    """
    layout = workspace.fit_layout(
        task=recipe.task,
        slots=slots,
        lifelong=recipe.lifelong,
        short=recipe.short,
        with_users=recipe.user_embedding,
        until_us=None,
    )
    means: dict[str, ItemMeans] = {}
    values: dict[str, np.ndarray] = {}
    train_parts: list[tuple[Examples, int]] = []
    validation_parts: list[tuple[Examples, int]] = []
    newest_us = None
    for slot, name in enumerate(slots):
        rows = workspace.examples(layout, name)
        split = workspace.split(rows)
        known = rows.take(split.train)
        means[name] = item_means(known, len(workspace.data(name).item_vocabulary), recipe.task)
        values[name] = item_means(replace(known, label=known.value), len(means[name].means), "rating").means
        train_parts.append((without_itself(known, means[name]), slot))
        validation_parts.append((rows.take(_sample(split.validation, EVALUATED_ROWS)), slot))
        if len(known):
            newest_us = max(newest_us or 0, int(known.time_us.max()))
    layout = replace(layout, trained_until_us=newest_us)
    assembler = workspace.assembler(layout, slots)
    ranker = new_ranker(
        workspace,
        layout,
        recipe,
        mean_label=float(np.concatenate([rows.label for rows, _ in train_parts]).mean()),
    )
    set_means(ranker, layout, {name: found.means for name, found in means.items()}, values)
    if ranker.config.wide:
        set_bands(ranker, np.concatenate([rows.value for rows, slot in train_parts if layout.source(slots[slot])]))
        fit_evidence(ranker, assembler, train_parts, seed=recipe.seed)
    validation = EpochOfDomains(
        assembler,
        [part for part in validation_parts if len(part[0])],
        batch_size=4096,
        seed=0,
        shuffle=False,
        share=(peers.rank, peers.world),
    )
    training.train(
        ranker,
        EpochOfDomains(
            assembler,
            train_parts,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            share=(peers.rank, peers.world),
        ),
        config=training.TrainConfig(
            task=recipe.task,
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            patience=recipe.patience,
            auxiliary_weight=recipe.contrastive_weight,
            consider_start=ranker.config.wide,
            seed=recipe.seed,
            checkpoint_every_steps=recipe.checkpoint_every_steps,
            prefetch=2,
            device=peers.device,
        ),
        validation=validation if len(validation) else None,
        checkpoint_dir=checkpoint_dir,
        on_progress=on_progress,
        parameters=searched_parameters(ranker),
        sample_weigher=sample_weigher,
        peers=peers,
    )
    if ranker.users is not None and peers.leads:
        # A user whom training never met must be read as unknown, not as the noise his row started from.
        unmet = np.ones(layout.users, bool)
        unmet[np.concatenate([rows.user[rows.user < layout.users] for rows, _ in train_parts])] = False
        with torch.no_grad():
            ranker.users.weight[torch.from_numpy(unmet)] = ranker.users.weight[0]
    return ranker.cpu().eval(), layout


def new_ranker(workspace: Workspace, layout: Layout, recipe: Recipe, *, mean_label: float) -> Ranker:
    """A fresh network for a layout, with a slot for each of its domains."""
    torch.manual_seed(recipe.seed)
    rating = recipe.task == "rating"
    ranker = Ranker(
        RankerConfig(
            source_items=layout.source_rows_total,
            item_fields=tuple(field.size for field in layout.item_fields),
            user_fields=tuple(field.size for field in layout.user_fields),
            context_fields=tuple(field.size for field in layout.context_fields),
            domain_fields=tuple(field.size for field in layout.domain_fields),
            users=layout.users,
            width=recipe.width,
            actions=len(ACTIONS),
            task=recipe.task,
            interest=recipe.interest,
            wide=rating,
            # Beside wide facts little is left to learn, from fewer people: a small network finds it as well.
            encoder_hidden=32 if rating else 128,
            head=(64, 32) if rating else (256, 128),
            mean_label=mean_label,
        ),
        torch.from_numpy(workspace.source_item_codes(layout)),
    )
    for name in layout.slots:
        add_domain(ranker, workspace, layout, name)
    return ranker


def set_means(ranker: Ranker, layout: Layout, means: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> None:
    """Tell the network each item's mean label, and each source item's mean value as histories hold it."""
    source = np.full((2, layout.source_rows_total), ranker.config.mean_label, np.float32)
    source[1] = float(np.mean([values[held.domain][0] for held in layout.sources]))
    for slot, name in enumerate(layout.slots):
        held = layout.source(name)
        if held is not None:
            rows = slice(held.offset + 1, held.offset + held.size)
            source[0, rows], source[1, rows] = means[name][1 : held.size], values[name][1 : held.size]
        else:
            items = ranker.owned(slot).items
            assert items is not None
            items.set_means(torch.from_numpy(means[name]))
    ranker.source_items.set_means(torch.from_numpy(source[0]))
    ranker.source_values.copy_(torch.from_numpy(source[1]))


def set_bands(ranker: Ranker, values: np.ndarray) -> None:
    """Tell a network with wide facts which bands of values there are: each value its own, or fifths of all events."""
    levels = np.unique(values)
    edges = np.full(LEVELS - 1, np.inf)
    if 1 < len(levels) <= LEVELS:
        edges[: len(levels) - 1] = (levels[1:] + levels[:-1]) / 2
    elif len(levels):
        cuts = np.unique(np.quantile(values, np.linspace(0, 1, LEVELS + 1)[1:-1]))
        edges[: len(cuts)] = cuts
    usual = np.bincount(np.searchsorted(edges, values), minlength=LEVELS) / max(len(values), 1)
    ranker.value_edges.copy_(torch.from_numpy(edges))
    ranker.usual_shares.copy_(torch.from_numpy(usual))


def searched_parameters(ranker: Ranker) -> list[torch.nn.Parameter]:
    """What descent may move: all that asks for it, but for weights that were solved for."""
    solved: set[int] = set()
    if ranker.config.wide:
        solved = {id(ranker.evidence), *(id(ranker.owned(slot).evidence) for slot in range(len(ranker.domains)))}
    return [part for part in ranker.parameters() if part.requires_grad and id(part) not in solved]


def add_domain(ranker: Ranker, workspace: Workspace, layout: Layout, name: str, *, like: int | None = None) -> int:
    """A fresh slot for a domain; sources read the backbone's item table, targets own theirs."""
    domain = workspace.domain(name)
    codes = None if layout.source(name) else torch.from_numpy(workspace.item_codes(layout, name))
    config = DomainConfig(items=0 if codes is None else len(codes), feature_codes=layout.domain_codes(domain.spec))
    return ranker.add_domain(config, codes, like=like)


def score_rows(ranker: Ranker, assembler: Any, rows: Examples, slot: int) -> np.ndarray:
    """Calibrated predictions of rows in their order, (N,)."""
    ranker.eval()
    scores = []
    with torch.inference_mode():
        for at in range(0, len(rows), 4096):
            part = rows.take(np.arange(at, min(at + 4096, len(rows))))
            scores.append(ranker.probability(assembler.batch(part, slot)).float().numpy())
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def publish_version(context: RunContext, folder: Path, version_id: str, *, kind: VersionKind, **facts: Any) -> Version:
    """Store a finished folder under the version's content hash and record it; doing it again changes nothing.

    ``facts`` are the fields of ``Version`` beside its id, kind and artifact.
    """
    tag = Artifacts(context.settings.artifacts_dir).publish(kind, folder, version_id)
    return context.registry.add_version(Version(id=version_id, kind=kind, artifact=tag, created_by=context.by, **facts))


def offer_zero_shot(
    context: RunContext, domain: Domain, *, ranker: Ranker, layout: Layout, backbone_id: str
) -> Version | None:
    """Let a domain that has items but no training answer with the backbone and its nearest domain's cross-attention.

    Returns None where the domain's task is not the backbone's, or it has no data at all.
    """
    workspace = Workspace(context.settings, tuple(context.registry.domains()))
    if domain.spec.task != layout.task or not has_data(domain):
        return None
    slot = zero_shot_slot(ranker, workspace, layout, domain.name, attach_live(context, ranker, backbone_id))
    folder = context.folder / f"zero-shot-{domain.name}"
    if not folder.is_dir():
        building = context.folder / f"zero-shot-{domain.name}.building"
        shutil.rmtree(building, ignore_errors=True)
        checkpoint.save_adapter(ranker, slot, building, backbone=backbone_id)
        layout.save(building)
        building.rename(folder)
    version = publish_version(
        context,
        folder,
        checkpoint.load_adapter(folder).content,
        kind="adapter",
        domain=domain.name,
        backbone_id=backbone_id,
        rung="zero_shot",
    )
    flip(context, domain.name, version.id, why="first answers before any training on this domain")
    return version


def attach_live(
    context: RunContext, ranker: Ranker, backbone_id: str, *, leave_out: str | None = None
) -> dict[str, int]:
    """Attach every target's live adapter that was trained on this backbone; returns their slots by name."""
    store = Artifacts(context.settings.artifacts_dir)
    slots = {}
    for live in context.registry.lives():
        if live.domain is None or live.domain == leave_out:
            continue
        version = context.registry.version(live.version_id)
        if version.kind == "adapter" and version.rung == "adapter" and version.backbone_id == backbone_id:
            adapter = checkpoint.load_adapter(store.path(version.artifact))
            slots[live.domain] = adapters.attach(ranker, adapter, backbone=backbone_id)
    return slots


def zero_shot_slot(ranker: Ranker, workspace: Workspace, layout: Layout, name: str, others: dict[str, int]) -> int:
    """A fresh slot that borrows the attention of the target domain whose features agree most, if any agree.

    Args:
        others: slots of other target domains in this ranker, by name.
    """
    own = layout.domain_codes(workspace.domain(name).spec)
    agreement = {
        other: sum(
            a == b and a > 0 for a, b in zip(own, layout.domain_codes(workspace.domain(other).spec), strict=True)
        )
        for other in others
        if other != name
    }
    nearest = max(agreement, key=lambda other: (agreement[other], other), default=None)
    like = others[nearest] if nearest is not None and agreement[nearest] > 0 else None
    return add_domain(ranker, workspace, layout, name, like=like)


def has_data(domain: Domain) -> bool:
    """Whether anything was ingested for a domain."""
    return bool(domain.counts.get("rows_added"))


def flip(context: RunContext, domain: str | None, version_id: str, *, why: str) -> None:
    """Point a domain at a version; flipping to what is already live changes nothing."""
    live = context.registry.live(domain)
    if live is not None and live.version_id == version_id:
        return
    context.registry.promote(domain, version_id, expect=live.version_id if live else None, who=context.by, why=why)


def _trained(context: RunContext) -> tuple[Ranker, Layout]:
    """The trained network with the adapters of the targets it was trained on, in their slots."""
    folder = context.folder / "trained"
    layout = Layout.load(folder / "backbone")
    ranker = checkpoint.load_backbone(folder / "backbone")
    backbone_id = adapters.backbone_hash(ranker)
    for name in layout.slots:
        if layout.source(name) is None:
            adapters.attach(ranker, checkpoint.load_adapter(folder / name), backbone=backbone_id)
    return ranker.eval(), layout


def _transfer(recipe: Recipe, workspace: Workspace, slots: Sequence[str]) -> CollaborativeTransfer | None:
    """What weighs source rows, or None where all count alike or there is no target to ask."""
    targets = tuple(slot for slot, name in enumerate(slots) if workspace.domain(name).role == "target")
    if recipe.borrowing == "uniform" or not targets:
        return None
    return CollaborativeTransfer(TransferConfig(targets=targets, warm_up_steps=WARM_UP_STEPS))


def _told(report: TransferReport, slots: Sequence[str]) -> dict[str, Any]:
    """A transfer report as JSON, with domains by name."""
    return {
        "verdicts": {
            slots[slot]: {name: value for name, value in asdict(verdict).items() if name != "source"}
            for slot, verdict in report.verdicts.items()
        },
        "weights": [{**row, "source": slots[row["source"]]} for row in report.weights],
        "windows": report.windows,
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


def _sample(index: np.ndarray, most: int) -> np.ndarray:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(0).choice(index, most, replace=False))
