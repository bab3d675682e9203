"""The go-live rule: a pure function from a cold-start report and a gate to a decision with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domains.spec import Gate

LOWER_IS_BETTER = frozenset({"logloss", "mae", "rmse"})
ON_ITS_OWN = ("popularity", "item_mean", "single_domain", "scratch")
"""Rows of a report that learn from the domain's own rows alone."""


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


def decide(report: Mapping[str, Any], gate: Gate) -> Decision:
    """Ship only when the interval's lower bound beats the rival that the spec names, on enough cold users, calibrated.

    Where a rival that borrows nothing is better for certain, the verdict is not to borrow, whatever else holds.

    Args:
        report: what ``evaluation.cold_start_report`` returns: ``cold_users``, ``leaks``, ``rows[rival][metric]``,
            ``gain[rival]`` (improvement of the adapter over the rival with its interval, positive is better),
            ``calibration_error``.
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
    gain = report["gain"].get(gate.rival)
    if gain is None:
        refused.append(f"the report has no row for the rival {gate.rival!r}")
    elif not gain["low"] > 0:
        refused.append(
            f"{gate.metric} on cold users does not beat {gate.rival}: improvement {gain['value']:+.4f}, "
            f"95% interval {gain['low']:+.4f} to {gain['high']:+.4f} reaches zero or below"
        )
    error = report.get("calibration_error")
    if error is not None and error > gate.maximum_calibration_error:
        refused.append(
            f"predictions are off by {error:.0%} on average; the gate allows {gate.maximum_calibration_error:.0%}"
        )
    better_alone = [name for name in ON_ITS_OWN if name in report["gain"] and report["gain"][name]["high"] < 0]
    for name in better_alone:
        gap = report["gain"][name]
        refused.append(
            f"{name}, which borrows nothing, is better on {gate.metric} by {-gap['value']:.4f}, "
            f"95% interval {-gap['high']:.4f} to {-gap['low']:.4f}: do not borrow"
        )
    if refused:
        return Decision(False, tuple(refused), borrow=not better_alone)
    assert gain is not None
    return Decision(
        True,
        (
            f"{gate.metric} on {report['cold_users']} cold users beats {gate.rival} by {gain['value']:+.4f}, "
            f"95% interval {gain['low']:+.4f} to {gain['high']:+.4f}",
        ),
    )
