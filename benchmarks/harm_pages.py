"""What a table of source reweighting says of weights: by kind of feed, verdicts and cost, and a plot over the steps."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results_page
from benchmarks.results_table import Result, Table, paired_over_seeds, paired_over_users

KINDS = ("good", "random", "reversed")
PANEL, TALL, LEFT, TOP = 230, 150, 44, 40


def weights(table: Table) -> str:
    """Mean weights of good, random and reversed feeds at the end, how many are below half, gain and cost."""
    head = [
        *("setting", "model", "seeds", *KINDS, "good − reversed", "least of any seed"),
        *(f"{kind} feeds below half" for kind in reversed(KINDS)),
        *("sources not to borrow", "gain", "cost beside uniform"),
    ]
    lines = ["## Weights at the end\n", results_page.row(head), results_page.row(["---"] * len(head))]
    for setting in table.settings():
        for model in table.models():
            results = [result for result in _results(table, setting, model) if "weights" in result.detail]
            if results:
                lines.append(results_page.row([setting, model, str(len(results)), *_told(table, results)]))
    return "\n".join([*lines, ""])


def _told(table: Table, results: Sequence[Result]) -> list[str]:
    by_kind = {kind: [result.detail["weights"].get(kind) for result in results] for kind in KINDS}
    gaps = [
        good - bad for good, bad in zip(by_kind["good"], by_kind["reversed"], strict=True) if None not in (good, bad)
    ]
    refused: dict[str, int] = {}
    for result in results:
        for source, borrow in result.detail["verdicts"].items():
            refused[source] = refused.get(source, 0) + (not borrow)
    gain = [result.detail["gain"] for result in results if result.detail.get("gain") is not None]
    ratios = [
        result.seconds / other.seconds
        for result in results
        if (other := table.result(result.setting, result.seed, "uniform")) is not None and other.seconds
    ]
    return [
        *(f"{np.mean(known):.2f}" if (known := [v for v in by_kind[k] if v is not None]) else "–" for k in KINDS),
        f"{np.mean(gaps):.2f}" if gaps else "–",
        f"{min(gaps):.2f}" if gaps else "–",
        *(_light(results, kind) for kind in reversed(KINDS)),
        ", ".join(f"{source} in {count}" for source, count in refused.items() if count) or "none",
        f"{np.mean(gain):+.4f}" if gain else "–",
        f"{np.median(ratios):.1f}x" if ratios else "–",
    ]


def against(table: Table, subject: str, baselines: Sequence[str]) -> str:
    """AUC of the subject less that of each baseline, paired over seeds and over users."""
    head = ["setting", "baseline", f"{subject} − baseline", "95 % over seeds", "p", "seeds ahead", "95 % over users"]
    lines = [
        f"## {subject} beside what it must not lose to\n",
        results_page.row(head),
        results_page.row(["---"] * len(head)),
    ]
    for setting in table.settings():
        for baseline in baselines:
            over = paired_over_seeds(table, setting, "auc", subject, baseline)
            if not over.seeds:
                continue
            users, gap = paired_over_users(table, setting, "auc", subject, baseline), over.difference
            lines.append(
                results_page.row(
                    [
                        *(setting, baseline, f"{gap.value:+.4f}", f"[{gap.low:+.4f}, {gap.high:+.4f}]"),
                        *(f"{over.p:.3f}", f"{over.seeds - over.lower}/{over.seeds}"),
                        f"[{users.low:+.4f}, {users.high:+.4f}]",
                    ]
                )
            )
    return "\n".join([*lines, ""])


def plot(table: Table, path: Path, *, seed: int = 0) -> None:
    """Weights of source rows over the steps, a panel a setting, model and source: median, and from p10 to p90. SVG."""
    panels = []
    for setting in table.settings():
        for model in table.models():
            result = table.result(setting, seed, model)
            rows: list[dict[str, Any]] = result.detail.get("percentiles", []) if result is not None else []
            for source in dict.fromkeys(row["source"] for row in rows):
                panels.append((f"{setting}: {model}", source, [row for row in rows if row["source"] == source]))
    if not panels:
        return
    across = 3
    width, height = across * (PANEL + LEFT) + 20, -(-len(panels) // across) * (TALL + TOP + 24) + 10
    shapes = []
    for number, (title, source, rows) in enumerate(panels):
        x0 = LEFT + (number % across) * (PANEL + LEFT)
        y0 = TOP + (number // across) * (TALL + TOP + 24)
        shapes.append(_panel(title, source, rows, x0, y0))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="#fff"/>{"".join(shapes)}</svg>\n'
    )


def _panel(title: str, source: str, rows: list[dict[str, Any]], x0: int, y0: int) -> str:
    last = max(row["step"] for row in rows)

    def points(name: str) -> list[str]:
        return [f"{x0 + PANEL * row['step'] / last:.1f},{y0 + TALL * (1 - row[name]):.1f}" for row in rows]

    band = " ".join([*points("p90"), *reversed(points("p10"))])
    return (
        f'<text x="{x0}" y="{y0 - 20}" font-weight="bold">{html.escape(title)}</text>'
        f'<text x="{x0}" y="{y0 - 6}">{html.escape(source)}</text>'
        f'<rect x="{x0}" y="{y0}" width="{PANEL}" height="{TALL}" fill="none" stroke="#bbb"/>'
        f'<text x="{x0 - 8}" y="{y0 + 8}" text-anchor="end">1</text>'
        f'<text x="{x0 - 8}" y="{y0 + TALL}" text-anchor="end">0</text>'
        f'<text x="{x0 + PANEL}" y="{y0 + TALL + 14}" text-anchor="end">step {last}</text>'
        f'<polygon points="{band}" fill="#0b6e4f" fill-opacity="0.2"/>'
        f'<polyline points="{" ".join(points("p50"))}" fill="none" stroke="#0b6e4f" stroke-width="2"/>'
    )


def _results(table: Table, setting: str, model: str) -> list[Result]:
    return [result for result in table.results() if result.setting == setting and result.model == model]


def _light(results: Sequence[Result], kind: str) -> str:
    """Of the feeds of a kind, over all seeds, how many have a weight below half."""
    all_, light = (
        sum(result.detail[what].get(kind, 0) for result in results) for what in ("feeds", "feeds_below_half")
    )
    return f"{light} of {all_}" if all_ else "–"
