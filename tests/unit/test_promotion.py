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


@pytest.mark.parametrize("alone", ["single_domain", "scratch", "item_mean"])
def test_what_borrows_nothing_and_is_better_for_certain_says_do_not_borrow(alone):
    """Beating the named rival is not enough where the domain's own data alone does better."""
    gain = {**a_report()["gain"], alone: {"value": -0.03, "low": -0.05, "high": -0.01}}
    decision = decide(a_report(gain=gain), Gate())
    assert not decision.promote
    assert decision.verdict == "do not borrow"
    assert any(alone in reason and "0.0100 to 0.0500" in reason for reason in decision.reasons)


def test_a_better_rival_that_borrows_too_is_no_reason_not_to():
    """Full fine-tuning borrows as well; and an interval that reaches zero proves nothing."""
    near = {"value": -0.01, "low": -0.03, "high": 0.01}
    gain = {**a_report()["gain"], "single_domain": near, "full_fine_tune": {"value": -0.2, "low": -0.3, "high": -0.1}}
    assert decide(a_report(gain=gain), Gate()).verdict == "ship"
