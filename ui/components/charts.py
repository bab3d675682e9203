"""The plots of a version: baselines with their intervals, calibration, learning curve, overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from models.metrics import METRICS
from ui.components.wording import ROWS, metric_name, words

OWN, OTHER, BASELINE, BOUND = "#0f766e", "#94a3b8", "#d97706", "#7c3aed"
KINDS = {"This version": OWN, "Baseline of the gate": BASELINE, "Others": OTHER, "Best reachable": BOUND}


def forest(rows: Mapping[str, Any], metric: str, *, subject: str, baseline: str | None = None) -> alt.LayerChart:
    """Each row of a results table as a point with its 95 % interval, best on top."""
    table = pd.DataFrame(
        [
            {
                "row": words(ROWS, name),
                "kind": _kind(name, subject, baseline),
                "value": measured[metric]["value"],
                "low": measured[metric]["low"],
                "high": measured[metric]["high"],
            }
            for name, measured in rows.items()
            if metric in measured
        ]
    ).sort_values("value", ascending=not METRICS[metric].greater_is_better)
    better = "higher is better" if METRICS[metric].greater_is_better else "lower is better"
    return _intervals(table, f"{metric_name(metric)} ({better}), with 95% interval over users")


def gains(gain: Mapping[str, Any], metric: str, *, baseline: str | None = None) -> alt.LayerChart:
    """How much better the version is than each row, with intervals; right of the line it is better for certain."""
    table = pd.DataFrame(
        [
            {"row": words(ROWS, name), "kind": _kind(name, None, baseline), **measured}
            for name, measured in gain.items()
            if name != "train_mean"
        ]
    ).sort_values("value", ascending=False)
    line = alt.Chart(pd.DataFrame({"zero": [0.0]})).mark_rule(color="#17231f", strokeDash=[4, 3]).encode(x="zero:Q")
    return line + _intervals(table, f"gain in {metric_name(metric)} over each row, with 95% interval")


def reliability(bins: Sequence[Mapping[str, float]]) -> alt.LayerChart:
    """Predicted against observed click rate in ten bins; on the diagonal predictions are what they say."""
    table = pd.DataFrame(bins)
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


def learning_curves(history: Sequence[Mapping[str, Any]]) -> list[alt.Chart]:
    """Training loss and the validation metric after each epoch, apart as their scales differ."""
    table = pd.DataFrame(history)
    panels = [_curve(table, "loss", "training loss", OTHER)]
    if "value" in table:
        metric = str(table["metric"].dropna().iloc[0]) if "metric" in table else "metric"
        panels.append(_curve(table, "value", f"validation {metric_name(metric)}", OWN))
    return panels


def growing(curve: Mapping[str, Any], metric: str) -> alt.LayerChart:
    """Errors of adapter and plain rows on growing shares of the training rows, with intervals as bands."""
    table = pd.DataFrame(
        [
            {"model": words(ROWS, model), "rows": rows, **measured}
            for model, errors in curve["errors"].items()
            for rows, measured in zip(curve["rows"], errors, strict=True)
        ]
    )
    colour = alt.Color(
        "model:N",
        scale=alt.Scale(domain=list(dict.fromkeys(table["model"])), range=[OWN, BASELINE, OTHER]),
        legend=alt.Legend(title=None, orient="bottom"),
    )
    across = alt.X("rows:Q", title="training rows", scale=alt.Scale(type="log"))
    base = alt.Chart(table).encode(x=across, color=colour)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("low:Q", scale=alt.Scale(zero=False)), y2="high:Q")
    line = base.mark_line(point=True).encode(
        y=alt.Y("value:Q", title=f"{metric_name(metric)} (lower is better)", scale=alt.Scale(zero=False)),
        tooltip=["model:N", *(alt.Tooltip(f"{part}:Q", format=".4f") for part in ("value", "low", "high"))],
    )
    return (band + line).properties(height=280)


def weights(rows: Sequence[Mapping[str, Any]]) -> alt.LayerChart:
    """Weights of each source's rows over the steps of shared training: the middle, and the tenth to the ninetieth."""
    table = pd.DataFrame(rows)
    across = alt.X("step:Q", title="step of shared training")
    colour = alt.Color("source:N", legend=alt.Legend(title=None, orient="bottom"))
    base = alt.Chart(table).encode(x=across, color=colour)
    band = base.mark_area(opacity=0.15).encode(y=alt.Y("p10:Q", title="weight of a source's rows"), y2="p90:Q")
    line = base.mark_line(point=True).encode(
        y="p50:Q",
        tooltip=["source:N", "step:Q", *(alt.Tooltip(f"{part}:Q", format=".2f") for part in ("p10", "p50", "p90"))],
    )
    return (band + line).properties(height=240)


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
        return "Baseline of the gate"
    return "Best reachable" if name == "best_reachable" else "Others"


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
