"""The go-live rule: a pure function from a cold-start report and a gate to a decision with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domains.spec import Gate

ON_ITS_OWN = ("popularity", "item_mean", "single_domain")
"""Rows of a report that read the domain's own rows alone."""
NETWORKS_OF_THEIR_OWN = {
    "full_fine_tune": "which moves weights that other domains share",
    "shared_bottom": "a network that is trained anew with every domain",
    "scratch": "the same network on the same histories without the shared model's training",
}
"""Rows that borrow too, and that Graft could only serve as a second network for this domain."""
ANSWERING = {"zero_shot": "the shared model without any fine-tuning", "live": "the version that is live now"}
"""Rows of a report that answer already: a version that is worse than they for certain would be a step back."""
STRONGEST = "strongest"
"""A gate that names no baseline of its own: the best of all that are required."""


@dataclass(frozen=True)
class Decision:
    """Whether a version may go live, and why."""

    promote: bool
    reasons: tuple[str, ...]
    borrow: bool = True
    """False where something that borrows nothing is better for certain."""

    @property
    def verdict(self) -> str:
        if not self.borrow:
            return "do not borrow"
        return "ship" if self.promote else "hold"


def row_of(baseline: str, task: str | None) -> str:
    """The row of a report that stands for a baseline: of ratings there is no popularity, only the item's mean."""
    return "item_mean" if baseline == "popularity" and task == "rating" else baseline


def baseline_of(report: Mapping[str, Any], gate: Gate) -> str:
    """The row that the gate compares with: the one it names, or the strongest of all that are required."""
    if gate.baseline != STRONGEST:
        return row_of(gate.baseline, report.get("task"))
    known = [name for name in report.get("required", {}).get("baselines", {}) if name in report["gain"]]
    return min(known, key=lambda name: report["gain"][name]["value"], default=STRONGEST)


def decide(report: Mapping[str, Any], gate: Gate) -> Decision:
    """Ship only when the interval's lower bound beats the gate's baseline, on enough cold users, calibrated, not by
    luck.

    Where a baseline that borrows nothing is better for certain, the verdict is not to borrow, whatever else holds. A
    baseline
    that borrows as well and is better for certain is named among the reasons, and holds nothing back: it would be a
    network of its own for this one domain.

    Args:
        report: what ``comparison.cold_start_report`` returns: ``cold_users``, ``leaks``, ``rows[baseline][metric]``,
            ``gain[baseline]`` (improvement of the adapter over the baseline with its interval, positive is better),
            ``gain_over_seeds[baseline]``, ``required`` (the baselines without which there is no verdict),
            ``prediction_bias``.
    """
    refused: list[str] = []
    if report["leaks"]:
        refused.append("the evaluation leaks: " + "; ".join(report["leaks"]))
    if report["cold_users"] < gate.minimum_cold_users:
        refused.append(
            f"only {report['cold_users']} cold users to judge on; the gate asks for {gate.minimum_cold_users}"
        )
    if not report.get("certificate_ok", True):
        refused.append("the freeze certificate failed: a frozen tensor changed")
    baseline = baseline_of(report, gate)
    required = {baseline, *report.get("required", {}).get("baselines", {})}
    refused += [
        f"the report has no row for the baseline {name!r}" for name in sorted(required) if name not in report["gain"]
    ]
    gain = report["gain"].get(baseline)
    if gain is not None and not gain["low"] > 0:
        refused.append(
            f"{gate.metric} on cold users does not beat {baseline}: improvement {gain['value']:+.4f}, "
            f"95% interval {gain['low']:+.4f} to {gain['high']:+.4f} reaches zero or below"
        )
    seeds = report.get("gain_over_seeds", {}).get(baseline)
    if seeds is not None and gain is not None and gain["value"] > 0 and not seeds["value"] > 0:
        refused.append(
            f"over {len(seeds['each'])} seeds {gate.metric} does not beat {baseline}: mean improvement "
            f"{seeds['value']:+.4f}; the seed on offer was lucky"
        )
    error = report.get("prediction_bias")
    if error is not None and error > gate.maximum_prediction_bias:
        refused.append(
            f"predictions are off by {error:.0%} on average; the gate allows {gate.maximum_prediction_bias:.0%}"
        )
    better = {name: lost for name, lost in report["gain"].items() if lost["high"] < 0}
    refused += [
        f"{name}, which is {ANSWERING[name]}, is better on {gate.metric} {_by(better[name])}"
        for name in ANSWERING
        if name in better
    ]
    better_alone = [name for name in ON_ITS_OWN if name in better]
    refused += [
        f"{name}, which borrows nothing, is better on {gate.metric} {_by(better[name])}: do not borrow"
        for name in better_alone
    ]
    if refused:
        return Decision(False, tuple(refused), borrow=not better_alone)
    assert gain is not None
    return Decision(
        True,
        (
            f"{gate.metric} on {report['cold_users']} cold users beats {baseline} by {gain['value']:+.4f}, "
            f"95% interval {gain['low']:+.4f} to {gain['high']:+.4f}",
            *(
                f"{name}, {what}, would be better still {_by(better[name])}"
                for name, what in NETWORKS_OF_THEIR_OWN.items()
                if name in better
            ),
        ),
    )


def _by(lost: Mapping[str, float]) -> str:
    return f"by {-lost['value']:.4f}, 95% interval {-lost['high']:.4f} to {-lost['low']:.4f}"
