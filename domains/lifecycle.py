"""The states of a domain and the moves between them; pure.

    registered -> data_ready <-> live <-> paused        any of them -> retired (for good)

State and traffic are two things: what answers is the live pointer of the registry. Whether a run of the domain is under
way stands in the runs, and the version that passed its gate and waits for a person in ``Domain.challenger``; neither is
a state, so a run that is cancelled, killed or fails has nothing to put back. Paused means that popularity answers until
a person resumes: a promotion moves the pointer meanwhile and never undoes the pause.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, get_args

from domains.errors import IllegalTransition


class State(StrEnum):
    """The state of a domain, from its registration to its retirement."""

    REGISTERED = "registered"
    DATA_READY = "data_ready"
    LIVE = "live"
    PAUSED = "paused"
    RETIRED = "retired"


ALLOWED: dict[State, frozenset[State]] = {
    State.REGISTERED: frozenset({State.DATA_READY, State.RETIRED}),
    State.DATA_READY: frozenset({State.LIVE, State.PAUSED, State.RETIRED}),
    # Back to data_ready: what was live is withdrawn.
    State.LIVE: frozenset({State.DATA_READY, State.PAUSED, State.RETIRED}),
    State.PAUSED: frozenset({State.DATA_READY, State.LIVE, State.RETIRED}),
    State.RETIRED: frozenset(),
}
"""From each state, where a domain may go next; staying is always allowed."""

FallbackLevel = Literal["prior", "zero_shot", "adapter"]
"""What an answer rests on: popularity, the shared model untrained here, or the domain's own trained weights."""
FALLBACK_LEVELS: tuple[FallbackLevel, ...] = get_args(FallbackLevel)
"""From the last resort to the best."""


def state_under(level: FallbackLevel | None) -> State:
    """The state of a domain with data, neither paused nor retired, by the level of what is live in it; None: nothing.

    Live says that a version trained for the domain answers; under a zero-shot one it is still to be launched.
    """
    return State.LIVE if level == "adapter" else State.DATA_READY


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
