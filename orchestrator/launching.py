"""Launch: freeze the shared model, fine-tune one adapter, certify, compare on cold users, ask the gate."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from domains.errors import InvalidData, NoLiveVersion, NotEnoughData
from domains.lifecycle import State
from domains.registry import Version
from domains.splits import Split, scan_for_leaks
from models import adapters, checkpoint, training
from models.ranker import Ranker
from orchestrator import evaluation, promotion, rivals
from orchestrator.artifacts import Artifacts
from orchestrator.encoding import Layout
from orchestrator.evidence_fit import fit_own_evidence
from orchestrator.item_means import item_means, without_itself
from orchestrator.recipe import Recipe
from orchestrator.runs import RunContext, Step
from orchestrator.shared_training import (
    attach_live,
    offer_zero_shot,
    publish_version,
    score_rows,
    searched_parameters,
    zero_shot_slot,
)
from orchestrator.training_data import Assembler, EpochOfDomains, Examples
from orchestrator.workspace import Workspace

WITNESS_ROWS = 256
"""Rows of each other domain whose predictions must stay bit-equal through a launch."""


def open_launch(context: RunContext) -> None:
    """Fix what this launch stands on (backbone, split) and let the domain answer at rung zero-shot meanwhile.

    Raises:
        NoLiveVersion: there is no shared model yet.
        NotEnoughData: too few rows, or a label that never varies.
    """
    if context.read("opened") is not None:
        return
    registry = context.registry
    domain = registry.domain(_name(context))
    live = registry.live(None)
    if live is None:
        raise NoLiveVersion("there is no shared model yet; run train-shared first", domain=domain.name)
    backbone = registry.version(live.version_id)
    ranker, layout = _backbone(context, backbone)
    if domain.spec.task != layout.task:
        raise NotEnoughData(
            f"domain {domain.name!r} predicts {domain.spec.task}, the shared model {layout.task}; "
            "train a shared model on domains of the same task",
            domain=domain.name,
        )
    if registry.live(domain.name) is None:
        offer_zero_shot(context, domain, ranker=ranker, layout=layout, backbone_id=backbone.id)
    workspace = Workspace(context.settings, tuple(registry.domains()))
    rows = workspace.examples(layout, domain.name)
    split = workspace.split(rows)
    label = rows.label[split.train]
    if len(split.train) < 50 or (layout.task == "ctr" and not 0 < label.mean() < 1):
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
    )
    standing = registry.live(domain.name)
    registry.move(domain.name, State.TRAINING, by=context.by, why=f"launch {context.run_id}")
    opened = {"backbone": backbone.id, "data": workspace.data(domain.name).version}
    context.write("opened", {**opened, "live": standing.version_id if standing else None})


def fine_tune(context: RunContext) -> None:
    """Train only the domain's own parameters, fit its calibrator, and certify that nothing else moved."""
    if (context.folder / "adapter").is_dir():
        return
    recipe, workspace, backbone = _stand(context)
    name = _name(context)
    ranker, layout = _backbone(context, backbone)
    assembler = workspace.assembler(layout, [domain.name for domain in workspace.domains])
    rows, split = _rows(context, workspace, layout)
    others = attach_live(context, ranker, backbone.id, leave_out=name)
    slot = zero_shot_slot(ranker, workspace, layout, name, others)
    witnesses = _witnesses(workspace, layout, others)
    frozen_before = adapters.fingerprint(ranker, excluding=slot)
    seen_before = {other: score_rows(ranker, assembler, witness, at) for other, (witness, at) in witnesses.items()}
    result = fit_adapter(
        ranker,
        slot,
        recipe,
        assembler,
        rows.take(split["train"]),
        rows.take(split["validation"]),
        checkpoint_dir=context.folder / "fine-tuning",
        on_progress=lambda progress: context.progress(
            progress.fraction, loss=progress.loss, steps=progress.step, examples_per_s=progress.rows_per_s
        ),
    )
    certificate = adapters.certificate(
        frozen_before,
        adapters.fingerprint(ranker, excluding=slot),
        trained_parameters=adapters.trained_parameter_count(ranker),
    )
    ranker.eval()
    moved = [
        other
        for other, (witness, at) in witnesses.items()
        if not np.array_equal(seen_before[other], score_rows(ranker, assembler, witness, at))
    ]
    building = context.folder / "adapter.building"
    shutil.rmtree(building, ignore_errors=True)
    checkpoint.save_adapter(ranker, slot, building, backbone=backbone.id)
    layout.save(building)
    context.write(
        "certificate",
        {
            **certificate.as_dict(),
            "ok": certificate.ok and not moved,
            "backbone": backbone.id,
            "witnesses": {other: len(witness) for other, (witness, _) in witnesses.items()},
            "predictions_moved": moved,
            "all_parameters": sum(parameter.numel() for parameter in ranker.parameters()),
        },
    )
    context.write("fine-tuned", {"seconds": result.seconds, "steps": result.steps, "history": result.history})
    building.rename(context.folder / "adapter")


def train_rivals(context: RunContext) -> None:
    """Train what the gate, or the recipe, wants the adapter compared with."""
    recipe, workspace, backbone = _stand(context)
    name = _name(context)
    for rival in _rivals(recipe, workspace, name):
        path = context.folder / f"rival-{rival}.npy"
        if path.is_file():
            continue
        ranker, layout = _backbone(context, backbone)
        assembler = workspace.assembler(layout, [domain.name for domain in workspace.domains])
        rows, split = _rows(context, workspace, layout)
        slot = zero_shot_slot(ranker, workspace, layout, name, {})
        scores = rivals.predict(
            rival,
            ranker=ranker,
            slot=slot,
            recipe=recipe,
            workspace=workspace,
            assembler=assembler,
            known=rows.take(split["train"]),
            validation=rows.take(split["validation"]),
            test=rows.take(split["test"]),
            on_progress=partial(_show, context, rival),
        )
        building = path.with_suffix(".building.npy")
        np.save(building, scores)
        building.rename(path)


def compare(context: RunContext) -> None:
    """The cold-start report: adapter, zero-shot and the plain rows on users the adapter never met."""
    if context.read("report") is not None:
        return
    recipe, workspace, backbone = _stand(context)
    name = _name(context)
    domain = workspace.domain(name)
    ranker, layout = _backbone(context, backbone)
    assembler = workspace.assembler(layout, [domain.name for domain in workspace.domains])
    rows, split = _rows(context, workspace, layout)
    known, test = rows.take(split["train"]), rows.take(split["test"])
    if len(test) == 0:
        raise NotEnoughData(f"domain {name!r} has no held-out cold users to compare on", domain=name)
    plain = {
        "train_mean": np.full(len(test), known.label.mean()),
        "popularity": evaluation.popularity(known.item, known.label, test.item),
        "item_mean": evaluation.item_mean(known.item, known.label, test.item),
    }
    if layout.task == "rating":
        del plain["popularity"]
    others = attach_live(context, ranker, backbone.id, leave_out=name)
    zero_shot = score_rows(ranker, assembler, test, zero_shot_slot(ranker, workspace, layout, name, others))
    slot = checkpoint.load_into(ranker, context.folder / "adapter", backbone=backbone.id)
    tuned = score_rows(ranker, assembler, test, slot)
    trained = {rival: np.load(context.folder / f"rival-{rival}.npy") for rival in _rivals(recipe, workspace, name)}
    scores = {**plain, **trained, "zero_shot": zero_shot, "adapter": tuned}
    best = workspace.true_probabilities(test)
    if best is not None:
        scores["best_reachable"] = best
    popular = np.bincount(known.item, minlength=int(rows.item.max()) + 1)[test.item]
    history = workspace.history_length(test)
    segments = {
        "cold_item": popular == 0,
        "head_item": popular >= np.quantile(popular, 0.8),
        "tail_item": (popular > 0) & (popular < np.quantile(popular, 0.5)),
        "short_history": history < 20,
        "long_history": history >= 20,
    }
    report = evaluation.report(
        layout.task,
        domain.spec.gate,
        subject="adapter",
        scores=scores,
        label=test.label,
        user=test.user,
        segments=segments,
        cold_users=len(np.intersect1d(test.user, split["cold_users"])),
        leaks=scan_for_leaks(
            _as_split(split), user=rows.user, item=rows.item, time_us=rows.time_us if _timed(domain) else None
        ),
    )
    certificate = context.result_of("certificate")
    report["certificate_ok"] = certificate["ok"]
    report["trained_parameters"] = certificate["trained_parameters"]
    report["all_parameters"] = certificate["all_parameters"]
    report["fine_tune_seconds"] = context.result_of("fine-tuned")["seconds"]
    report["learning_curve"] = context.result_of("fine-tuned")["history"]
    report["training_examples"] = len(known)
    if layout.trained_until_us is not None and _timed(domain):
        early = float((test.time_us <= layout.trained_until_us).mean())
        report["notes"] = (
            [f"{early:.0%} of test rows are older than the newest event the shared model was trained on"]
            if early
            else []
        )
    decision = promotion.decide(report, domain.spec.gate)
    report["decision"] = {"promote": decision.promote, "verdict": decision.verdict, "reasons": list(decision.reasons)}
    context.write("report", report)


def offer(context: RunContext) -> None:
    """Record the version with its certificate and report; a passed gate makes it the challenger."""
    recipe, _workspace, backbone = _stand(context)
    name = _name(context)
    report, certificate = context.result_of("report"), context.result_of("certificate")
    version = publish_version(
        context,
        context.folder / "adapter",
        checkpoint.load_adapter(context.folder / "adapter").content,
        kind="adapter",
        domain=name,
        backbone_id=backbone.id,
        rung="adapter",
        metrics=report["rows"]["adapter"],
        report=report,
        certificate=certificate,
        config=recipe.model_dump(mode="json"),
    )
    live = context.registry.live(name)
    already_live = live is not None and live.version_id == version.id
    state = State.LIVE if already_live else State.CHALLENGER if report["decision"]["promote"] else State.DATA_READY
    if not report["decision"]["promote"] and live is not None:
        held = context.registry.version(live.version_id)
        if held.rung == "adapter":
            state = State.LIVE
    context.registry.move(name, state, by=context.by, why="; ".join(report["decision"]["reasons"]))
    context.write("result", {"version": version.id, "decision": report["decision"]})


def go_live(context: RunContext) -> None:
    """Put a retrained version in front of users when its gate let it pass; a held one leaves the live one alone.

    Raises:
        StalePromotion: somebody promoted another version while this one was trained.
    """
    result, registry = context.result_of("result"), context.registry
    live = registry.live(_name(context))
    if not result["decision"]["promote"] or (live is not None and live.version_id == result["version"]):
        return
    expected = context.result_of("opened")["live"]
    registry.promote(
        _name(context), result["version"], expect=expected, who=context.by, why="; ".join(result["decision"]["reasons"])
    )


STEPS = (
    Step("Choose the cold users to judge on", open_launch, 1),
    Step("Fine-tune the adapter and certify the rest frozen", fine_tune, 8),
    Step("Train the rivals that the gate names", train_rivals, 2),
    Step("Compare on cold users", compare, 3),
    Step("Offer the version to the gate", offer, 1),
)

GO_LIVE = Step("Go live if the gate let it pass", go_live, 1)
"""The last step of a retrain: a launch waits for a person, a schedule does not."""


def fit_adapter(
    ranker: Ranker,
    slot: int,
    recipe: Recipe,
    assembler: Assembler,
    known: Examples,
    validation: Examples,
    *,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[training.Progress], None] | None = None,
) -> training.TrainResult:
    """Train what the domain in this slot owns on its known rows, and fit its calibrator; leaves the rest frozen."""
    items = ranker.owned(slot).items
    assert items is not None, "a target domain owns its items"
    task = ranker.config.task
    means = item_means(known, len(items), task)
    items.set_means(torch.from_numpy(means.means))
    learnt = without_itself(known, means)
    adapters.freeze_all_but(ranker, slot)
    if ranker.config.wide:
        fit_own_evidence(ranker, assembler, learnt, slot, seed=recipe.seed)
    result = training.train(
        ranker,
        EpochOfDomains(
            assembler,
            [(learnt, slot)],
            batch_size=recipe.fine_tune_batch_size,
            seed=recipe.seed,
        ),
        config=training.TrainConfig(
            task=task,
            epochs=recipe.fine_tune_epochs,
            learning_rate=recipe.fine_tune_learning_rate,
            weight_decay=recipe.weight_decay,
            patience=max(recipe.patience, 1),
            consider_start=True,
            seed=recipe.seed,
            checkpoint_every_steps=recipe.checkpoint_every_steps,
        ),
        validation=EpochOfDomains(assembler, [(validation, slot)], batch_size=4096, seed=0, shuffle=False)
        if len(validation)
        else None,
        checkpoint_dir=checkpoint_dir,
        on_progress=on_progress,
        parameters=searched_parameters(ranker),
    )
    if len(validation) and not ranker.config.wide:
        # Wide facts are solved for on many more users than are held out here: a map fitted to these adds noise.
        calibrate(ranker, slot, raw_scores(ranker, assembler, validation, slot), validation.label)
    return result


def raw_scores(ranker: Ranker, assembler: Any, rows: Any, slot: int) -> np.ndarray:
    """Uncalibrated network outputs of rows in their order, (N,)."""
    ranker.eval()
    with torch.inference_mode():
        return np.concatenate(
            [
                ranker(assembler.batch(rows.take(np.arange(at, min(at + 4096, len(rows)))), slot)).float().numpy()
                for at in range(0, len(rows), 4096)
            ]
        )


def calibrate(ranker: Ranker, slot: int, score: np.ndarray, label: np.ndarray) -> None:
    """Fit the domain's calibrator on held-out rows: Platt scaling for clicks, an affine map for ratings.

    A slope that is not positive would turn the ranking round; then only the shift is fitted.
    """
    calibrator = ranker.owned(slot).calibrator
    if ranker.config.task == "ctr":
        if not 0 < label.mean() < 1:
            return
        fit = LogisticRegression(C=1e4).fit(score[:, None], label)
        scale, shift = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    else:
        scale, shift = (float(value) for value in np.polyfit(score, label, 1)) if score.std() > 1e-6 else (0.0, 0.0)
        if scale <= 0:
            scale, shift = 1.0, float(label.mean() - score.mean())
    if scale <= 0:
        return
    with torch.no_grad():
        calibrator.scale.fill_(scale)
        calibrator.shift.fill_(shift)


def _name(context: RunContext) -> str:
    assert context.domain is not None, "a launch names its domain"
    return context.domain


def _stand(context: RunContext) -> tuple[Recipe, Workspace, Version]:
    opened = context.result_of("opened")
    workspace = Workspace(context.settings, tuple(context.registry.domains()))
    task = workspace.domain(_name(context)).spec.task
    return Recipe(**{"task": task, **context.params}), workspace, context.registry.version(opened["backbone"])


def _show(context: RunContext, rival: str, progress: training.Progress) -> None:
    context.progress(progress.fraction, rival=rival)


def _rivals(recipe: Recipe, workspace: Workspace, name: str) -> list[str]:
    wanted = {*recipe.rivals, workspace.domain(name).spec.gate.rival}
    return [rival for rival in rivals.TRAINED if rival in wanted]


def _backbone(context: RunContext, version: Version) -> tuple[Ranker, Layout]:
    folder = Artifacts(context.settings.artifacts_dir).path(version.artifact)
    return checkpoint.load_backbone(folder), Layout.load(folder)


def _rows(context: RunContext, workspace: Workspace, layout: Layout) -> tuple[Any, dict[str, np.ndarray]]:
    rows = workspace.examples(layout, _name(context))
    if workspace.data(rows.domain).version != context.result_of("opened")["data"]:
        raise InvalidData(f"data of {rows.domain!r} changed while this launch ran; start a new one", domain=rows.domain)
    with np.load(context.folder / "split.npz") as held:
        return rows, dict(held)


def _witnesses(workspace: Workspace, layout: Layout, others: dict[str, int]) -> dict[str, tuple[Any, int]]:
    """A few rows of every other domain in the ranker, sources included, and their slots."""
    sources = {source.domain: layout.slots.index(source.domain) for source in layout.sources}
    found = {}
    for other, slot in {**sources, **others}.items():
        rows = workspace.examples(layout, other)
        found[other] = (rows.take(np.arange(max(0, len(rows) - WITNESS_ROWS), len(rows))), slot)
    return found


def _timed(domain: Any) -> bool:
    return domain.spec.interactions.time is not None


def _as_split(split: dict[str, np.ndarray]) -> Any:
    return Split(
        train=split["train"],
        validation=split["validation"],
        test=split["test"],
        cold_users=split["cold_users"],
        cut_us=None,
    )
