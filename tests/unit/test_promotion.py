"""The go-live rule says yes only to evidence, and says why when it says no."""

import pytest

from domains.spec import Gate
from orchestrator.promotion import decide


def a_report(**changes):
    report = {
        "leaks": [],
        "cold_users": 100,
        "certificate_ok": True,
        "gain": {"popularity": {"value": 0.05, "low": 0.02, "high": 0.08}},
        "calibration_error": 0.05,
    }
    return {**report, **changes}


def test_a_clear_gain_over_the_named_rival_ships():
    """The reason carries the interval."""
    decision = decide(a_report(), Gate())
    assert decision.promote
    assert decision.verdict == "ship"
    assert "+0.0200" in decision.reasons[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gain": {"popularity": {"value": 0.05, "low": -0.01, "high": 0.1}}}, "does not beat popularity"),
        ({"gain": {"popularity": {"value": 0.0, "low": 0.0, "high": 0.0}}}, "does not beat popularity"),
        ({"gain": {"popularity": {"value": float("nan"), "low": float("nan"), "high": 0.0}}}, "does not beat"),
        ({"gain": {}}, "no row for the rival"),
        ({"cold_users": 3}, "only 3 cold users"),
        ({"calibration_error": 0.9}, "off by 90%"),
        ({"leaks": ["a user is on both sides"]}, "leaks"),
        ({"certificate_ok": False}, "freeze certificate"),
    ],
)
def test_anything_less_is_held_with_its_reason(change, word):
    """A tie is a tie; too few users, a leak, a broken certificate and bad calibration each hold."""
    decision = decide(a_report(**change), Gate())
    assert not decision.promote
    assert any(word in reason for reason in decision.reasons)


def test_all_reasons_are_given_at_once():
    """A team fixes everything in one go, not one refusal at a time."""
    assert len(decide(a_report(cold_users=1, calibration_error=2.0), Gate()).reasons) == 2
