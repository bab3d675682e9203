"""A results table as a page for people: means and spreads, who wins where, paired tests, time and memory, plots."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results_table import Table, paired_over_seeds, paired_over_users
from models.metrics import METRICS

WIDTH, ROW, LEFT = 760, 20, 290


def as_dict(table: Table) -> dict[str, Any]:
    """All results as JSON."""
    return {"results": [asdict(result) for result in table.results()]}


def markdown(
    table: Table,
    *,
    subject: str,
    measures: Sequence[str],
    plain: str | None = None,
    not_baselines: Sequence[str] = (),
    bounds: tuple[float, float] | None = None,
) -> str:
    """The whole page.

    Args:
        subject: the row that the others are tested against.
        plain: a row that must be beaten before transfer may be claimed; tested by itself as well.
        not_baselines: rows that are the subject's own kin.
    """
    parts = ["## Results\n", *_all_results(table, measures)]
    parts += [
        "## Paired tests\n",
        _tests(table, subject, measures, plain=plain, not_baselines=not_baselines, bounds=bounds),
    ]
    if bounds is not None:
        parts += ["## Unclipped\n", *_all_results(table, [f"raw_{metric}" for metric in measures])]
    parts += ["## Cost\n", _cost(table)]
    return "\n".join(parts)


def _all_results(table: Table, measures: Sequence[str]) -> list[str]:
    """A table a measure, its columns the settings; of one setting, one table whose columns are the measures."""
    settings = table.settings()
    if len(settings) == 1 and len(measures) > 1:
        return [_results(table, settings[0], [(metric, settings[0], metric) for metric in measures])]
    return [_results(table, metric, [(setting, setting, metric) for setting in settings]) for metric in measures]


def _results(table: Table, title: str, columns: Sequence[tuple[str, str, str]]) -> str:
    """Mean and sample deviation over seeds of columns (name, setting, metric); the best of a column is bold.

    A row with fewer seeds than others says how many and is not compared: seeds differ more than models do.
    """
    models = table.models()
    # A segment of one set is no segment of another: such a setting has no column.
    columns = [one for one in columns if any(table.values(one[1], model, one[2]) for model in models)]
    names = [name for name, _, _ in columns]
    lines = [f"{title} (mean ± sd over seeds)\n", row(["model", *names]), row(["---"] * (len(columns) + 1))]
    best, seeds = {}, {}
    for name, setting, metric in columns:
        found = {model: list(table.values(setting, model, metric).values()) for model in models}
        seeds[name] = max(len(values) for values in found.values())
        whole = [values for values in found.values() if len(values) == seeds[name]]
        best[name] = min(_sign(metric) * float(np.mean(values)) for values in whole)
    for model in models:
        cells = []
        for name, setting, metric in columns:
            values = list(table.values(setting, model, metric).values())
            if not values:
                cells.append("–")
                continue
            text = f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")
            if len(values) < seeds[name]:
                cells.append(f"{text} ({len(values)} of {seeds[name]} seeds)")
                continue
            cells.append(f"**{text}**" if _sign(metric) * np.mean(values) <= best[name] else text)
        lines.append(row([model, *cells]))
    return "\n".join([*lines, ""])


def _tests(
    table: Table,
    subject: str,
    measures: Sequence[str],
    *,
    plain: str | None,
    not_baselines: Sequence[str],
    bounds: tuple[float, float] | None,
) -> str:
    """The subject less its best baseline, and less the plain row: over seeds (t, p) and over users (bootstrap).

    The best baseline is the one that leaves the subject least ahead on the seeds that both have.
    """
    head = [
        "setting",
        "metric",
        "baseline",
        f"{subject} − baseline",
        "95 % over seeds",
        "p",
        "seeds won",
        "95 % over users",
    ]
    lines = [row(head), row(["---"] * len(head))]
    baselines = [model for model in table.models() if model != subject and model not in not_baselines]
    for setting in table.settings():
        for metric in measures:
            sign = _sign(metric)
            paired = {baseline: paired_over_seeds(table, setting, metric, subject, baseline) for baseline in baselines}
            paired = {baseline: over for baseline, over in paired.items() if over.seeds}
            named = sorted(paired, key=lambda baseline: -sign * paired[baseline].difference.value)[:1]
            if plain in paired and plain not in named:
                named.append(plain)
            for baseline in named:
                over = paired[baseline]
                users = paired_over_users(table, setting, metric, subject, baseline, bounds=bounds)
                gap, won = over.difference, over.lower if sign == 1 else over.seeds - over.lower
                lines.append(
                    row(
                        [
                            setting,
                            metric,
                            baseline,
                            f"{gap.value:+.4f}",
                            f"[{gap.low:+.4f}, {gap.high:+.4f}]",
                            f"{over.p:.3f}",
                            f"{won}/{over.seeds}",
                            f"[{users.low:+.4f}, {users.high:+.4f}]",
                        ]
                    )
                )
    return "\n".join([*lines, ""])


def _cost(table: Table) -> str:
    """Median over all results."""
    lines = [row(["model", "processor seconds", "memory, MB", "parameters"]), row(["---"] * 4)]
    for model in table.models():
        results = [result for result in table.results() if result.model == model]
        parameters = [result.detail["parameters"] for result in results if "parameters" in result.detail]
        lines.append(
            row(
                [
                    model,
                    f"{np.median([result.seconds for result in results]):.1f}",
                    f"{np.median([result.megabytes for result in results]):.0f}",
                    f"{np.median(parameters):,.0f}" if parameters else "–",
                ]
            )
        )
    return "\n".join([*lines, ""])


def plot(table: Table, metric: str, path: Path, *, subject: str) -> None:
    """A dot a model and setting, with the range over seeds; the subject's dots are filled. SVG."""
    models = table.models()
    settings = [s for s in table.settings() if any(table.values(s, model, metric) for model in models)]
    values = [value for s in settings for m in models for value in table.values(s, m, metric).values()]
    if not values:
        return
    # Far outliers would press all others together: the axis ends where nine in ten values lie, dots beyond at its end.
    low, high = min(values), float(np.quantile(values, 0.9)) * 1.02
    height = 40 + sum(30 + ROW * len(models) for _ in settings)
    shapes, y = [], 30.0

    def place(value: float) -> float:
        return LEFT + (WIDTH - LEFT - 90) * (min(value, high) - low) / max(high - low, 1e-9)

    for setting in settings:
        shapes.append(f'<text x="10" y="{y:.0f}" font-weight="bold">{html.escape(setting)}</text>')
        y += ROW
        seeds = max(len(table.values(setting, model, metric)) for model in models)
        for model in models:
            own = list(table.values(setting, model, metric).values())
            if own:
                middle, fill = float(np.mean(own)), "#0b6e4f" if model == subject else "#fff"
                # Seeds differ more than models do: a row of fewer seeds must say so.
                note = "" if len(own) == seeds else f" ({len(own)} of {seeds} seeds)"
                shapes += [
                    f'<text x="20" y="{y + 4:.0f}">{html.escape(model + note)}</text>',
                    f'<line x1="{place(min(own)):.1f}" x2="{place(max(own)):.1f}" y1="{y:.0f}" y2="{y:.0f}"/>',
                    f'<circle cx="{place(middle):.1f}" cy="{y:.0f}" r="4" fill="{fill}"/>',
                    f'<text x="{WIDTH - 60}" y="{y + 4:.0f}">{middle:.4f}</text>',
                ]
            y += ROW
        y += 10
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/><g stroke="#0b6e4f" stroke-width="1.5">'
        + "".join(shape for shape in shapes if not shape.startswith("<text"))
        + "</g>"
        + "".join(shape for shape in shapes if shape.startswith("<text"))
        + "</svg>\n"
    )


def _sign(metric: str) -> int:
    """1 where less is better, -1 where more is; of a segment's metric and of a raw one as of the metric itself."""
    return -1 if METRICS[metric.rpartition("/")[2].removeprefix("raw_")].greater_is_better else 1


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
