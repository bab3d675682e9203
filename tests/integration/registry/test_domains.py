"""Domains in the registry, on SQLite and on PostgreSQL: the same promises, the same tests."""

from datetime import UTC, datetime

import pytest

from domains.errors import (
    DomainAlreadyRegistered,
    IllegalTransition,
    InvalidSpec,
    UnknownDomain,
)
from domains.lifecycle import State
from domains.registry.registry import Registry
from tests.integration.registry.fakes import at_once, process, ready, spec


class TestDomains:
    def test_a_spec_comes_back_as_it_was_declared(self, registry: Registry) -> None:
        declared = spec(
            sources=["video"],
            items={"id": "i", "features": {"preis €": "number"}},
            domain_features={"surface": "live", "rows": 3, "share": 0.1},
            schedule="0 3 * * 1",
        )
        registered = registry.register_domain(declared, by="ann")
        assert registered.spec == declared
        assert (registered.number, registered.state, registered.counts) == (1, State.REGISTERED, {})
        assert registry.domain("live-rooms") == registered

    def test_numbers_are_small_and_stable(self, registry: Registry) -> None:
        """A refused registration takes no number, and an old domain keeps its own."""
        registry.register_domain(spec("one"), by="ann")
        with pytest.raises(DomainAlreadyRegistered):
            registry.register_domain(spec("one", owner="other"), by="bob")
        registry.register_domain(spec("two"), by="ann")
        registry.update_spec(spec("one", owner="other"), by="ann")
        assert [(domain.name, domain.number) for domain in registry.domains()] == [("one", 1), ("two", 2)]

    def test_the_same_spec_again_changes_nothing(self, registry: Registry) -> None:
        first = registry.register_domain(spec(), by="ann")
        noted, generation = len(registry.audit()), registry.generation()
        assert registry.register_domain(spec(), by="bob") == first
        assert (len(registry.audit()), registry.generation()) == (noted, generation)

    def test_a_taken_name_says_who_holds_it(self, registry: Registry) -> None:
        registry.register_domain(spec(owner="team-live"), by="ann")
        with pytest.raises(DomainAlreadyRegistered, match="team-live") as refused:
            registry.register_domain(spec(owner="team-shop"), by="bob")
        assert refused.value.details == {"name": "live-rooms", "owner": "team-live"}

    def test_two_teams_at_once_one_wins(self, registry: Registry) -> None:
        """Sixteen threads want one name; one gets it, the others learn whose it is, and no number is lost."""
        outcomes = at_once(16, lambda n: registry.register_domain(spec(owner=f"team-{n}"), by=f"person-{n}"))
        winners = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        assert len(winners) == 1
        assert all(isinstance(o, DomainAlreadyRegistered) for o in outcomes if o is not winners[0])
        assert registry.domain("live-rooms") == winners[0]
        assert registry.register_domain(spec("next"), by="ann").number == 2
        assert len(registry.audit("live-rooms")) == 1

    def test_two_processes_at_once_one_wins(self, registry: Registry, url: str) -> None:
        script = """
import sys
from domains.errors import DomainAlreadyRegistered
from domains.registry.registry import Registry
from domains.spec import DomainSpec
url, team = sys.argv[1:]
registry = Registry(url)
wanted = [DomainSpec.from_mapping({"name": f"name-{n}", "role": "target", "task": "ctr", "owner": team,
    "interactions": {"user": "u", "item": "i"}}) for n in range(20)]
print(registry.generation(), flush=True)
sys.stdin.readline()
for spec in wanted:
    try:
        registry.register_domain(spec, by=team)
        print(spec.name, flush=True)
    except DomainAlreadyRegistered:
        pass
"""
        racers = [process(script, url, team) for team in ("red", "blue", "green")]
        assert [racer.stdout.readline().strip() for racer in racers] == ["0"] * 3  # all are at the line
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = [racer.communicate(timeout=60)[0].split() for racer in racers]
        assert [racer.returncode for racer in racers] == [0, 0, 0]
        assert sorted(name for names in won for name in names) == sorted(f"name-{n}" for n in range(20))
        for team, names in zip(("red", "blue", "green"), won, strict=True):
            assert all(registry.domain(name).owner == team for name in names)
        assert sorted(domain.number for domain in registry.domains()) == list(range(1, 21))

    def test_an_unknown_name_suggests_the_near_one(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        with pytest.raises(UnknownDomain, match="did you mean 'live-rooms'"):
            registry.domain("live-room")

    def test_role_and_task_are_for_life(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        with pytest.raises(InvalidSpec, match="role: is target for the life"):
            registry.update_spec(spec(role="source"), by="ann")
        rating = {"interactions": {"user": "u", "item": "i", "label": "stars", "label_range": [1, 5]}}
        with pytest.raises(InvalidSpec, match="task: is ctr"):
            registry.update_spec(spec(task="rating", **rating), by="ann")
        with pytest.raises(UnknownDomain):
            registry.update_spec(spec("never"), by="ann")

    def test_a_changed_spec_keeps_the_old_one_in_the_audit(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        assert registry.update_spec(spec(schedule="0 3 * * *"), by="bob").spec.schedule == "0 3 * * *"
        entry = registry.audit("live-rooms")[0]
        assert (entry["who"], entry["what"]) == ("bob", "update_spec")
        assert (entry["details"]["before"]["schedule"], entry["details"]["after"]["schedule"]) == (None, "0 3 * * *")

    def test_a_target_is_no_source(self, registry: Registry) -> None:
        """A source may be registered later, but what is registered as a target is no source."""
        registry.register_domain(spec("grocery"), by="ann")
        with pytest.raises(InvalidSpec, match="'grocery' is registered as a target"):
            registry.register_domain(spec(sources=["grocery", "not-yet"]), by="ann")
        registry.register_domain(spec(sources=["not-yet"]), by="ann")


class TestLifecycle:
    def test_every_move_is_audited_with_who_when_and_why(self, registry: Registry) -> None:
        ready(registry)
        before = datetime.now(UTC)
        registry.move("live-rooms", State.PAUSED, by="ann", why="first launch")
        entry = registry.audit("live-rooms")[0]
        assert (entry["who"], entry["what"], entry["why"]) == ("ann", "move", "first launch")
        assert entry["details"] == {"before": "data_ready", "after": "paused"}
        assert before <= entry["at"] <= datetime.now(UTC)

    def test_a_forbidden_move_changes_nothing(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        noted, generation = registry.audit(), registry.generation()
        with pytest.raises(IllegalTransition, match="registered cannot become paused"):
            registry.move("live-rooms", State.PAUSED, by="ann")
        assert registry.domain("live-rooms").state is State.REGISTERED
        assert (registry.audit(), registry.generation()) == (noted, generation)

    def test_moving_to_where_it_is_leaves_no_trace(self, registry: Registry) -> None:
        ready(registry)
        noted, generation = registry.audit(), registry.generation()
        assert registry.move("live-rooms", State.DATA_READY, by="ann").state is State.DATA_READY
        assert (registry.audit(), registry.generation()) == (noted, generation)

    def test_live_needs_something_that_answers(self, registry: Registry) -> None:
        ready(registry)
        with pytest.raises(IllegalTransition, match="no trained version live"):
            registry.move("live-rooms", State.LIVE, by="ann")

    def test_retired_is_for_good(self, registry: Registry) -> None:
        ready(registry, "a", "b")
        registry.promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.move("live-rooms", State.RETIRED, by="ann", why="page closed")
        for attempt in (
            lambda: registry.move("live-rooms", State.LIVE, by="ann"),
            lambda: registry.promote("live-rooms", "b", expect="a", who="ann", why=""),
            lambda: registry.roll_back("live-rooms", who="ann", why=""),
            lambda: registry.update_spec(spec(owner="other"), by="ann"),
        ):
            with pytest.raises(IllegalTransition):
                attempt()
        with pytest.raises(DomainAlreadyRegistered, match="retired, for good"):
            registry.register_domain(registry.domain("live-rooms").spec, by="ann")
        assert registry.live("live-rooms").version_id == "a"

    def test_a_pause_ends_where_the_pointer_says(self, registry: Registry) -> None:
        ready(registry, "a")
        for live, state in ((None, State.DATA_READY), ("a", State.LIVE)):
            if live is not None:
                registry.promote("live-rooms", live, expect=None, who="ann", why="")
            registry.move("live-rooms", State.PAUSED, by="ann")
            generation = registry.generation()
            assert registry.resume("live-rooms", by="ann").state is state
            assert registry.generation() == generation + 1
            assert registry.resume("live-rooms", by="ann").state is state
            assert registry.generation() == generation + 1
        with pytest.raises(IllegalTransition, match="trained version is live"):
            registry.move("live-rooms", State.DATA_READY, by="ann")


class TestIngests:
    def test_counts_add_up_and_a_repeat_adds_nothing(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        monday = {"rows_read": 12, "rows_added": 10, "rows_quarantined": 2, "reasons": {"label": 2}, "users": 5}
        tuesday = {
            "rows_read": 5,
            "rows_added": 4,
            "rows_quarantined": 1,
            "reasons": {"label": 1, "time": 1},
            "users": 7,
        }
        for report, times in ((monday, (100, 200)), (tuesday, (50, 300))):
            for _ in range(2):
                dated = {**report, "first_us": times[0], "last_us": times[1]}
                registry.record_ingest("live-rooms", f"ingest-{times[0]}", dated)
        assert registry.domain("live-rooms").counts == {
            "ingests": 2,
            "rows_read": 17,
            "rows_added": 14,
            "rows_quarantined": 3,
            "reasons": {"label": 3, "time": 1},
            "users": 7,
            "first_us": 50,
            "last_us": 300,
        }
        entries = [entry for entry in registry.audit("live-rooms") if entry["what"] == "record_ingest"]
        assert [entry["details"]["ingest_id"] for entry in entries] == ["ingest-50", "ingest-100"]

    def test_rows_make_a_domain_ready_and_no_rows_do_not(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        registry.record_ingest("live-rooms", "empty", {"rows_added": 0})
        assert registry.domain("live-rooms").state is State.REGISTERED
        registry.record_ingest("live-rooms", "full", {"rows_added": 1})
        assert registry.domain("live-rooms").state is State.DATA_READY

    def test_the_same_ingest_from_many_threads_counts_once(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        at_once(8, lambda n: registry.record_ingest("live-rooms", f"file-{n % 2}", {"rows_added": 5}))
        assert registry.domain("live-rooms").counts["rows_added"] == 10
