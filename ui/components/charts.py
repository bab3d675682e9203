"""Plots of a version's report: metrics with intervals, calibration, learning curves, source weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import altair as alt
import pandas as pd

from models.intervals import Interval
from models.metrics import METRICS
from orchestrator.evaluation.preview_report import LearningCurve
from orchestrator.evaluation.report import Epoch, Metrics, ReliabilityBin, SourceWeights
from orchestrator.values import Value
from ui.components.wording import metric_name, row_name

OWN, OTHER, BASELINE, BOUND = "#0f766e", "#94a3b8", "#d97706", "#7c3aed"
MODELS = [OWN, BASELINE, OTHER, BOUND, "#2563eb"]
KINDS = {"This version": OWN, "Gate's baseline": BASELINE, "Other baselines": OTHER, "Best reachable": BOUND}


def forest(rows: Mapping[str, Metrics], metric: str, *, subject: str, baseline: str | None = None) -> alt.LayerChart:
    """Each row of a results table as a point with its 95 % interval, best on top."""
    table = pd.DataFrame(
        [
            {"row": row_name(name), "kind": _kind(name, subject, baseline), **measured[metric].as_dict()}
            for name, measured in rows.items()
            if metric in measured
        ]
    ).sort_values("value", ascending=not METRICS[metric].greater_is_better)
    better = "higher is better" if METRICS[metric].greater_is_better else "lower is better"
    return _intervals(table, f"{metric_name(metric)} ({better}), with 95% interval over users")


def gains(gain: Mapping[str, Interval], metric: str, *, baseline: str | None = None) -> alt.LayerChart:
    """How much better the version is than each baseline; certainly so where the interval is right of the line."""
    table = pd.DataFrame(
        [
            {"row": row_name(name), "kind": _kind(name, None, baseline), **measured.as_dict()}
            for name, measured in gain.items()
            if name != "train_mean"
        ]
    ).sort_values("value", ascending=False)
    line = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color="#17231f", strokeDash=[4, 3]).encode(x="zero:Q")
    return line + _intervals(table, f"gain in {metric_name(metric)} over each baseline, with 95% interval over users")


def reliability(bins: Sequence[ReliabilityBin]) -> alt.LayerChart:
    """Observed over predicted click rate in ten bins; calibrated predictions lie on the diagonal."""
    table = _table(bins)
    top = float(max(table["predicted"].max(), table["observed"].max())) * 1.08
    scale = alt.Scale(domain=[0, top], nice=False)
    diagonal = (
        alt.Chart(pd.DataFrame({"predicted": [0.0, top], "observed": [0.0, top]}))
        .mark_line(color=OTHER, strokeDash=[4, 3])
        .encode(x=alt.X("predicted:Q", scale=scale), y=alt.Y("observed:Q", scale=scale))
    )
    seen = (
        alt.Chart(table)
        .mark_line(color=OWN, point=alt.OverlayMarkDef(size=60, color=OWN))
        .encode(
            x=alt.X("predicted:Q", title="predicted click rate", scale=scale, axis=alt.Axis(format="%")),
            y=alt.Y("observed:Q", title="observed click rate", scale=scale, axis=alt.Axis(format="%")),
            tooltip=[
                alt.Tooltip("predicted:Q", format=".1%"),
                alt.Tooltip("observed:Q", format=".1%"),
                alt.Tooltip("examples:Q", format=","),
            ],
        )
    )
    return (diagonal + seen).properties(height=260)


def learning_curves(epochs: Sequence[Epoch]) -> list[alt.Chart]:
    """Training loss and the validation metric after each epoch, apart as their scales differ."""
    table = _table(epochs)
    panels = [_curve(table, "loss", "training loss", OTHER)]
    metric = next((epoch.metric for epoch in epochs if epoch.metric is not None), None)
    if metric is not None:
        panels.append(_curve(table, "value", f"validation {METRICS[metric].label}", OWN))
    return panels


def errors_by_rows(curve: LearningCurve, error: str) -> alt.LayerChart:
    """Errors of the adapter and of baselines on growing shares of the training rows, with intervals as bands."""
    table = pd.DataFrame(
        [
            {"model": row_name(model), "rows": rows, **measured.as_dict()}
            for model, errors in curve.errors.items()
            for rows, measured in zip(curve.rows, errors, strict=True)
        ]
    )
    colour = alt.Color(
        "model:N",
        scale=alt.Scale(domain=list(dict.fromkeys(table["model"])), range=MODELS),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    across = alt.X("rows:Q", title="training rows", scale=alt.Scale(type="log"))
    base = alt.Chart(table).encode(x=across, color=colour)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False)), y2="high:Q")
    line = base.mark_line(point=True).encode(
        y=alt.Y("value:Q", title=f"{error} (lower is better)", scale=alt.Scale(zero=False)),
        tooltip=["model:N", *(alt.Tooltip(f"{part}:Q", format=".4f") for part in ("value", "low", "high"))],
    )
    return (band + line).properties(height=280)


def weights(rows: Sequence[SourceWeights]) -> alt.LayerChart:
    """Weights of each source's rows over the steps of shared training: median, 10th and 90th percentile."""
    table = _table(rows)
    across = alt.X("step:Q", title="step of shared training")
    colour = alt.Color("source:N", legend=alt.Legend(title=None, orient="bottom"))
    base = alt.Chart(table).encode(x=across, color=colour)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("p10:Q", title="weight of a source's rows"), y2="p90:Q")
    line = base.mark_line(point=True).encode(
        y="p50:Q",
        tooltip=["source:N", "step:Q", *(alt.Tooltip(f"{part}:Q", format=".2f") for part in ("p10", "p50", "p90"))],
    )
    return (band + line).properties(height=240)


def _table(values: Sequence[Value]) -> pd.DataFrame:
    return pd.DataFrame([value.model_dump() for value in values])


def _curve(table: pd.DataFrame, column: str, title: str, colour: str) -> alt.Chart:
    return (
        alt.Chart(table)
        .mark_line(color=colour, point=alt.OverlayMarkDef(size=50, color=colour))
        .encode(
            x=alt.X("epoch:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d")),
            y=alt.Y(f"{column}:Q", title=title, scale=alt.Scale(zero=False)),
            tooltip=["epoch:Q", alt.Tooltip(f"{column}:Q", format=".4f")],
        )
        .properties(height=260)
    )


def _kind(name: str, subject: str | None, baseline: str | None) -> str:
    if name == subject:
        return "This version"
    if name == baseline:
        return "Gate's baseline"
    return "Best reachable" if name == "best_reachable" else "Other baselines"


def _intervals(table: pd.DataFrame, title: str) -> alt.LayerChart:
    shown = [kind for kind in KINDS if kind in set(table["kind"])]
    colour = alt.Color(
        "kind:N",
        scale=alt.Scale(domain=shown, range=[KINDS[kind] for kind in shown]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    axis = alt.Axis(labelLimit=260, labelOverlap=False, labelFontSize=13, ticks=False, domain=False)
    row = alt.Y("row:N", title=None, sort=list(table["row"]), scale=alt.Scale(type="point", padding=0.6), axis=axis)
    base = alt.Chart(table)
    bars = base.mark_rule(strokeWidth=2.5).encode(
        x=alt.X("low:Q", title=title, scale=alt.Scale(zero=False)), x2="high:Q", y=row, color=colour
    )
    points = base.mark_point(filled=True, size=90, opacity=1).encode(
        x=alt.X("value:Q", scale=alt.Scale(zero=False)),
        y=row,
        color=colour,
        tooltip=["row:N", *(alt.Tooltip(f"{part}:Q", format=".4f") for part in ("value", "low", "high"))],
    )
    return (bars + points).properties(height=30 * len(table) + 110)
