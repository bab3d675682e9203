"""Before any launch: does each source help, and with how much data of its own will the domain be ahead?

Tiny networks are trained for a few hundred steps with and without each source (``short_runs``), and evaluated on users
whom they never met.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import torch

from domains.errors import NotEnoughData
from domains.events.domain_data import DomainData
from models.intervals import Interval
from orchestrator.data.dataset import Workspace, domains_with_data
from orchestrator.evaluation.learning_curve import BOUNDS, backtest, rows_needed, user_weights
from orchestrator.evaluation.preview_report import (
    Backtest,
    DataForecast,
    LearningCurve,
    PreviewedSource,
    PreviewReport,
    SourceValues,
    Verdict,
)
from orchestrator.evaluation.rows import FREE
from orchestrator.jobs.data_steps import GATHER
from orchestrator.jobs.runner import RESULT, RunContext, Step
from orchestrator.jobs.short_runs import OnShare, ShortRuns, Size

SOURCES, FORECAST = "sources", "forecast"
"""Names of the results that the steps leave for each other."""
DRAWS = 1000


def value_sources(context: RunContext) -> None:
    """Short runs with and without each source."""
    if not context.holds(SOURCES):
        context.write(SOURCES, source_values(_short_runs(context), on_progress=context.progress))


def forecast_data(context: RunContext) -> None:
    """Adapters on growing shares of the domain's rows, and where their errors lead."""
    runs = _short_runs(context)
    if not context.holds(FORECAST):
        context.write(FORECAST, data_forecast(runs, on_progress=context.progress))
    report = PreviewReport(
        **dict(context.result_of(SOURCES, SourceValues)),
        **dict(context.result_of(FORECAST, DataForecast)),
        domain=runs.name,
        task=runs.task,
        metric=runs.judged.metric.name,
        data=DomainData(context.settings.data_dir, runs.name).version,
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        run=context.run_id,
        evaluation_rows=len(runs.rows),
        evaluation_users=len(runs.users),
        folds=runs.size.folds,
    )
    context.write(RESULT, report)


STEPS = (
    GATHER,
    Step("Short runs with and without each source", value_sources, 10),
    Step("Adapters on growing shares of the data", forecast_data, 6),
)


def source_values(runs: ShortRuns, *, on_progress: OnShare) -> SourceValues:
    """What each source gives alone, and beside the others: the error without it less the error with it."""
    everyone = frozenset(runs.sources)
    wanted = {frozenset(), everyone} | {frozenset([name]) for name in runs.sources}
    wanted |= {everyone - {name} for name in runs.sources}
    sets = sorted(wanted, key=lambda chosen: (len(chosen), sorted(chosen)))
    scores = np.stack(list(runs.scores_with(sets, on_progress).values()), 1)
    judged = runs.judged
    weight = user_weights(judged.fold, draws=DRAWS, seed=runs.size.seed)
    over_all = dict(zip(sets, judged.errors(scores, np.ones((1, len(judged.fold))))[0], strict=True))
    drawn = dict(zip(sets, judged.errors(scores, weight).T, strict=True))

    def gain(without: frozenset[str], with_it: frozenset[str]) -> Interval:
        return _interval(over_all[without] - over_all[with_it], drawn[without] - drawn[with_it])

    sources = []
    for name in runs.sources:
        alone, beside = gain(frozenset(), frozenset([name])), gain(everyone - {name}, everyone)
        sources.append(PreviewedSource(name=name, alone=alone, beside=beside, verdict=verdict(alone, beside)))
    best = min(sets, key=lambda chosen: over_all[chosen])
    return SourceValues(sources=sources, together=gain(frozenset(), everyone), best=sorted(best))


def data_forecast(runs: ShortRuns, *, on_progress: OnShare) -> DataForecast:
    """Errors of adapter and plain rows on growing shares of the data, and how much more is needed."""
    sources = [name for name in runs.workspace.domain(runs.name).spec.sources if name in runs.sources]
    sources = sources or list(runs.sources)
    plain = [*([] if runs.task == "rating" else ["popularity"]), *FREE]
    curves = runs.learning_curves(sources, plain, on_progress)
    errors = {
        model: [
            _interval(value, drawn)
            for value, drawn in zip(
                curves.over_all(model), curves.errors(model, draws=DRAWS, seed=runs.size.seed).T, strict=True
            )
        ]
        for model in curves.scores
    }
    checks = backtest(curves, "adapter", plain)
    return DataForecast(
        forecast_sources=sources,
        curve=LearningCurve(rows=curves.rows.tolist(), errors=errors),
        needed={baseline: rows_needed(curves, "adapter", baseline) for baseline in plain},
        backtest=Backtest(held=sum(check.held for check in checks), of=len(checks), checks=checks),
    )


def verdict(alone: Interval, beside: Interval) -> Verdict:
    """What the two gains of a source mean: it hurts for certain, it helps for certain, or neither is certain."""
    if alone.high < 0 or beside.high < 0:
        return "do not borrow"
    return "borrow" if alone.low > 0 or beside.low > 0 else "no clear gain"


def _short_runs(context: RunContext) -> ShortRuns:
    held = domains_with_data(context.registry)
    workspace = Workspace(context.settings, held)
    assert context.domain is not None, "a preview names its domain"
    if context.domain not in {domain.name for domain in held}:
        raise NotEnoughData(f"domain {context.domain!r} has no interactions yet; ingest some first")
    spec = workspace.domain(context.domain).spec
    sources = tuple(
        domain.name
        for domain in held
        if domain.role == "source"
        and domain.spec.task == spec.task
        and (not spec.sources or domain.name in spec.sources)
    )
    if not sources:
        raise NotEnoughData(f"none of the sources of {spec.name!r} has data of the task {spec.task!r} yet")
    torch.manual_seed(0)
    return ShortRuns(workspace, context.domain, sources, Size(**context.params))


def _interval(value: float, drawn: np.ndarray) -> Interval:
    known = drawn[np.isfinite(drawn)]
    low, high = np.quantile(known, (BOUNDS[0], BOUNDS[-1])) if len(known) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))
