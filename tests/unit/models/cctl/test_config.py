"""A verdict says no more of a source than is certain."""

import pytest

from models.cctl.config import TransferConfig, Verdict, harms, verdicts

CONFIG = TransferConfig(targets=(0,))


def verdict_of(weight: float, influence: float, certainty: float, config: TransferConfig = CONFIG) -> Verdict:
    rows = [{"step": step, "source": 1, "rows": 64, "mean": weight} for step in (10, 20, 30, 40)]
    windows = [{"step": step, "control_gain": None} for step in (10, 20, 30, 40)]
    return verdicts(config, rows, windows, {1: (influence, certainty)})[1]


@pytest.mark.parametrize("certainty", [0.0, 0.1, 2.9, -2.9])
def test_a_source_of_which_nothing_is_certain_is_not_known(certainty):
    """It keeps its starting weight and is borrowed from, yet nobody says that it helps."""
    verdict = verdict_of(0.9, 0.05 if certainty >= 0 else -0.05, certainty)
    assert verdict.borrow
    assert verdict.word == "not known"
    assert "help the target" not in verdict.reason
    assert "nothing about it is certain" in verdict.reason


def test_a_source_that_helps_for_certain_is_to_be_borrowed_from():
    verdict = verdict_of(0.9, 0.4, 6.0)
    assert (verdict.word, verdict.reason) == ("borrow", "its samples help the target")


@pytest.mark.parametrize(
    ("weight", "influence", "certainty", "reason"),
    [(0.9, -0.4, -6.0, "wrong way"), (0.1, 0.0, 0.0, "brings nothing"), (0.1, 0.2, 6.0, "brings nothing")],
)
def test_a_source_that_harms_or_weighs_nothing_is_not(weight, influence, certainty, reason):
    verdict = verdict_of(weight, influence, certainty)
    assert verdict.word == "do not borrow"
    assert reason in verdict.reason


def test_a_weight_that_no_evidence_moved_is_not_known_in_every_mode():
    for mode in ("uniform", "reinforce"):
        assert verdict_of(1.0, 0.0, 0.0, TransferConfig(targets=(0,), mode=mode)).word == "not known"


def test_a_harm_that_hardly_differs_from_nothing_is_none_however_sure():
    assert not harms(-0.05, -5.0)
    assert harms(-0.2, -5.0)
