"""The cold-start report of a launch: its version against the required baselines, on users whom training never saw.

Which rows are evaluated, against what, and by which leak checks is settled here; how they are measured in
``evaluation.measure``, and what follows from it in ``evaluation.gate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from domains.errors import InvalidData, NotEnoughData
from models import metrics
from models.ranker import adapters, checkpoint
from models.ranker.network import Ranker
from orchestrator.data.batches import Examples
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.model_store import Artifacts
from orchestrator.data.scoring import score_rows
from orchestrator.evaluation.declared import declared_columns, regression
from orchestrator.evaluation.gate import decide
from orchestrator.evaluation.measure import EvaluationRows, Scores, prediction_bias, reliability
from orchestrator.evaluation.plain_rows import item_user_bias, plain_rows
from orchestrator.evaluation.report import (
    Certificate,
    ColdStartReport,
    Comparison,
    Cost,
    Segment,
    SharedReport,
)
from orchestrator.jobs.across_versions import draw_of
from orchestrator.jobs.launch_state import (
    CERTIFICATE,
    FINE_TUNED,
    FINE_TUNING,
    FineTuned,
    FreshSlot,
    LaunchState,
    Spent,
)
from orchestrator.jobs.leak_scan import leak_scan
from orchestrator.jobs.runner import RunContext
from orchestrator.settings import Settings

REPORT = "report"
SUBJECT = "adapter"
LONG_HISTORY = 20
"""Source events from which a user's history counts as long."""


def compare(context: RunContext) -> None:
    """The cold-start report: adapter, zero-shot, plain rows and trained baselines on cold users.

    Raises:
        NotEnoughData: nobody was held out.
    """
    if context.holds(REPORT):
        return
    launch = LaunchState.of(context)
    with launch.costs("comparison"):
        comparison = compare_on_cold_users(launch)
    started = context.registry.run(context.run_id).started_at
    report = ColdStartReport.completing(
        comparison,
        launch_seconds=(datetime.now(UTC) - started).total_seconds(),
        cost=cost(launch.spent(), context.settings),
        decision=decide(comparison, launch.domain.spec.gate),
    )
    context.write(REPORT, report)


def compare_on_cold_users(launch: LaunchState) -> Comparison:
    """All that the gate looks at.

    Raises:
        NotEnoughData: nobody was held out.
    """
    fresh, split, gate = launch.fresh_slot(), launch.split, launch.domain.spec.gate
    rows, task = fresh.rows, launch.domain.spec.task
    test = rows.take(split.test)
    if len(test) == 0:
        raise NotEnoughData(f"domain {launch.name!r} has no held-out cold users to compare on", domain=launch.name)
    everything = _scores(launch, fresh)
    scores = {name: score[: len(test)] for name, score in everything.items()}
    cold, own = EvaluationRows.of(task, test), scores[SUBJECT]
    warm = EvaluationRows.of(task, rows.take(split.warm))
    masks = _segment_masks(launch, rows, test)
    scanned = leak_scan(launch, fresh.encoder, rows, new_items=test.item[masks["cold_item"]])
    table, users, clicks = cold.table(scores), len(np.unique(test.user)), task == "ctr"
    segments = {
        "cold_user": Segment(examples=len(test), users=users, rows=table),
        **{name: cold.take(mask).segment(_at(scores, mask)) for name, mask in masks.items()},
        "warm_user": warm.segment(_at(everything, np.arange(len(test), len(test) + len(warm)))),
    }
    certificate = launch.context.result_of(CERTIFICATE, Certificate)
    tuned = launch.context.result_of(FINE_TUNED, FineTuned)
    return Comparison(
        task=task,
        metric=gate.metric,
        subject=SUBJECT,
        examples=len(test),
        users=users,
        cold_users=len(np.intersect1d(test.user, split.cold_users)),
        label_mean=float(test.label.mean()),
        rows=table,
        gain={name: cold.gain(gate.metric, own, score) for name, score in scores.items() if name != SUBJECT},
        segments={name: segment for name, segment in segments.items() if segment is not None},
        prediction_bias=prediction_bias(task, test.label, own),
        pcoc=metrics.pcoc(test.label, own) if clicks else None,
        ece=metrics.ece(test.label, own) if clicks else None,
        reliability=reliability(test.label, own) if clicks else None,
        leaks=scanned.leaks,
        leak_scan=scanned.asked,
        suspects=scanned.suspects,
        drawn=draw_of(launch.workspace, launch.name, split.cut_us),
        required=launch.policy,
        **_over_seeds(launch, cold, scores),
        certificate_ok=certificate.ok,
        trained_parameters=certificate.trained_parameters,
        all_parameters=certificate.all_parameters,
        fine_tune_seconds=tuned.seconds,
        learning_curve=tuned.history,
        training_examples=len(split.train),
        notes=_notes(launch, fresh.encoder, test),
        source_weighting=SharedReport.of(launch.backbone).source_weighting,
    )


def cost(spent: Mapping[str, Spent], settings: Settings) -> Cost:
    """What a launch took of processors, piece by piece, and in money where somebody has set a price."""
    parts: dict[str, float] = {}
    for what, piece in spent.items():
        name, _, repeated = what.partition(", seed ")
        if repeated and name == FINE_TUNING:
            name = f"{FINE_TUNING} under other seeds"
        parts[name] = parts.get(name, 0.0) + piece.processor_seconds
    total = sum(parts.values())
    price = settings.price_per_processor_hour or None
    return Cost(
        processor_seconds=total,
        parts=dict(sorted(parts.items(), key=lambda part: -part[1])),
        price_per_processor_hour=price,
        currency=settings.currency,
        money=None if price is None else total / 3600 * price,
    )


def _scores(launch: LaunchState, fresh: FreshSlot) -> dict[str, np.ndarray]:
    """Predictions of the evaluation rows by each row of the table."""
    ranker, task = fresh.ranker, fresh.encoder.task
    train, rows = fresh.rows.take(launch.split.train), fresh.rows.take(launch.split.evaluation)

    def scored(slot: int) -> np.ndarray:
        return score_rows(ranker, fresh.batch_builder, rows, slot)

    zero_shot = scored(fresh.slot)
    adapter = scored(checkpoint.load_into(ranker, launch.context.folder / "adapter", backbone=launch.backbone.id))
    found = {
        **plain_rows(task, train, rows),
        "item_user_bias": item_user_bias(task, train, rows),
        "declared_columns": _regression(launch, fresh),
        **{baseline: _saved(launch, baseline, launch.recipe.seed) for baseline in launch.trained_baselines},
        "zero_shot": zero_shot,
        SUBJECT: adapter,
    }
    live = _live_slot(launch, ranker)
    if live is not None:
        found["live"] = scored(live)
    best = launch.workspace.true_probabilities(rows)
    if best is not None:
        found["best_reachable"] = best
    return found


def _regression(launch: LaunchState, fresh: FreshSlot) -> np.ndarray:
    """The regression on the declared columns, of the evaluation rows."""
    columns, rows = declared_columns(launch.workspace, launch.name)
    if not np.array_equal(rows.item, fresh.rows.item):
        raise InvalidData(f"data of {launch.name!r} changed while this launch ran; start a new one", domain=launch.name)
    return regression(fresh.encoder.task, columns, rows.label, launch.split)[launch.split.evaluation]


def _saved(launch: LaunchState, row: str, seed: int) -> np.ndarray:
    scores = launch.scores(row, seed)
    if scores is None:
        raise RuntimeError(f"run {launch.context.run_id} holds no predictions of {row} under seed {seed} yet")
    return scores


def _at(scores: Scores, index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: score[index] for name, score in scores.items()}


def _live_slot(launch: LaunchState, ranker: Ranker) -> int | None:
    """The domain's own version that answers now, attached; None where there is none on this shared model."""
    if launch.opened.live is None:
        return None
    version = launch.context.registry.version(launch.opened.live)
    if version.level != "adapter" or version.backbone_id != launch.backbone.id:
        return None
    folder = Artifacts(launch.context.settings.artifacts_dir).path(version.artifact)
    return adapters.attach(ranker, checkpoint.load_adapter(folder), backbone=launch.backbone.id)


def _segment_masks(launch: LaunchState, rows: Examples, test: Examples) -> dict[str, np.ndarray]:
    """Parts of the cold users' rows: by how often the item was met, and by how much history the user brings."""
    seen = np.bincount(rows.item[launch.split.train], minlength=int(rows.item.max()) + 1)
    chosen_by = np.bincount(rows.item[launch.split.validation], minlength=len(seen))
    popular, new = seen[test.item], (seen + chosen_by)[test.item] == 0
    history = launch.workspace.history_length(test)
    return {
        "cold_item": new,
        "head_item": popular >= np.quantile(popular, 0.8),
        "tail_item": ~new & (popular < np.quantile(popular, 0.5)),
        "short_history": history < LONG_HISTORY,
        "long_history": history >= LONG_HISTORY,
    }


def _over_seeds(launch: LaunchState, cold: EvaluationRows, scores: Scores) -> dict[str, Any]:
    """Every trained row under every seed, and what the adapter gains over each row, seed by seed."""
    if len(launch.seeds) == 1:
        return {}
    first, *others = launch.seeds
    by_seed = {
        row: {first: scores[row], **{seed: _saved(launch, row, seed)[: len(cold)] for seed in others}}
        for row in (SUBJECT, *launch.trained_baselines)
    }
    own = by_seed.pop(SUBJECT)
    metric = launch.domain.spec.gate.metric
    return {
        "seeds": cold.over_seeds(own),
        "baselines_over_seeds": {row: cold.over_seeds(found) for row, found in by_seed.items()},
        "gain_over_seeds": {
            row: cold.gain_over_seeds(metric, own, by_seed.get(row, {first: score}))
            for row, score in scores.items()
            if row != SUBJECT
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
