"""The plots of a report's page as inline SVG: no scripts, no fonts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from models.intervals import Interval
from orchestrator.evaluation.report import ReliabilityBin, SourceWeights

OWN, OTHER, BASELINE = "#0f766e", "#94a3b8", "#d97706"
LINES = (OWN, BASELINE, "#7c3aed", "#b91c1c", "#0369a1", "#4d7c0f")
INK = "#17231f"


def forest(
    rows: Mapping[str, Interval],
    names: Mapping[str, str],
    *,
    subject: str,
    baseline: str,
    zero: bool = False,
    width: int = 860,
) -> Markup:
    """Points with their intervals, one line a row, in the order given; ``zero`` draws the line of no difference."""
    known = {name: row for name, row in rows.items() if math.isfinite(row.low) and math.isfinite(row.high)}
    if not known:
        return Markup("")
    low = min([row.low for row in known.values()] + ([0.0] if zero else []))
    high = max([row.high for row in known.values()] + ([0.0] if zero else []))
    left, right, step = 290, 70, 26
    height = step * len(known) + 34

    def x(value: float) -> float:
        return left + (value - low) / max(high - low, 1e-12) * (width - left - right)

    drawn = []
    for place, (name, row) in enumerate(known.items()):
        y = 16 + step * place
        colour = OWN if name == subject else BASELINE if name == baseline else OTHER
        drawn += [
            _text(0, y + 4, names[name]),
            f'<path d="M{x(row.low):.1f} {y}H{x(row.high):.1f}" stroke="{colour}" stroke-width="2.5"/>',
            f'<circle cx="{x(row.value):.1f}" cy="{y}" r="5" fill="{colour}"/>',
            _text(width - right + 12, y + 4, f"{row.value:.4f}"),
        ]
    drawn += [_text(x(value), height - 6, f"{value:.3f}", "middle") for value in (low, (low + high) / 2, high)]
    if zero:
        line = (
            f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{height - 22}" stroke="{INK}" stroke-dasharray="4 3"/>'
        )
        drawn.append(line)
    return _svg(drawn, width, height, ", ".join(f"{names[name]} {row.value:.4f}" for name, row in known.items()))


def weights(rows: Sequence[SourceWeights], width: int = 860, height: int = 220) -> Markup:
    """Percentiles of each source's weights over the steps of training."""
    steps = sorted({row.step for row in rows})
    if len(steps) < 2:
        return Markup("")
    top = max(1e-9, *(row.p90 for row in rows))
    left, right, base = 40, 150, height - 30

    def point(step: int, value: float) -> str:
        x = left + (step - steps[0]) / (steps[-1] - steps[0]) * (width - left - right)
        return f"{x:.1f},{10 + (1 - value / top) * (base - 10):.1f}"

    drawn = [f'<path d="M{left} 10V{base}H{width - right}" fill="none" stroke="{OTHER}"/>']
    for place, source in enumerate(dict.fromkeys(row.source for row in rows)):
        own = sorted((row for row in rows if row.source == source), key=lambda row: row.step)
        colour = LINES[place % len(LINES)]
        band = [point(row.step, row.p90) for row in own] + [point(row.step, row.p10) for row in reversed(own)]
        line = [point(row.step, row.p50) for row in own]
        drawn += [
            f'<polygon points="{" ".join(band)}" fill="{colour}" opacity="0.15"/>',
            f'<polyline points="{" ".join(line)}" fill="none" stroke="{colour}" stroke-width="2"/>',
            _text(width - right + 10, 20 + 18 * place, source, style=f"fill:{colour}"),
        ]
    drawn += [
        _text(left - 6, 16, f"{top:.2f}", "end"),
        _text(left - 6, base, "0", "end"),
        _text(left + 30, height - 12, f"step {steps[0]:,}", "middle"),
        _text(width - right - 30, height - 12, f"step {steps[-1]:,}", "middle"),
    ]
    return _svg(drawn, width, height, "weights of each source over the steps")


def reliability(bins: Sequence[ReliabilityBin], size: int = 300) -> Markup:
    """Observed over predicted click rate; on the dashed line predictions are what they say."""
    top = max(max(part.predicted, part.observed) for part in bins) * 1.08 or 1.0
    edge, inner = 44, size - 60
    base = 10 + inner
    points = [(edge + part.predicted / top * inner, 10 + (1 - part.observed / top) * inner) for part in bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    middle = 10 + inner / 2
    drawn = [
        f'<path d="M{edge} 10V{base}H{edge + inner}" fill="none" stroke="{OTHER}"/>',
        f'<line x1="{edge}" y1="{base}" x2="{edge + inner}" y2="10" stroke="{OTHER}" stroke-dasharray="4 3"/>',
        f'<polyline points="{line}" fill="none" stroke="{OWN}" stroke-width="2"/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{OWN}"/>' for x, y in points),
        _text(edge + inner / 2, size - 22, "predicted", "middle"),
        f'<text x="12" y="{middle}" text-anchor="middle" transform="rotate(-90 12 {middle})">observed</text>',
        _text(edge - 4, 18, f"{top:.0%}", "end"),
        _text(edge - 4, base, "0", "end"),
    ]
    return _svg(drawn, size, size, "observed over predicted click rate")


def _text(x: float, y: float, words: str, anchor: str = "start", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="{style}">{escape(words)}</text>'


def _svg(drawn: Sequence[str], width: int, height: int, label: str) -> Markup:
    box = f'viewBox="0 0 {width} {height}" width="{width}"'
    return Markup(f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>')
