"""Launch: freeze the shared model, fine-tune one adapter, certify, compare on cold users, ask the gate."""

from __future__ import annotations

import shutil
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from domains.errors import InvalidData, NoLiveVersion, NotEnoughData
from domains.lifecycle import State
from domains.registry import Version
from domains.splits import Split, scan_for_leaks
from models import adapters, checkpoint, training
from models.ranker import Ranker
from orchestrator import evaluation, promotion, rivals
from orchestrator.artifacts import Artifacts
from orchestrator.encoding import Layout
from orchestrator.fine_tuning import fit_adapter
from orchestrator.fitting import score_rows
from orchestrator.recipe import Recipe
from orchestrator.runs import RunContext, Step
from orchestrator.training_data import Examples
from orchestrator.versions import attach_live, offer_zero_shot, publish_version, zero_shot_slot
from orchestrator.workspace import Workspace

WITNESS_ROWS = 256
"""Rows of each other domain whose predictions must stay bit-equal through a launch."""
WARM_ROWS = 20_000
"""Later rows of users whom training knows, at most; they are shown beside the cold users and decide nothing."""


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
        warm=_later_rows_of_known_users(rows, split),
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


def repeat_with_seeds(context: RunContext) -> None:
    """Fine-tune again under the next seeds, where the recipe wants more than one, to show how much is chance.

    The version offered is the first seed's, whatever comes of the others: to take the best on the rows that judge would
    be to select on the test.
    """
    recipe, workspace, backbone = _stand(context)
    name = _name(context)
    for seed in range(recipe.seed + 1, recipe.seed + recipe.seeds):
        path = context.folder / f"seed-{seed}.npy"
        if path.is_file():
            continue
        ranker, layout = _backbone(context, backbone)
        assembler = workspace.assembler(layout, [domain.name for domain in workspace.domains])
        rows, split = _rows(context, workspace, layout)
        slot = zero_shot_slot(
            ranker, workspace, layout, name, attach_live(context, ranker, backbone.id, leave_out=name)
        )
        fit_adapter(
            ranker,
            slot,
            recipe.model_copy(update={"seed": seed}),
            assembler,
            rows.take(split["train"]),
            rows.take(split["validation"]),
            on_progress=partial(_show, context, f"seed {seed}"),
        )
        _publish_scores(path, score_rows(ranker, assembler, rows.take(_judged(split)), slot))


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
            test=rows.take(_judged(split)),
            on_progress=partial(_show, context, rival),
        )
        _publish_scores(path, scores)


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
    judged = rows.take(_judged(split))
    plain = {
        "train_mean": np.full(len(judged), known.label.mean()),
        "popularity": evaluation.popularity(known.item, known.label, judged.item),
        "item_mean": evaluation.item_mean(known.item, known.label, judged.item),
    }
    if layout.task == "rating":
        del plain["popularity"]
    others = attach_live(context, ranker, backbone.id, leave_out=name)
    zero_shot = score_rows(ranker, assembler, judged, zero_shot_slot(ranker, workspace, layout, name, others))
    slot = checkpoint.load_into(ranker, context.folder / "adapter", backbone=backbone.id)
    tuned = score_rows(ranker, assembler, judged, slot)
    trained = {rival: np.load(context.folder / f"rival-{rival}.npy") for rival in _rivals(recipe, workspace, name)}
    of_all = {**plain, **trained, "zero_shot": zero_shot, "adapter": tuned}
    best = workspace.true_probabilities(judged)
    if best is not None:
        of_all["best_reachable"] = best
    scores = {row: score[: len(test)] for row, score in of_all.items()}
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
        leaks=_leaks(workspace, layout, rows, split),
    )
    warm = judged.take(np.arange(len(test), len(judged)))
    known_users = evaluation.segment(
        layout.task,
        scores={row: score[len(test) :] for row, score in of_all.items()},
        label=warm.label,
        user=warm.user,
    )
    if known_users is not None:
        report["segments"]["warm_user"] = known_users
    if recipe.seeds > 1:
        others_too = {
            seed: np.load(context.folder / f"seed-{seed}.npy")[: len(test)]
            for seed in range(recipe.seed + 1, recipe.seed + recipe.seeds)
        }
        report["seeds"] = evaluation.over_seeds(
            layout.task, {recipe.seed: scores["adapter"], **others_too}, label=test.label, user=test.user
        )
    certificate = context.result_of("certificate")
    report["certificate_ok"] = certificate["ok"]
    report["trained_parameters"] = certificate["trained_parameters"]
    report["all_parameters"] = certificate["all_parameters"]
    report["fine_tune_seconds"] = context.result_of("fine-tuned")["seconds"]
    started = context.registry.run(context.run_id).started_at
    report["launch_seconds"] = (datetime.now(UTC) - started).total_seconds()
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
    Step("Fine-tune again under other seeds", repeat_with_seeds, 2),
    Step("Train the rivals that the gate names", train_rivals, 2),
    Step("Compare on cold users", compare, 3),
    Step("Offer the version to the gate", offer, 1),
)

GO_LIVE = Step("Go live if the gate let it pass", go_live, 1)
"""The last step of a retrain: a launch waits for a person, a schedule does not."""


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


def _judged(split: dict[str, np.ndarray]) -> np.ndarray:
    """Positions of the rows to score: those of the cold users, then later rows of users whom training knows."""
    return np.r_[split["test"], split.get("warm", np.zeros(0, np.int64))]


def _later_rows_of_known_users(rows: Examples, split: Split) -> np.ndarray:
    if split.cut_us is None:
        return np.zeros(0, np.int64)
    later = np.flatnonzero(np.isin(rows.user, np.unique(rows.user[split.train])) & (rows.time_us >= split.cut_us))
    return np.sort(np.random.default_rng(0).permutation(later)[:WARM_ROWS])


def _leaks(workspace: Workspace, layout: Layout, rows: Examples, split: dict[str, np.ndarray]) -> list[str]:
    """Ways in which a test row could be known in training: crossing ids, telling features, times, histories."""
    timed = _timed(workspace.domain(rows.domain))
    codes = workspace.item_codes(layout, rows.domain)[rows.item]
    features = {field.name: codes[:, at] for at, field in enumerate(layout.item_fields)}
    features |= {field.name: rows.context[:, at] for at, field in enumerate(layout.context_fields)}
    store = workspace.histories.source
    return scan_for_leaks(
        _as_split(split),
        user=rows.user,
        item=rows.item,
        time_us=rows.time_us if timed else None,
        label=rows.label,
        features=features,
        now_us=int(time.time() * 1e6) if timed else None,
        histories={"sources": (store, *store.window(rows.user, rows.time_us, layout.lifelong))},
    )


def _publish_scores(path: Path, scores: np.ndarray) -> None:
    building = path.with_suffix(".building.npy")
    np.save(building, scores)
    building.rename(path)


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
