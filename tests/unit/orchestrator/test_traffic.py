"""Every event in every state: what a domain is afterwards, what answers in it, what waits, or who refuses."""

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest

from domains.errors import DomainFault
from domains.registry.registry import Registry
from orchestrator import traffic, use_cases
from orchestrator.data import version_check
from orchestrator.jobs.runner import RunContext, Step
from orchestrator.settings import Settings
from tests.unit.orchestrator.fake_versions import (
    DO_NOT_BORROW,
    HOLD,
    NAME,
    SHIP,
    declared,
    registry_of_a_target,
)

TABLE = """
event                | registered - -     | data_ready - - | data_ready z - | live a b       | live b -       | paused - -     | paused a -     | retired b -
register again       | =                  | =              | =              | =              | =              | =              | =              | !domain_already_registered
register another     | !domain_already_registered | !domain_already_registered | !domain_already_registered | !domain_already_registered | !domain_already_registered | !domain_already_registered | !domain_already_registered | !domain_already_registered
update the spec      | =                  | =              | =              | =              | =              | =              | =              | !illegal_transition
ingest               | data_ready - -     | =              | =              | =              | =              | =              | =              | !illegal_transition
train shared         | =                  | =              | =              | =              | =              | =              | =              | =
launch: begins       | !not_enough_data   | =              | =              | =              | =              | =              | =              | !illegal_transition
launch: cancelled    | !not_enough_data   | =              | =              | =              | =              | =              | =              | !illegal_transition
launch: fails        | !not_enough_data   | =              | =              | =              | =              | =              | =              | !illegal_transition
launch: killed       | =                  | =              | =              | =              | =              | =              | =              | =
launch: ship         | registered - b     | data_ready - b | data_ready z b | =              | =              | paused - b     | paused a b     | =
launch: hold         | =                  | =              | data_ready - - | live a -       | =              | =              | =              | =
launch: do not borrow| =                  | =              | data_ready - - | live a -       | =              | =              | =              | =
retrain: ship        | !illegal_transition| live b -       | live b -       | live b -       | =              | paused b -     | paused b -     | !illegal_transition
promote              | !illegal_transition| live b -       | live b -       | live b -       | =              | paused b -     | paused b -     | !illegal_transition
promote the untrained| !illegal_transition| data_ready z - | =              | data_ready z b | data_ready z - | paused z -     | paused z -     | !illegal_transition
promote the held     | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused
promote the unjudged | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused
force without reason | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused | !promotion_refused
force the held       | !illegal_transition| live h -       | live h -       | live h -       | live h -       | paused h -     | paused h -     | !illegal_transition
roll back            | !no_live_version   | !no_live_version | !no_live_version | !no_live_version | live a -     | !no_live_version | paused z -     | !illegal_transition
withdraw             | =                  | =              | data_ready - - | data_ready - b | data_ready - - | =              | paused - -     | retired - -
pause                | !illegal_transition| paused - -     | paused z -     | paused a b     | paused b -     | =              | =              | !illegal_transition
resume               | !illegal_transition| =              | =              | =              | =              | data_ready - - | live a -       | !illegal_transition
retire               | retired - -        | retired - -    | retired z -    | retired a -    | retired b -    | retired - -    | retired a -    | =
"""  # noqa: E501
"""Columns: state, what is live, what waits. Cells: the same afterwards, ``=`` for unchanged, or how it is refused.

Where ``b`` is live it went live over ``a``, and where ``a`` is live in a paused domain it went live over ``z``.
"""
PREPARED = {
    "registered - -": "",
    "data_ready - -": "data",
    "data_ready z -": "data, promote the untrained",
    "live a b": "data, promote a, launch: ship",
    "live b -": "data, promote a, promote",
    "paused - -": "data, pause",
    "paused a -": "data, promote the untrained, promote a, pause",
    "retired b -": "data, promote a, promote, retire",
}
ANSWERS = {"-": "prior", "z": "zero_shot", **dict.fromkeys("uhab", "adapter")}


class Events:
    """What can happen to the target, by its name in the table."""

    def __init__(self, registry: Registry, folder: Path) -> None:
        self.registry, self.settings, self.file = registry, Settings(home=folder), folder / "events.csv"
        self.who = {"registry": registry, "who": "ann", "why": "said so"}

    def happen(self, event: str) -> None:
        moves: dict[str, Callable[[], object]] = {
            "register again": lambda: use_cases.register(declared(), registry=self.registry, by="ann"),
            "register another": lambda: use_cases.register(declared(owner="x"), registry=self.registry, by="ann"),
            "update the spec": lambda: self.registry.update_spec(declared(owner="y"), by="ann"),
            "data": lambda: self.registry.record_ingest(NAME, "first", {"rows_added": 10}),
            "ingest": self.ingest,
            "train shared": lambda: self.registry.promote(None, "shared", expect=None, who="ann", why=""),
            "launch: begins": lambda: self.launch(None),
            "launch: cancelled": lambda: self.launch(KeyboardInterrupt()),
            "launch: fails": lambda: self.launch(RuntimeError("a fault")),
            "launch: killed": lambda: self.registry.start_run("launch-domain", NAME, params={}, by="ann"),
            "launch: ship": lambda: traffic.offer(NAME, "b", SHIP, registry=self.registry, by="ann"),
            "launch: hold": lambda: traffic.refuse(NAME, HOLD, registry=self.registry, by="ann"),
            "launch: do not borrow": lambda: traffic.refuse(NAME, DO_NOT_BORROW, registry=self.registry, by="ann"),
            "retrain: ship": self.retrain,
            "promote": lambda: self.promote(None),
            "promote a": lambda: self.promote("a"),
            "promote the untrained": lambda: self.promote("z"),
            "promote the held": lambda: self.promote("h"),
            "promote the unjudged": lambda: self.promote("u"),
            "force without reason": lambda: self.promote("h", force=True, why=" "),
            "force the held": lambda: self.promote("h", force=True),
            "roll back": lambda: traffic.roll_back(NAME, settings=self.settings, **self.who),
            "withdraw": lambda: self.registry.withdraw(NAME, who="ann", why=""),
            "pause": lambda: traffic.pause(NAME, **self.who),
            "resume": lambda: traffic.resume(NAME, **self.who),
            "retire": lambda: traffic.retire(NAME, **self.who),
        }
        moves[event]()

    def ingest(self) -> None:
        self.file.write_text("u,i,click\nann,x,1\nbob,y,0\n")
        asked = {"registry": self.registry, "settings": self.settings, "by": "ann"}
        use_cases.ingest_data(NAME, interactions=[self.file], **asked)

    def launch(self, end: BaseException | None) -> None:
        """A launch whose only step ends like this."""

        def work(context: RunContext) -> None:
            if end is not None:
                raise end

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt, RuntimeError):
            patch.setattr(use_cases, "steps", lambda kind: (Step("Train", work),))
            use_cases.run("launch-domain", NAME, registry=self.registry, settings=self.settings, by="ann")

    def retrain(self) -> None:
        """Its gate let ``b`` pass; what was live as it began still is."""
        live = self.registry.live(NAME)
        self.registry.promote(NAME, "b", expect=live.version_id if live else None, who="schedule", why="")

    def promote(self, version: str | None, *, force: bool = False, why: str = "said so") -> None:
        traffic.promote(NAME, version, settings=self.settings, force=force, **{**self.who, "why": why})


def is_now(registry: Registry) -> str:
    """State, what is live and what waits, as the table writes it."""
    domain, live = registry.domain(NAME), registry.live(NAME)
    return f"{domain.state.value} {live.version_id if live else '-'} {domain.challenger or '-'}"


def cells() -> list[tuple[str, str, str]]:
    head, *rows = ([cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines())
    return [(row[0], column, cell) for row in rows for column, cell in zip(head[1:], row[1:], strict=True)]


def test_the_table_has_every_situation() -> None:
    assert {column for _, column, _ in cells()} == set(PREPARED)


@pytest.mark.parametrize(("event", "before", "expected"), cells())
def test_every_event_in_every_state(
    event: str, before: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version_check, "check", lambda version, **rest: None)  # nothing lies in a store here
    registry = registry_of_a_target()
    events = Events(registry, tmp_path)
    for step in filter(None, PREPARED[before].split(", ")):
        events.happen(step)
    assert is_now(registry) == before
    noted, generation = len(registry.audit()), registry.generation()
    if expected.startswith("!"):
        with pytest.raises(DomainFault) as refused:
            events.happen(event)
        assert refused.value.code == expected[1:]
        assert (len(registry.audit()), registry.generation()) == (noted, generation)
        expected = "="
    else:
        events.happen(event)
    state, live, waits = (before if expected == "=" else expected).split()
    assert is_now(registry) == f"{state} {live} {waits}"
    answers = {"paused": "prior", "retired": None}.get(state, ANSWERS[live])
    assert traffic.fallback_level(NAME, registry=registry) == answers == traffic.fallback_levels(registry)[NAME]
    registry.close()
