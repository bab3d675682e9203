"""The go-live rule says yes only to evidence, and says why when it says no."""

from typing import get_args

import pytest

from domains.spec import Gate
from orchestrator.evaluation.gate import decide
from orchestrator.evaluation.report import Comparison
from orchestrator.evaluation.rows import FREE, label

POPULARITY = Gate(baseline="popularity")
GAIN = {"popularity": {"value": 0.05, "low": 0.02, "high": 0.08}}


@pytest.fixture
def a_report(comparison):
    """A comparison that passes the usual gate, with changes."""

    def make(**changes) -> Comparison:
        return Comparison.from_dict({**comparison, "cold_users": 100, "gain": GAIN, **changes})

    return make


def required(*baselines: str) -> dict:
    return {"baselines": {name: ["policy"] for name in baselines}, "seeds": 1, "seeds_by": "policy"}


def test_a_clear_gain_over_the_named_baseline_ships(a_report):
    """The reason carries the interval."""
    decision = decide(a_report(), POPULARITY)
    assert decision.promote
    assert decision.verdict == "ship"
    assert "+0.0200" in decision.reasons[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"gain": {"popularity": {"value": 0.05, "low": -0.01, "high": 0.1}}}, "does not beat popularity"),
        ({"gain": {"popularity": {"value": 0.0, "low": 0.0, "high": 0.0}}}, "does not beat popularity"),
        ({"gain": {"popularity": {"value": float("nan"), "low": float("nan"), "high": 0.0}}}, "is not defined, so"),
        ({"gain": {}}, "no row for the baseline"),
        ({"cold_users": 3}, "only 3 cold users"),
        ({"prediction_bias": 0.9}, "off by 90%"),
        ({"leaks": ["a user is on both sides"]}, "leaks"),
        ({"certificate_ok": False}, "freeze certificate"),
    ],
)
def test_anything_less_is_held_with_its_reason(a_report, change, word):
    """A tie is a tie; too few users, a leak, a broken certificate and bad calibration each hold."""
    decision = decide(a_report(**change), POPULARITY)
    assert not decision.promote
    assert any(word in reason for reason in decision.reasons)


def test_a_feature_that_tells_too_much_holds_until_somebody_vouches_for_it(a_report):
    """It is named with the field to fill in; what a person says of it stands among the reasons to ship."""
    report = a_report(suspects=[{"feature": "dwell", "why": "alone it tells positives from negatives with AUC 0.950"}])
    held = decide(report, POPULARITY)
    assert held.verdict == "hold"
    assert any("'dwell'" in reason and "gate.known_at_request" in reason for reason in held.reasons)
    vouched = POPULARITY.model_copy(update={"known_at_request": {"dwell": "a forecast, made before the page"}})
    shipped = decide(report, vouched)
    assert shipped.promote
    assert any("a forecast, made before the page" in reason for reason in shipped.reasons)


def test_all_reasons_are_given_at_once(a_report):
    """A team fixes everything in one go, not one refusal at a time."""
    assert len(decide(a_report(cold_users=1, prediction_bias=2.0), POPULARITY).reasons) == 2


@pytest.mark.parametrize("alone", ["single_domain", "popularity", "item_mean"])
def test_what_borrows_nothing_and_is_better_for_certain_says_do_not_borrow(a_report, alone):
    """Beating the named baseline is not enough where the domain's own data alone does better."""
    gain = {**GAIN, alone: {"value": -0.03, "low": -0.05, "high": -0.01}}
    decision = decide(a_report(gain=gain), POPULARITY)
    assert not decision.promote
    assert decision.verdict == "do not borrow"
    assert any(label(alone) in reason and "0.0100 to 0.0500" in reason for reason in decision.reasons)


@pytest.mark.parametrize("borrower", ["full_fine_tune", "shared_bottom", "scratch"])
def test_a_better_baseline_that_borrows_too_is_told_and_is_no_reason_not_to(a_report, borrower):
    """It reads the sources' histories too, in a network of its own; an interval that reaches zero proves nothing."""
    near = {"value": -0.01, "low": -0.03, "high": 0.01}
    gain = {**GAIN, "single_domain": near, borrower: {"value": -0.2, "low": -0.3, "high": -0.1}}
    decision = decide(a_report(gain=gain), POPULARITY)
    assert decision.verdict == "ship"
    assert [reason for reason in decision.reasons if label(borrower) in reason and "0.1000 to 0.3000" in reason]


@pytest.mark.parametrize("answering", ["zero_shot", "live"])
def test_what_answers_already_and_is_better_for_certain_holds(a_report, answering):
    """A retrain or a fine-tuning that makes answers worse is no reason to change them."""
    gain = {**GAIN, answering: {"value": -0.03, "low": -0.05, "high": -0.01}}
    decision = decide(a_report(gain=gain), POPULARITY)
    assert decision.verdict == "hold"
    assert label(answering) in decision.reasons[0]


def test_a_required_baseline_without_a_row_holds(a_report):
    """No verdict rests on a report that somebody left something out of."""
    report = a_report(required=required("popularity", "scratch"))
    assert decide(report, POPULARITY).reasons == ["the report has no row for the baseline 'trained from scratch'"]


def test_the_strongest_of_the_required_baselines_can_be_the_gates(a_report):
    """A team that wants to beat them all says so once; the report then says which one it was."""
    gain = {**GAIN, "shared_bottom": {"value": 0.02, "low": -0.01, "high": 0.05}}
    report = a_report(gain=gain, required=required("popularity", "shared_bottom"))
    assert decide(report, POPULARITY).promote
    held = decide(report, Gate(baseline="strongest"))
    assert not held.promote
    assert "does not beat shared-bottom model" in held.reasons[0]


def test_a_lucky_seed_does_not_ship(a_report):
    """Where the mean over seeds does not beat the baseline, the one on offer was chance."""
    unlucky = {"popularity": {"value": -0.01, "low": -0.09, "high": 0.07, "each": {"0": 0.05, "1": -0.07}}}
    assert "lucky" in decide(a_report(gain_over_seeds=unlucky), POPULARITY).reasons[0]
    lost = a_report(gain_over_seeds=unlucky, gain={"popularity": {"value": -0.05, "low": -0.12, "high": 0.02}})
    assert not any("lucky" in reason for reason in decide(lost, POPULARITY).reasons)


def test_of_ratings_the_items_mean_stands_for_popularity(a_report):
    """A rating domain whose gate names nothing has something to beat."""
    report = a_report(task="rating", gain={"item_mean": {"value": 0.05, "low": 0.02, "high": 0.08}})
    assert decide(report, Gate(metric="mae")).promote


@pytest.mark.parametrize("strongest", FREE)
def test_a_gate_that_names_nothing_asks_for_the_best_of_what_costs_nothing(a_report, strongest):
    """Beating popularity, the weakest of plain rows, ships nothing."""
    clear, near = {"value": 0.05, "low": 0.02, "high": 0.08}, {"value": 0.01, "low": -0.01, "high": 0.03}
    gain = {**GAIN, **dict.fromkeys(FREE, clear)}
    assert decide(a_report(gain=gain), Gate()).promote
    held = decide(a_report(gain={**gain, strongest: near}), Gate())
    assert held.verdict == "hold"
    assert f"does not beat {label(strongest)}" in held.reasons[0]
    undefined = decide(a_report(gain={**gain, strongest: {name: float("nan") for name in near}}), Gate())
    assert "is not defined" in undefined.reasons[0]


@pytest.mark.parametrize("network", ["full_fine_tune", "shared_bottom", "scratch", "single_domain", "item_user_bias"])
def test_a_version_surely_below_a_required_row_does_not_ship(a_report, network):
    """Required means required, whatever the row reads; the reason calls it by its label."""
    gain = {**GAIN, network: {"value": -0.2, "low": -0.3, "high": -0.1}}
    decision = decide(a_report(gain=gain, required=required("popularity", network)), POPULARITY)
    assert not decision.promote
    assert any(reason.startswith(label(network)) for reason in decision.reasons)


NAMED = sorted(set(get_args(Gate.model_fields["baseline"].annotation)) - {"strongest", "strongest_plain"})


@pytest.mark.parametrize("task", ["ctr", "rating"])
@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("value", [-0.03, float("nan")], ids=["below", "undefined"])
def test_no_version_ships_that_is_surely_below_a_required_row_or_cannot_be_compared_with_it(
    a_report, task, name, value
):
    """Whichever row is required, of clicks or of ratings, and however much is gained over the gate's own baseline."""
    if task == "rating" and name == "popularity":
        name = "item_mean"
    clear = {"value": 0.2, "low": 0.1, "high": 0.3}
    found = {"value": value, "low": value - 0.01, "high": value + 0.01}
    gain = {**dict.fromkeys((*FREE, "popularity", "zero_shot", "single_domain"), clear), name: found}
    metric = "auc" if task == "ctr" else "mae"
    other = next(row for row in ("single_domain", "item_user_bias") if row != name)
    report = a_report(task=task, metric=metric, gain=gain, required=required(name))
    for gate in (Gate(metric=metric, baseline=other), Gate(metric=metric), Gate(metric=metric, baseline="strongest")):
        decision = decide(report, gate)
        assert not decision.promote
        assert any(label(name) in reason for reason in decision.reasons)
