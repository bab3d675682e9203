"""The states of a domain and the moves between them; pure.

    registered -> data_ready -> training -> challenger -> live <-> paused        any of them -> retired (for good)

A domain whose state is ``training`` or ``challenger`` may well be answering: what answers is the live pointer of the
registry, never the state. So a retrain goes live -> training -> live, and a launch that its gate refuses goes
training -> data_ready.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, get_args

from domains.errors import IllegalTransition


class State(StrEnum):
    """The state of a domain, from its registration to its retirement."""

    REGISTERED = "registered"
    DATA_READY = "data_ready"
    TRAINING = "training"
    CHALLENGER = "challenger"
    LIVE = "live"
    PAUSED = "paused"
    RETIRED = "retired"


ALLOWED: dict[State, frozenset[State]] = {
    State.REGISTERED: frozenset({State.DATA_READY, State.RETIRED}),
    # Straight on: an earlier launch left a version that can still be promoted.
    State.DATA_READY: frozenset({State.TRAINING, State.CHALLENGER, State.LIVE, State.RETIRED}),
    State.TRAINING: frozenset({State.DATA_READY, State.CHALLENGER, State.LIVE, State.PAUSED, State.RETIRED}),
    State.CHALLENGER: frozenset({State.DATA_READY, State.TRAINING, State.LIVE, State.PAUSED, State.RETIRED}),
    State.LIVE: frozenset({State.TRAINING, State.CHALLENGER, State.PAUSED, State.RETIRED}),
    State.PAUSED: frozenset({State.TRAINING, State.CHALLENGER, State.LIVE, State.RETIRED}),
    State.RETIRED: frozenset(),
}
"""From each state, where a domain may go next; staying is always allowed."""

FallbackLevel = Literal["prior", "zero_shot", "adapter"]
"""What an answer rests on: popularity, the shared model untrained here, or the domain's own trained weights."""
FALLBACK_LEVELS: tuple[FallbackLevel, ...] = get_args(FallbackLevel)
"""From the last resort to the best."""


def check_move(current: State, wanted: State) -> None:
    """Let an allowed move pass, and a move to where the domain already is.

    Raises:
        IllegalTransition: the lifecycle has no such move; names the moves it has.
    """
    if wanted is current or wanted in ALLOWED[current]:
        return
    onward = [state.value for state in State if state in ALLOWED[current]]
    raise IllegalTransition(
        f"a domain that is {current.value} cannot become {wanted.value}; from here it can become "
        + (", ".join(onward) if onward else "nothing else: retired is for good"),
        current=current.value,
        wanted=wanted.value,
        allowed=onward,
    )
