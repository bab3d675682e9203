"""A version's cold-start report as one HTML file that needs nothing else: no scripts, no fonts, no requests.

Pure: what the registry holds of a version goes in, text comes out. It is what a team keeps, prints and sends round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from domains.registry.records import Version
from models.metrics import METRICS

ROWS = {
    "adapter": "this version",
    "zero_shot": "shared model, untrained here (zero-shot)",
    "popularity": "popularity",
    "item_mean": "item mean",
    "train_mean": "same score for all (train mean)",
    "single_domain": "model of this domain alone",
    "shared_bottom": "shared-bottom model",
    "full_fine_tune": "full fine-tune",
    "scratch": "trained from scratch",
    "live": "version live before",
    "best_reachable": "best reachable (simulated truth)",
}
SEGMENTS = {
    "cold_user": "cold users: all that decide",
    "warm_user": "warm users: later rows of users in training",
    "cold_item": "cold items: never seen in training",
    "head_item": "head items: the most frequent fifth of rows",
    "tail_item": "tail items: the rarer half of rows",
    "short_history": "users with under 20 source events",
    "long_history": "users with 20 or more source events",
}
ASKED_BY = {"policy": "policy", "gate": "the gate", "launch": "this launch"}
VERDICTS = {
    "ship": ("Ship", "It passed the gate."),
    "hold": ("Hold", "The gate holds it back."),
    "do not borrow": ("Do not borrow", "Something that borrows nothing is better for certain."),
}
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#17231f;max-width:60rem;margin:2rem auto;padding:0 1rem;background:#fff}
h1{margin:0}h2{margin:2.2rem 0 .4rem;font-size:1.15rem}p{margin:.4rem 0}.quiet{color:#5b6b66}
.dense td,.dense th{font-size:.82em;padding-right:.4rem}.dense span.quiet{display:block;white-space:nowrap}
.dense td:first-child{min-width:8.5rem}
table{border-collapse:collapse;width:100%;margin:.6rem 0;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #dde5e2;vertical-align:top}
th{font-weight:600}.own td{font-weight:600;background:#ecfdf5}code{font-size:.85em;overflow-wrap:anywhere}
.verdict{border-left:6px solid;padding:.6rem 1rem;margin:1.2rem 0;background:#f6f8f7}.verdict b{font-size:1.3rem}
.ship{border-color:#0f766e}.hold{border-color:#d97706}.do-not-borrow{border-color:#b91c1c}
.facts{display:flex;flex-wrap:wrap;gap:1.6rem;margin:1rem 0}.facts div b{display:block;font-size:1.25rem}
svg{max-width:100%;height:auto;display:block}svg text{font:12px system-ui,sans-serif;fill:#17231f}
@media print{body{margin:0}h2{break-after:avoid}table,svg{break-inside:avoid}}
"""
OWN, OTHER, BASELINE = "#0f766e", "#94a3b8", "#d97706"
LINES = (OWN, BASELINE, "#7c3aed", "#b91c1c", "#0369a1", "#4d7c0f")


def render(version: Version, *, baseline: str | None = None) -> str:
    """The page of a version that a launch made.

    Args:
        baseline: the row that the gate compares with, drawn in its own colour.

    Raises:
        ValueError: the version has no cold-start report.
    """
    report = version.report
    if "rows" not in report:
        raise ValueError(f"version {version.id[:12]} came out of shared training; it has no cold-start report")
    name = version.domain or "shared model"
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="quiet">Cold-start report of version <code>{escape(version.id)}</code>, made '
        f"{version.created_at:%Y-%m-%d %H:%M} UTC by {escape(version.created_by)} on shared model "
        f"<code>{escape(str(version.backbone_id)[:12])}</code>.</p>",
        _verdict(report),
        _facts(version),
        _comparison(report, baseline),
        _seeds(report),
        _segments(report),
        _calibration(report),
        _leaks(report),
        _certificate(version),
        _source_weighting(report),
        _cost(report),
        _training(version),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(name)}: cold-start report</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(part for part in parts if part)
        + "</body></html>\n"
    )


def _verdict(report: Mapping[str, Any]) -> str:
    decision = report.get("decision")
    if decision is None:
        return ""
    key = decision.get("verdict", "ship" if decision["promote"] else "hold")
    title, meaning = VERDICTS.get(key, (key, ""))
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision["reasons"])
    notes = "".join(f'<p class="quiet">{escape(note)}</p>' for note in report.get("notes", []))
    return f'<div class="verdict {key.replace(" ", "-")}"><b>{title}</b> {meaning}<ul>{reasons}</ul>{notes}</div>'


def _facts(version: Version) -> str:
    report = version.report
    trained, total = report.get("trained_parameters"), report.get("all_parameters")
    share = f" ({trained / total:.1%} of {total:,})" if trained and total else ""
    facts = [
        ("cold users judged on", _count(report["cold_users"])),
        ("held-out events", _count(report["examples"])),
        ("events trained on", _count(report.get("training_examples"))),
        ("weights trained" + share, _count(trained)),
        ("fine-tuning", _minutes(report.get("fine_tune_seconds"))),
        ("whole launch", _minutes(report.get("launch_seconds"))),
        ("processors", _minutes(report.get("cost", {}).get("processor_seconds"))),
        ("predictions off by", f"{report['prediction_bias']:.0%}"),
    ]
    money = report.get("cost", {}).get("money")
    if money is not None:
        facts.append(("cost", escape(f"{money:.3f} {report['cost']['currency']}".strip())))
    return '<div class="facts">' + "".join(f"<div><b>{value}</b>{name}</div>" for name, value in facts) + "</div>"


def _comparison(report: Mapping[str, Any], baseline: str | None) -> str:
    rows, metric, subject, gain = report["rows"], report["metric"], report["subject"], report["gain"]
    metrics = list(rows[subject])
    head = "".join(f"<th>{_metric(name)}</th>" for name in metrics)
    required = report.get("required", {}).get("baselines", {})
    body = ""
    for name in _order(rows, metric):
        cells = "".join(f"<td>{_interval(rows[name].get(one))}</td>" for one in metrics)
        won = _interval(gain.get(name), signed=True)
        own = ' class="own"' if name == subject else ""
        asked = ", ".join(ASKED_BY.get(who, who) for who in required.get(name, []))
        body += f"<tr{own}><td>{_row(name)}</td>{cells}<td>{won}</td><td class='quiet'>{escape(asked)}</td></tr>"
    chart = _forest(
        {name: rows[name][metric] for name in _order(rows, metric) if metric in rows[name]}, subject, baseline
    )
    gains = _forest({name: gain[name] for name in _order(rows, metric) if name in gain}, subject, baseline, zero=True)
    return (
        "<h2>On cold users, beside what one would otherwise use</h2>"
        '<p class="quiet">Users of whom training saw no row in this domain; 95% intervals over users. The gain '
        f"is how much better this version is on {METRICS[metric].label} than each row, on the same users.</p>"
        f'<table class="dense"><tr><th></th>{head}<th>gain</th><th>asked for by</th></tr>{body}</table>'
        f"<p><b>{_metric(metric)}</b></p>{chart}<p><b>Gain over each row</b>: right of the line it is better</p>{gains}"
    )


def _seeds(report: Mapping[str, Any]) -> str:
    seeds = report.get("seeds")
    if not seeds:
        return ""
    metric, subject = report["metric"], report["subject"]
    each = list(next(iter(seeds.values()))["each"])
    head = "".join(f"<th>seed {escape(str(seed))}</th>" for seed in each)
    body = ""
    for row, found in {subject: seeds, **report.get("baselines_over_seeds", {})}.items():
        for name, measured in found.items() if row == subject else [(metric, found[metric])]:
            values = "".join(f"<td>{_number(measured['each'].get(seed))}</td>" for seed in each)
            own = ' class="own"' if row == subject else ""
            body += f"<tr{own}><td>{_row(row)}</td><td>{_metric(name)}</td><td>{_interval(measured)}</td>{values}</tr>"
    gained = "".join(
        f"<tr><td>{_row(row)}</td><td>{_interval(found, signed=True)}</td>"
        + "".join(f"<td>{_number(found['each'].get(seed), signed=True)}</td>" for seed in each)
        + "</tr>"
        for row, found in report.get("gain_over_seeds", {}).items()
    )
    over = (
        f"<p><b>Gain over each row, seed by seed</b> ({_metric(metric)})</p>"
        f"<table><tr><th></th><th>mean</th>{head}</tr>{gained}</table>"
        if gained
        else ""
    )
    return (
        f"<h2>Fine-tuned {len(each)} times</h2>"
        '<p class="quiet">Mean over seeds with its 95% interval (Student\'s t). The version offered is the first '
        "seed's; that was settled before any was judged.</p>"
        f"<table><tr><th></th><th></th><th>mean</th>{head}</tr>{body}</table>{over}"
    )


def _segments(report: Mapping[str, Any]) -> str:
    metric, rows = report["metric"], report["rows"]
    cold = {"examples": report["examples"], "users": report["users"], "rows": rows}
    segments = {"cold_user": cold, **report["segments"]}
    head = "".join(
        f"<th>{escape(SEGMENTS.get(name, name.replace('_', ' ')))}"
        f"<span class='quiet'>{part['examples']:,} events, {part['users']:,} users</span></th>"
        for name, part in segments.items()
    )
    body = ""
    for row in _order(rows, metric):
        cells = "".join(
            f"<td>{_interval(part['rows'].get(row, {}).get(metric), digits=3)}</td>" for part in segments.values()
        )
        own = ' class="own"' if row == report["subject"] else ""
        body += f"<tr{own}><td>{_row(row)}</td>{cells}</tr>"
    return (
        f"<h2>For whom it works ({_metric(metric)})</h2>"
        '<p class="quiet">A segment with too few events to measure is left out. Warm users decide nothing.</p>'
        f'<table class="dense"><tr><th></th>{head}</tr>{body}</table>'
    )


def _calibration(report: Mapping[str, Any]) -> str:
    bins = report.get("reliability")
    said = f"<h2>Calibration</h2><p>On average predictions are off by {report['prediction_bias']:.1%}.</p>"
    if not bins:
        return said
    said += f"<p>PCOC {report['pcoc']:.3f}, expected calibration error {report['ece']:.2%}.</p>"
    body = "".join(
        f"<tr><td>{part['predicted']:.1%}</td><td>{part['observed']:.1%}</td><td>{_count(part.get('examples'))}</td></tr>"
        for part in bins
    )
    return f"{said}{_reliability(bins)}<table><tr><th>predicted</th><th>observed</th><th>events</th></tr>{body}</table>"


def _leaks(report: Mapping[str, Any]) -> str:
    looked_at = "".join(f"<li>{escape(check)}</li>" for check in report.get("leak_scan", []))
    checks = f'<p class="quiet">Looked at:</p><ul class="quiet">{looked_at}</ul>' if looked_at else ""
    if not report["leaks"]:
        return (
            "<h2>Leak scan</h2><p>Clean: no row, user or moment crosses the split, no feature knows the label, and no "
            f"history holds an event of its row's future.</p>{checks}"
        )
    leaks = "".join(f"<li>{escape(leak)}</li>" for leak in report["leaks"])
    return f"<h2>Leak scan</h2><ul>{leaks}</ul>{checks}"


def _source_weighting(report: Mapping[str, Any]) -> str:
    """What the shared model learned of its sources, where it weighed them."""
    told = report.get("source_weighting")
    if not told or not told.get("verdicts"):
        return ""
    body = "".join(
        f"<tr><td>{escape(source)}</td><td>{escape(_verdict_on(found))}</td>"
        f"<td>{_number(found['weight'], 2)}</td><td>{escape(found['reason'])}</td></tr>"
        for source, found in told["verdicts"].items()
    )
    harmful = "".join(
        f"<li>{escape(part['source'])}, {escape(part['part'])}: worth {_number(part['worth'], 2)} over "
        f"{_count(part['rows'])} rows</li>"
        for part in told.get("harmful_parts", [])
    )
    if harmful:
        harmful = f"<p>Parts of sources that tell the opposite of what users do here:</p><ul>{harmful}</ul>"
    return (
        "<h2>What the shared model borrowed from each source</h2>"
        '<p class="quiet">Weights of source rows in shared training, learned by what they give the targets. Lines: the '
        "middle of each source's weights over the steps; bands: from their tenth to their ninetieth percentile.</p>"
        f"<table><tr><th></th><th>verdict</th><th>weight</th><th></th></tr>{body}</table>{harmful}{_weights(told['weights'])}"
    )


def _verdict_on(source: Mapping[str, Any]) -> str:
    """borrow, do not borrow or not known; reports of before there was a third word have the first two."""
    return source.get("verdict") or ("borrow" if source["borrow"] else "do not borrow")


def _cost(report: Mapping[str, Any]) -> str:
    cost = report.get("cost")
    if not cost:
        return ""
    body = "".join(
        f"<tr><td>{escape(ROWS.get(what, what))}</td><td>{seconds:,.1f} s</td></tr>"
        for what, seconds in cost["parts"].items()
    )
    price, currency = cost.get("price_per_processor_hour"), cost.get("currency", "")
    money = " Nobody has set the price of an hour of a processor (GRAFT_PRICE_PER_PROCESSOR_HOUR)."
    if price:
        of_price, of_all = (f"{amount} {currency}".strip() for amount in (f"{price:g}", f"{cost['money']:.4f}"))
        money = escape(f" At {of_price} an hour of a processor that is {of_all}.")
    return (
        f"<h2>Cost</h2><p>{cost['processor_seconds'] / 60:.2f} processor minutes, measured.{money}</p>"
        f"<table><tr><th></th><th>processor time</th></tr>{body}</table>"
    )


def _certificate(version: Version) -> str:
    certificate = version.certificate
    if not certificate:
        return ""
    probe_rows = certificate.get("probe_rows", {})
    moved = [*certificate.get("changed", []), *certificate.get("predictions_moved", [])]
    others = escape(", ".join(probe_rows)) or "there are none"
    said = (
        f"Nothing else moved: all {_count(certificate.get('frozen_tensors'))} frozen tensors have the same hash before "
        f"and after, and predictions of the other domains ({others}) are equal bit for bit."
        if certificate["ok"]
        else "Something else moved: " + escape(", ".join(moved))
    )
    return (
        f"<h2>Freeze certificate: {'holds' if certificate['ok'] else 'broken'}</h2><p>{said}</p>"
        f"<table><tr><td>frozen tensors before</td><td><code>{escape(str(certificate.get('before')))}</code></td></tr>"
        f"<tr><td>and after</td><td><code>{escape(str(certificate.get('after')))}</code></td></tr></table>"
    )


def _training(version: Version) -> str:
    curve = version.report.get("learning_curve") or []
    epochs = "".join(
        f"<tr><td>{row['epoch']}</td><td>{_number(row.get('loss'))}</td><td>{_number(row.get('value'))}</td></tr>"
        for row in curve
    )
    metric = next((row["metric"] for row in curve if row.get("metric")), "metric")
    learnt = (
        f"<table><tr><th>epoch</th><th>training loss</th><th>validation {_metric(metric)}</th></tr>{epochs}</table>"
        if curve
        else ""
    )
    choices = ", ".join(f"{key}={value}" for key, value in version.config.items())
    return f'<h2>How it was trained</h2>{learnt}<p class="quiet"><code>{escape(choices)}</code></p>'


def _forest(
    rows: Mapping[str, Mapping[str, float]], subject: str, baseline: str | None, *, zero: bool = False, width: int = 860
) -> str:
    """Points with their intervals, one line a row, in the order given."""
    known = {name: row for name, row in rows.items() if all(math.isfinite(row[part]) for part in ("low", "high"))}
    if not known:
        return ""
    low = min([row["low"] for row in known.values()] + ([0.0] if zero else []))
    high = max([row["high"] for row in known.values()] + ([0.0] if zero else []))
    left, right, step = 290, 70, 26
    height = step * len(known) + 34

    def x(value: float) -> float:
        return left + (value - low) / max(high - low, 1e-12) * (width - left - right)

    drawn = []
    for place, (name, row) in enumerate(known.items()):
        y = 16 + step * place
        colour = OWN if name == subject else BASELINE if name == baseline else OTHER
        drawn.append(
            f'<text x="0" y="{y + 4}">{_row(name)}</text>'
            f'<line x1="{x(row["low"]):.1f}" x2="{x(row["high"]):.1f}" y1="{y}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2.5"/><circle cx="{x(row["value"]):.1f}" cy="{y}" r="5" fill="{colour}"/>'
            f'<text x="{width - right + 12}" y="{y + 4}">{_number(row["value"])}</text>'
        )
    for value in (low, (low + high) / 2, high):
        drawn.append(f'<text x="{x(value):.1f}" y="{height - 6}" text-anchor="middle">{_number(value, 3)}</text>')
    if zero:
        drawn.append(
            f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="4" y2="{height - 22}" stroke="#17231f" stroke-dasharray="4 3"/>'
        )
    label = ", ".join(f"{ROWS.get(name, name)} {_number(row['value'])}" for name, row in known.items())
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(drawn)}</svg>'


def _weights(rows: Sequence[Mapping[str, Any]], width: int = 860, height: int = 220) -> str:
    """Percentiles of each source's weights over the steps of training."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    steps = sorted({row["step"] for row in rows})
    if len(steps) < 2:
        return ""
    top = max(max(row["p90"] for row in rows), 1e-9)
    left, right, base = 40, 150, height - 30

    def point(row: Mapping[str, Any], part: str) -> str:
        x = left + (row["step"] - steps[0]) / (steps[-1] - steps[0]) * (width - left - right)
        return f"{x:.1f},{10 + (1 - row[part] / top) * (base - 10):.1f}"

    drawn = [f'<path d="M{left} 10V{base}H{width - right}" fill="none" stroke="{OTHER}"/>']
    for place, source in enumerate(sources):
        own = sorted((row for row in rows if row["source"] == source), key=lambda row: row["step"])
        colour = LINES[place % len(LINES)]
        band = " ".join([*(point(row, "p90") for row in own), *(point(row, "p10") for row in reversed(own))])
        drawn.append(f'<polygon points="{band}" fill="{colour}" opacity="0.15"/>')
        line = " ".join(point(row, "p50") for row in own)
        drawn.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = 20 + 18 * place
        drawn.append(f'<text x="{width - right + 10}" y="{y}" style="fill:{colour}">{escape(str(source))}</text>')
    drawn.append(f'<text x="{left - 6}" y="16" text-anchor="end">{_number(top, 2)}</text>')
    drawn.append(f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>')
    drawn += [
        f'<text x="{x}" y="{height - 12}" text-anchor="middle">step {step:,}</text>'
        for x, step in ((left + 30, steps[0]), (width - right - 30, steps[-1]))
    ]
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="weights of each source over the steps">'
        f"{''.join(drawn)}</svg>"
    )


def _reliability(bins: Sequence[Mapping[str, float]], size: int = 300) -> str:
    """Observed over predicted click rate; on the dashed line predictions are what they say."""
    top = max(max(part["predicted"], part["observed"]) for part in bins) * 1.08 or 1.0
    edge, inner = 44, size - 60
    points = [(edge + part["predicted"] / top * inner, 10 + (1 - part["observed"] / top) * inner) for part in bins]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{OWN}"/>' for x, y in points)
    base = 10 + inner
    return (
        f'<svg viewBox="0 0 {size} {size}" width="{size}" role="img" aria-label="observed over predicted click rate">'
        f'<path d="M{edge} 10V{base}H{edge + inner}" fill="none" stroke="{OTHER}"/>'
        f'<line x1="{edge}" y1="{base}" x2="{edge + inner}" y2="10" stroke="{OTHER}" stroke-dasharray="4 3"/>'
        f'<polyline points="{line}" fill="none" stroke="{OWN}" stroke-width="2"/>{dots}'
        f'<text x="{edge + inner / 2}" y="{size - 22}" text-anchor="middle">predicted</text>'
        f'<text x="12" y="{10 + inner / 2}" text-anchor="middle" transform="rotate(-90 12 {10 + inner / 2})">'
        f'observed</text><text x="{edge - 4}" y="18" text-anchor="end">{top:.0%}</text>'
        f'<text x="{edge - 4}" y="{base}" text-anchor="end">0</text></svg>'
    )


def _order(rows: Mapping[str, Any], metric: str) -> list[str]:
    """Rows by the gate's metric, best first; rows without it last."""
    sign = METRICS[metric].sign
    return sorted(rows, key=lambda name: -sign * rows[name][metric]["value"] if metric in rows[name] else math.inf)


def _row(name: str) -> str:
    return escape(ROWS.get(name, name.replace("_", " ")))


def _metric(name: str) -> str:
    return METRICS[name].heading if name in METRICS else f"{escape(name)} ↑"


def _interval(measured: Mapping[str, float] | None, *, signed: bool = False, digits: int = 4) -> str:
    if not measured:
        return "–"
    value, low, high = (_number(measured[part], digits, signed) for part in ("value", "low", "high"))
    return f"{value} <span class='quiet'>[{low}, {high}]</span>"


def _number(value: float | None, digits: int = 4, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"


def _count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _minutes(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f} min"
