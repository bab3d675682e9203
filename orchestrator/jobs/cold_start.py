"""The cold-start report of a launch: its version beside all that is asked for, on users whom training never met.

What is judged, against what, and by which leak checks is settled here; how it is measured in ``evaluation``, and what
follows from it in ``promotion``.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import numpy as np

from domains.errors import NotEnoughData
from domains.events.splits import Split, scan_for_leaks
from models.ranker import adapters, checkpoint
from models.ranker.network import Ranker
from orchestrator.data.batches import Examples
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.evaluation import gate as promotion
from orchestrator.evaluation import measure
from orchestrator.jobs.launch_state import FINE_TUNING, LaunchState
from orchestrator.jobs.runner import RunContext
from orchestrator.jobs.versions import attach_live, zero_shot_slot
from orchestrator.settings import Settings
from orchestrator.training.fit import score_rows

LONG_HISTORY = 20
"""Source events from which a user's history counts as long."""


def compare(context: RunContext) -> None:
    """The cold-start report: adapter, zero-shot, plain rows and trained baselines on users whom the adapter never met.

    Raises:
        NotEnoughData: nobody was held out.
    """
    if context.read("report") is not None:
        return
    launch = LaunchState.of(context)
    with launch.costs("comparison"):
        report = cold_start_report(launch)
    report["launch_seconds"] = (datetime.now(UTC) - context.registry.run(context.run_id).started_at).total_seconds()
    report["cost"] = cost(launch.spent(), context.settings)
    decision = promotion.decide(report, launch.domain.spec.gate)
    report["decision"] = {"promote": decision.promote, "verdict": decision.verdict, "reasons": list(decision.reasons)}
    context.write("report", report)


def cold_start_report(launch: LaunchState) -> dict[str, Any]:
    """Everything but cost and decision, as plain JSON; the fields of ``evaluation.report`` and what a launch adds."""
    ranker, encoder, batch_builder = launch.shared_model()
    rows, split = launch.rows(encoder), launch.split
    known, test, judged = (rows.take(part) for part in (split["train"], split["test"], launch.judged))
    if len(test) == 0:
        raise NotEnoughData(f"domain {launch.name!r} has no held-out cold users to compare on", domain=launch.name)
    others = attach_live(launch.context, ranker, launch.backbone.id, leave_out=launch.name)
    zero_shot = score_rows(
        ranker, batch_builder, judged, zero_shot_slot(ranker, launch.workspace, encoder, launch.name, others)
    )
    slot = checkpoint.load_into(ranker, launch.context.folder / "adapter", backbone=launch.backbone.id)
    adapter = score_rows(ranker, batch_builder, judged, slot)
    live = _live_slot(launch, ranker)
    first = launch.recipe.seed
    of_all = {
        **_plain_rows(encoder.task, known, judged),
        **{baseline: _kept(launch, baseline, first) for baseline in launch.demands.trained},
        "zero_shot": zero_shot,
        "adapter": adapter,
    }
    if live is not None:
        of_all["live"] = score_rows(ranker, batch_builder, judged, live)
    best = launch.workspace.true_probabilities(judged)
    if best is not None:
        of_all["best_reachable"] = best
    scores = {row: score[: len(test)] for row, score in of_all.items()}
    segments = _segments(launch, rows, test)
    gate = launch.domain.spec.gate
    leaks, looked_at = leak_scan(launch, encoder, rows, new_items=test.item[segments["cold_item"]])
    report = measure.report(
        encoder.task,
        gate,
        subject="adapter",
        scores=scores,
        label=test.label,
        user=test.user,
        segments=segments,
        cold_users=len(np.intersect1d(test.user, split["cold_users"])),
        leaks=leaks,
    )
    report["leak_scan"] = looked_at
    report["required"] = launch.demands.as_dict()
    cold = {part: report[part] for part in ("examples", "users", "rows")}
    report["segments"] = {"cold_user": cold, **report["segments"]}
    warm = judged.take(np.arange(len(test), len(judged)))
    known_users = measure.segment(
        encoder.task,
        scores={row: score[len(test) :] for row, score in of_all.items()},
        label=warm.label,
        user=warm.user,
    )
    if known_users is not None:
        report["segments"]["warm_user"] = known_users
    report |= _over_seeds(launch, encoder.task, scores, test)
    certificate = launch.context.result_of("certificate")
    tuned = launch.context.result_of("fine-tuned")
    report["certificate_ok"] = certificate["ok"]
    report["trained_parameters"] = certificate["trained_parameters"]
    report["all_parameters"] = certificate["all_parameters"]
    report["fine_tune_seconds"] = tuned["seconds"]
    report["learning_curve"] = tuned["history"]
    report["training_examples"] = len(known)
    report["notes"] = _notes(launch, encoder, test)
    report["source_weighting"] = launch.backbone.report.get("source_weighting")
    return report


def leak_scan(
    launch: LaunchState, encoder: FeatureEncoder, rows: Examples, *, new_items: np.ndarray
) -> tuple[list[str], list[str]]:
    """Ways in which a test row could be known in training, and what was asked to find them, each as a sentence."""
    workspace, split = launch.workspace, launch.split
    item_codes = workspace.item_codes(encoder, rows.domain)[rows.item]
    user_codes = workspace.user_codes(encoder)[rows.user]
    features = {
        f"{what} {field.name}": codes[:, at]
        for what, fields, codes in (
            ("item", encoder.item_fields, item_codes),
            ("user", encoder.user_fields, user_codes),
            ("context", encoder.context_fields, rows.context),
        )
        for at, field in enumerate(fields)
        if np.ptp(codes[:, at])
    }
    looked_at = [
        f"{len(rows):,} rows: is one, or its event, on two sides of the split?",
        f"{len(split['cold_users']):,} cold users: has one a row in training or validation?",
        f"{len(np.unique(new_items)):,} items that are called new: has one a row in training or validation?",
        f"features ({', '.join(features) or 'there are none'}): does one alone tell the label?",
    ]
    histories = {}
    if launch.timed:
        held = workspace.histories
        histories["sources"] = (held.source, *held.source.window(rows.user, rows.time_us, encoder.lifelong))
        own = held.target.get(rows.domain)
        if own is not None:
            histories["this domain"] = (own, *own.window(rows.user, rows.time_us, encoder.short))
        looked_at += [
            "times: is a training row at or after the cut, a judged row before it, any row in the future?",
            f"histories that rows read ({', '.join(histories)}): does one hold its row's own moment, or a later one?",
        ]
    found = scan_for_leaks(
        Split(split["train"], split["validation"], split["test"], split["cold_users"], launch.cut_us),
        user=rows.user,
        item=rows.item,
        time_us=rows.time_us if launch.timed else None,
        label=rows.label,
        features=features,
        now_us=int(time.time() * 1e6) if launch.timed else None,
        histories=histories,
        new_items=np.unique(new_items),
    )
    return found, looked_at


def cost(spent: dict[str, dict[str, float]], settings: Settings) -> dict[str, Any]:
    """What a launch took of processors, piece by piece, and in money where somebody has set a price."""
    parts: dict[str, float] = {}
    for what, piece in spent.items():
        name, _, repeated = what.partition(", seed ")
        if repeated and name == FINE_TUNING:
            name = f"{FINE_TUNING} under other seeds"
        parts[name] = parts.get(name, 0.0) + piece["processor_seconds"]
    total = sum(parts.values())
    price = settings.price_per_processor_hour or None
    return {
        "processor_seconds": total,
        "parts": dict(sorted(parts.items(), key=lambda part: -part[1])),
        "price_per_processor_hour": price,
        "currency": settings.currency,
        "money": None if price is None else total / 3600 * price,
    }


def _plain_rows(task: str, known: Examples, judged: Examples) -> dict[str, np.ndarray]:
    """What needs no training; ratings know no popularity."""
    found = {"train_mean": np.full(len(judged), known.label.mean())}
    if task == "ctr":
        found["popularity"] = measure.popularity(known.item, known.label, judged.item)
    return {**found, "item_mean": measure.item_mean(known.item, known.label, judged.item)}


def _kept(launch: LaunchState, row: str, seed: int) -> np.ndarray:
    scores = launch.scores(row, seed)
    if scores is None:
        raise RuntimeError(f"run {launch.context.run_id} holds no predictions of {row} under seed {seed} yet")
    return scores


def _live_slot(launch: LaunchState, ranker: Ranker) -> int | None:
    """The domain's own version that answers now, attached; None where there is none on this shared model."""
    live = launch.context.result_of("opened")["live"]
    if live is None:
        return None
    version = launch.context.registry.version(live)
    if version.level != "adapter" or version.backbone_id != launch.backbone.id:
        return None
    folder = Artifacts(launch.context.settings.artifacts_dir).path(version.artifact)
    return adapters.attach(ranker, checkpoint.load_adapter(folder), backbone=launch.backbone.id)


def _segments(launch: LaunchState, rows: Examples, test: Examples) -> dict[str, np.ndarray]:
    """Parts of the cold users' rows: by how often the item was met, and by how much the user brings along."""
    seen = np.bincount(rows.item[launch.split["train"]], minlength=int(rows.item.max()) + 1)
    chosen_by = np.bincount(rows.item[launch.split["validation"]], minlength=len(seen))
    popular, new = seen[test.item], (seen + chosen_by)[test.item] == 0
    history = launch.workspace.history_length(test)
    return {
        "cold_item": new,
        "head_item": popular >= np.quantile(popular, 0.8),
        "tail_item": ~new & (popular < np.quantile(popular, 0.5)),
        "short_history": history < LONG_HISTORY,
        "long_history": history >= LONG_HISTORY,
    }


def _over_seeds(launch: LaunchState, task: str, scores: dict[str, np.ndarray], test: Examples) -> dict[str, Any]:
    """Every trained row under every seed, and what the adapter gains over each row, seed by seed."""
    if len(launch.seeds) == 1:
        return {}
    seen = {"label": test.label, "user": test.user}
    by_seed = {
        row: {launch.recipe.seed: scores[row], **{s: _kept(launch, row, s)[: len(test)] for s in launch.seeds[1:]}}
        for row in ("adapter", *launch.demands.trained)
    }
    gate, adapter = launch.domain.spec.gate, by_seed["adapter"]
    return {
        "seeds": measure.over_seeds(task, adapter, **seen),
        "baselines_over_seeds": {
            row: measure.over_seeds(task, of_row, **seen) for row, of_row in by_seed.items() if row != "adapter"
        },
        "gain_over_seeds": {
            row: measure.gain_over_seeds(gate, adapter, by_seed.get(row, {launch.recipe.seed: score}), **seen)
            for row, score in scores.items()
            if row != "adapter"
        },
    }


def _notes(launch: LaunchState, encoder: FeatureEncoder, test: Examples) -> list[str]:
    notes = []
    if not launch.timed:
        notes.append("the data has no times, so there are no later rows of warm users to judge on")
    elif encoder.trained_until_us is not None:
        early = float((test.time_us <= encoder.trained_until_us).mean())
        if early:
            notes.append(f"{early:.0%} of test rows are older than the newest event the shared model was trained on")
    return notes
