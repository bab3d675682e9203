"""The states of a domain and the moves between them."""

import pickle
from itertools import pairwise

import pytest

from domains import errors
from domains.errors import DomainFault, IllegalTransition, StalePromotion
from domains.lifecycle import ALLOWED, State, check_move


def test_every_state_says_where_it_leads() -> None:
    """No state is forgotten, and none leads out of the lifecycle."""
    assert set(ALLOWED) == set(State)
    assert all(onward <= set(State) for onward in ALLOWED.values())


@pytest.mark.parametrize("state", State)
def test_staying_is_always_allowed(state: State) -> None:
    check_move(state, state)


def test_the_whole_way_from_registered_to_retired() -> None:
    way = [
        "registered",
        "data_ready",
        "live",
        "paused",
        "live",
        "data_ready",
        "paused",
        "data_ready",
        "retired",
    ]
    for current, wanted in pairwise(way):
        check_move(State(current), State(wanted))


def test_nothing_answers_without_data() -> None:
    for wanted in (State.LIVE, State.PAUSED):
        with pytest.raises(IllegalTransition):
            check_move(State.REGISTERED, wanted)


def test_data_once_ingested_stays_ingested() -> None:
    assert not any(State.REGISTERED in onward for onward in ALLOWED.values())


def test_every_domain_can_be_retired_and_none_returns() -> None:
    assert all(State.RETIRED in ALLOWED[state] for state in State if state is not State.RETIRED)
    assert ALLOWED[State.RETIRED] == frozenset()


def test_a_refused_move_says_what_is_possible() -> None:
    with pytest.raises(IllegalTransition, match=r"registered cannot become live; .* data_ready, retired") as refused:
        check_move(State.REGISTERED, State.LIVE)
    assert refused.value.details == {"current": "registered", "wanted": "live", "allowed": ["data_ready", "retired"]}


def test_every_fault_is_a_value_error_with_a_code_of_its_own() -> None:
    faults = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DomainFault)]
    assert len({kind.code for kind in faults}) == len(faults) > 10
    assert all(issubclass(kind, ValueError) for kind in faults)
    assert StalePromotion.code == "stale_promotion"


def test_a_fault_crosses_processes_whole() -> None:
    """Workers hand faults over pickled; the details are what the caller acts on."""
    sent = StalePromotion("b is live", live="b")
    received = pickle.loads(pickle.dumps(sent))
    assert (type(received), str(received), received.details) == (StalePromotion, "b is live", {"live": "b"})
