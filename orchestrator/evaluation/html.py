"""A version's cold-start report as one HTML file that needs nothing else: no scripts, no fonts, no requests.

Pure: a version as the registry holds it goes in, text comes out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from domains.registry.records import Promotion, Version
from domains.spec import Gate
from models.intervals import Interval
from models.metrics import METRICS
from orchestrator.evaluation import svg
from orchestrator.evaluation.gate import baseline_of
from orchestrator.evaluation.report import Certificate, ColdStartReport, Segment
from orchestrator.evaluation.rows import REQUIRED_BY, SEGMENTS, label

VERDICTS = {
    "ship": ("Ship", "It passed the gate."),
    "hold": ("Hold", "The gate holds it back."),
    "do not borrow": ("Do not borrow", "Something that borrows nothing is better for certain."),
}


def render(version: Version, gate: Gate, forced: Promotion | None = None) -> str:
    """The page of a version that a launch made; the row that the gate compares with has its own colour.

    Args:
        forced: the move by which a person set it live against the gate.

    Raises:
        ValueError: the version has no cold-start report.
    """
    report = ColdStartReport.of(version)
    if report is None:
        raise ValueError(f"version {version.id[:12]} came out of shared training; it has no cold-start report")
    cold = Segment(examples=report.examples, users=report.users, rows=report.rows)
    order = _best_first(report)
    weighting = report.source_weighting
    return (
        _environment()
        .get_template("report_page.html")
        .render(
            version=version,
            report=report,
            gate=gate,
            forced=forced,
            certificate=Certificate.of(version),
            verdict=VERDICTS[report.decision.verdict],
            figures=_figures(report),
            metric=METRICS.get(report.metric, METRICS["logloss"]),
            metrics=[METRICS[name] for name in report.rows[report.subject] if name in METRICS],
            order=order,
            segments={"cold_user": cold, **report.segments},
            charts={
                "metric": _forest(report, gate, {row: report.rows[row].get(report.metric) for row in order}),
                "gain": _forest(report, gate, {row: report.gain.get(row) for row in order}, zero=True),
                "reliability": svg.reliability(report.reliability) if report.reliability else "",
                "weights": svg.weights(weighting.weights) if weighting else "",
            },
        )
    )


def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    found.filters |= {
        "row": label,
        "segment": SEGMENTS.get,
        "required_by": REQUIRED_BY.get,
        "metric": lambda name: METRICS[name].heading if name in METRICS else name or "metric",
        "number": _number,
        "count": _count,
    }
    return found


def _figures(report: ColdStartReport) -> list[tuple[str, str]]:
    """The numbers at the top, each with its title."""
    share = f" ({report.trained_parameters / report.all_parameters:.1%} of {report.all_parameters:,})"
    figures = [
        ("cold users judged on", _count(report.cold_users)),
        ("held-out events", _count(report.examples)),
        ("events trained on", _count(report.training_examples)),
        ("weights trained" + share, _count(report.trained_parameters)),
        ("fine-tuning", _minutes(report.fine_tune_seconds)),
        ("whole launch", _minutes(report.launch_seconds)),
        ("processors", _minutes(report.cost.processor_seconds)),
        ("predictions off by", f"{report.prediction_bias:.0%}"),
    ]
    if report.cost.money is not None:
        figures.append(("cost", f"{report.cost.money:.3f} {report.cost.currency}".strip()))
    return figures


def _best_first(report: ColdStartReport) -> list[str]:
    """Rows by the gate's metric, best first; rows without it last."""
    sign = METRICS[report.metric].sign if report.metric in METRICS else 1.0

    def rank(name: str) -> float:
        found = report.rows[name].get(report.metric)
        return math.inf if found is None or not math.isfinite(found.value) else -sign * found.value

    return sorted(report.rows, key=rank)


def _forest(report: ColdStartReport, gate: Gate, rows: Mapping[str, Interval | None], *, zero: bool = False) -> Markup:
    known = {name: row for name, row in rows.items() if row is not None and math.isfinite(row.value)}
    names = {name: label(name) for name in known}
    return svg.forest(known, names, subject=report.subject, baseline=baseline_of(report, gate), zero=zero)


def _number(value: float | None, digits: int = 4, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not defined"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
