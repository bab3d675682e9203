"""The go-live rule: a pure function from a cold-start report and a gate to a decision with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domains.spec import Gate

LOWER_IS_BETTER = frozenset({"logloss", "mae", "rmse"})


@dataclass(frozen=True)
class Decision:
    """Whether a version may go live, and why."""

    promote: bool
    reasons: tuple[str, ...]

    @property
    def verdict(self) -> str:
        return "ship" if self.promote else "hold"


def decide(report: Mapping[str, Any], gate: Gate) -> Decision:
    """Ship only when the interval's lower bound beats the rival that the spec names, on enough cold users, calibrated.

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
    if refused:
        return Decision(False, tuple(refused))
    assert gain is not None
    return Decision(
        True,
        (
            f"{gate.metric} on {report['cold_users']} cold users beats {gate.rival} by {gain['value']:+.4f}, "
            f"95% interval {gain['low']:+.4f} to {gain['high']:+.4f}",
        ),
    )
