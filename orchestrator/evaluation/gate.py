"""The go-live rule: a pure function from a comparison and a gate to a decision with its reasons."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from domains.spec import Gate
from orchestrator.evaluation.report import Comparison, Decision, Suspect
from orchestrator.evaluation.rows import FREE, ROWS, Role, label

STRONGEST = "strongest"
"""A gate that asks for the best of all that are required."""
STRONGEST_PLAIN = "strongest_plain"
"""A gate that names no baseline of its own: the best of what a team could have for nothing."""


def row_of(baseline: str, task: str) -> str:
    """The row of a report for a baseline: ratings have no popularity, so the item mean takes its place."""
    return "item_mean" if baseline == "popularity" and task == "rating" else baseline


def baseline_of(report: Comparison, gate: Gate) -> str:
    """The row that the gate compares with: the one it names, or the strongest of all that are required or plain."""
    if gate.baseline not in (STRONGEST, STRONGEST_PLAIN):
        return row_of(gate.baseline, report.task)
    asked = FREE if gate.baseline == STRONGEST_PLAIN else tuple(report.required.baselines)
    known = {name: report.gain[name].value for name in asked if name in report.gain}
    # A gain that is not defined is no gain: it comes first, and the version is held.
    return min(known, key=lambda name: -np.inf if np.isnan(known[name]) else known[name], default=gate.baseline)


def decide(report: Comparison, gate: Gate) -> Decision:
    """Ship only a version whose gain over the gate's baseline is above zero for certain.

    It needs enough cold users, no leak, a valid freeze certificate, a row for every required baseline and calibrated
    predictions; the gain must not rest on a lucky seed, and nothing that answers already may be better for certain.
    Where a baseline that borrows nothing is better for certain, the verdict is not to borrow, whatever else holds. A
    required baseline that borrows as well and is better for certain holds the version, for a person to decide; one that
    nobody requires is named among the reasons and holds nothing back.
    """
    alone = [
        f"{label(name)}, which borrows nothing, is better on {gate.metric} {by}: do not borrow"
        for name, by in _better(report, "own data")
    ]
    backward = [
        f"{label(name)}, which is {ROWS[name].remark}, is better on {gate.metric} {by}"
        for name, by in _better(report, "answers now")
    ]
    networks = dict(_better(report, "own network"))
    backward += [
        f"{label(name)}, {ROWS[name].remark}, is required and is better on {gate.metric} {by}"
        for name, by in networks.items()
        if name in report.required.baselines
    ]
    refused = [*_evidence_faults(report, gate), *_gain_faults(report, gate), *backward, *alone]
    if refused:
        return Decision(promote=False, verdict="do not borrow" if alone else "hold", reasons=refused)
    baseline = baseline_of(report, gate)
    gain = report.gain[baseline]
    won = (
        f"{gate.metric} on {report.cold_users} cold users beats {label(baseline)} by {gain.value:+.4f}, "
        f"95% interval {gain.low:+.4f} to {gain.high:+.4f}"
    )
    stronger = [f"{label(name)}, {ROWS[name].remark}, would be better still {by}" for name, by in networks.items()]
    vouched = [
        f"{suspect.feature!r} tells the label, and is vouched for: {gate.known_at_request[suspect.feature]}"
        for suspect in report.suspects
    ]
    return Decision(promote=True, verdict="ship", reasons=[won, *stronger, *vouched])


def _evidence_faults(report: Comparison, gate: Gate) -> Iterator[str]:
    """Why the report cannot be trusted to decide."""
    if report.leaks:
        yield "the evaluation leaks: " + "; ".join(report.leaks)
    yield from unvouched(report.suspects, gate)
    if report.cold_users < gate.minimum_cold_users:
        yield f"only {report.cold_users} cold users to judge on; the gate asks for {gate.minimum_cold_users}"
    if not report.certificate_ok:
        yield "the freeze certificate failed: a frozen tensor changed"
    required = {baseline_of(report, gate), *report.required.baselines}
    for name in sorted(required - report.gain.keys()):
        yield f"the report has no row for the baseline {label(name)!r}"
    for name in sorted(required & report.gain.keys() - {baseline_of(report, gate)}):
        if not np.isfinite(report.gain[name].value):
            yield f"{gate.metric} beside {label(name)}, which is required, is not defined"


def unvouched(suspects: list[Suspect], gate: Gate) -> Iterator[str]:
    """Features that tell the label beyond what is plausible and that nobody vouches for, each as a reason to wait."""
    for suspect in suspects:
        if suspect.feature not in gate.known_at_request:
            yield (
                f"feature {suspect.feature!r}: {suspect.why}; if it is known when a request comes, say how under "
                "gate.known_at_request (graft domains vouch), else leave it out"
            )


def _gain_faults(report: Comparison, gate: Gate) -> Iterator[str]:
    """Why the version is not better than the gate's baseline, or not calibrated."""
    baseline = baseline_of(report, gate)
    gain, seeds = report.gain.get(baseline), report.gain_over_seeds.get(baseline)
    if gain is not None and not np.isfinite(gain.value):
        yield f"{gate.metric} on cold users is not defined, so it does not beat {label(baseline)}"
    elif gain is not None and not gain.low > 0:
        yield (
            f"{gate.metric} on cold users does not beat {label(baseline)}: improvement {gain.value:+.4f}, "
            f"95% interval {gain.low:+.4f} to {gain.high:+.4f} reaches zero or below"
        )
    if seeds is not None and gain is not None and gain.value > 0 and not seeds.value > 0:
        yield (
            f"over {len(seeds.each)} seeds {gate.metric} does not beat {label(baseline)}: mean improvement "
            f"{seeds.value:+.4f}; the seed on offer was lucky"
        )
    if not np.isfinite(report.prediction_bias):
        yield "predictions are no numbers, so they are not calibrated"
    elif report.prediction_bias > gate.maximum_prediction_bias:
        yield (
            f"predictions are off by {report.prediction_bias:.0%} on average; "
            f"the gate allows {gate.maximum_prediction_bias:.0%}"
        )


def _better(report: Comparison, role: Role) -> Iterator[tuple[str, str]]:
    """Rows of a role that are better for certain, and by how much."""
    for name, row in ROWS.items():
        lost = report.gain.get(name)
        if row.role == role and lost is not None and lost.high < 0:
            yield name, f"by {-lost.value:.4f}, 95% interval {-lost.high:.4f} to {-lost.low:.4f}"
