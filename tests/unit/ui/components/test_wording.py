"""What the pages say, as text."""

from datetime import UTC, datetime, timedelta

import pytest

from domains.lifecycle import FALLBACK_LEVELS, State
from domains.spec import DomainSpec
from ui.components import wording

NOW = datetime(2025, 3, 1, 12, 0, tzinfo=UTC)


def spec(**changes) -> DomainSpec:
    """A small valid spec."""
    declared = {
        "name": "live",
        "role": "target",
        "task": "ctr",
        "owner": "team-live",
        "interactions": {"user": "user_id", "item": "item_id", "label": "click"},
    }
    return DomainSpec.from_mapping({**declared, **changes})


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        (timedelta(seconds=3), "just now"),
        (timedelta(minutes=3), "3 minutes ago"),
        (timedelta(minutes=50), "1 hour ago"),
        (timedelta(hours=5), "5 hours ago"),
        (timedelta(days=2), "2 days ago"),
        (timedelta(days=59), "1 Jan 2025"),
    ],
)
def test_a_time_is_said_as_people_say_it(passed, said):
    """Near times by distance, far ones by date."""
    assert wording.ago(NOW - passed, now=NOW) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.41, "0.4 s"), (42.2, "42 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_a_duration_keeps_two_units_at_most(seconds, said):
    """As long as it matters and no longer."""
    assert wording.duration(seconds) == said


def test_every_state_of_the_lifecycle_has_words():
    """A new state without words would show its key to people."""
    assert set(wording.STATES) == {state.value for state in State}
    assert set(wording.FALLBACK_LEVELS) == {*FALLBACK_LEVELS, "none", "retired"}


def test_a_gates_reason_names_metrics_and_baselines_in_words():
    """The rule speaks in keys; people read names."""
    reason = "auc on 217 cold users beats item_mean by +0.1"
    assert wording.sentence(reason) == "AUC on 217 cold users beats item mean by +0.1"


def test_an_event_is_told_by_what_its_domain_predicts():
    """A click, a skip, a rating, or an interaction without a label."""
    rating = spec(task="rating", interactions={"user": "u", "item": "i", "label": "stars", "label_range": [1, 5]})
    plain = spec(interactions={"user": "u", "item": "i"})
    assert wording.event({"value": 1.0}, spec()) == "clicked"
    assert wording.event({"value": 0.0}, spec()) == "skipped"
    assert wording.event({"value": 4.0}, rating) == "rated it 4"
    assert wording.event({"value": 1.0}, plain) == "interacted"


def test_a_key_without_words_is_shown_rather_than_hidden():
    """What a later version adds must not break a page."""
    assert wording.label(wording.STATES, "on_fire").text == "On fire"
    assert wording.row_name("new_baseline") == "New baseline"


def test_timeless_events_have_no_date():
    """Data without a time column has times 0 and 1; 1970 would be wrong."""
    assert wording.event_time(1) == "–"
    assert wording.event_time(1_740_830_400_000_000) == "1 Mar 2025, 12:00"


def test_the_policy_of_an_installation_is_one_sentence():
    """Baselines by their names, and how often."""
    assert wording.policy(("popularity", "scratch", "full_fine_tune"), 3) == (
        "Every launch here is compared with at least popularity, trained from scratch and full fine-tune, "
        "under 3 seeds or more."
    )
    assert wording.policy((), 1) == "No baseline is required of launches here; each runs under at least 1 seed."
