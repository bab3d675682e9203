"""The registry on SQLite and on PostgreSQL: the same promises, the same tests."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, text

from domains.errors import (
    Conflict,
    DomainAlreadyRegistered,
    DomainFault,
    IllegalTransition,
    InvalidData,
    InvalidSpec,
    NoLiveVersion,
    PromotionRefused,
    Rejected,
    StalePromotion,
    UnknownDomain,
    UnknownRun,
    UnknownVersion,
)
from domains.lifecycle import State
from domains.registry import migrations
from domains.registry.database import Database, advance
from domains.registry.records import Version
from domains.registry.registry import Registry
from domains.spec import DomainSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    return f"sqlite:///{tmp_path}/registry.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    opened = Registry(url)
    opened.migrate()
    yield opened
    opened.close()


def spec(name: str = "live-rooms", **other: object) -> DomainSpec:
    declared = {"name": name, "role": "target", "task": "ctr", "owner": "team-live"}
    return DomainSpec.from_mapping({**declared, "interactions": {"user": "u", "item": "i", "label": "click"}, **other})


def adapter(id: str, domain: str = "live-rooms") -> Version:
    return Version(id=id, kind="adapter", domain=domain, backbone_id="shared", level="adapter", artifact=f"tag:{id}")


def ready(registry: Registry, *ids: str, name: str = "live-rooms") -> Registry:
    """A domain with data, and these adapters of it on one backbone."""
    registry.register_domain(spec(name), by="ann")
    registry.record_ingest(name, "first", {"rows_added": 10})
    registry.add_version(Version(id="shared", kind="backbone", artifact="tag:shared"))
    for id in ids:
        registry.add_version(adapter(id, name))
    return registry


def at_once(callers: int, action: Callable[[int], object]) -> list[object]:
    """Call from many threads that start together; what each got, or the fault that it met."""
    gate = threading.Barrier(callers)

    def call(number: int) -> object:
        gate.wait()
        try:
            return action(number)
        except DomainFault as fault:
            return fault

    with ThreadPoolExecutor(callers) as pool:
        return list(pool.map(call, range(callers)))


def process(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


class TestMigrations:
    def test_up_check_down_and_up_again(self, url: str) -> None:
        """The migrations make exactly the tables of the code, take all of them away, and can make them again."""
        database = Database(url)
        for _ in range(2):
            with database.change_tables() as connection:
                migrations.upgrade(connection)
                migrations.check(connection)
            with database.change_tables() as connection:
                migrations.downgrade(connection, "base")
                assert set(inspect(connection).get_table_names()) <= {migrations.VERSION_TABLE}
        database.engine.dispose()

    def test_many_may_migrate_at_once(self, url: str) -> None:
        """Every service migrates as it starts, and they start together."""
        registries = [Registry(url) for _ in range(6)]
        assert at_once(6, lambda number: registries[number].migrate()) == [None] * 6
        assert registries[0].generation() == 0
        for registry in registries:
            registry.close()

    def test_half_a_migration_never_happened(self, url: str) -> None:
        """A fault after the tables were made leaves none of them."""
        database = Database(url)

        def cut_short() -> None:
            with database.change_tables() as connection:
                migrations.upgrade(connection)
                raise RuntimeError("power cut")

        with pytest.raises(RuntimeError):
            cut_short()
        with database.read() as connection:
            assert inspect(connection).get_table_names() == []
        database.engine.dispose()

    def test_migrating_again_keeps_everything(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        registry.migrate()
        assert [domain.name for domain in registry.domains()] == ["live-rooms"]


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

    def test_a_target_lends_nothing(self, registry: Registry) -> None:
        """A source may be registered later, but what is registered as a target is no source."""
        registry.register_domain(spec("grocery"), by="ann")
        with pytest.raises(InvalidSpec, match="'grocery' is registered as a target"):
            registry.register_domain(spec(sources=["grocery", "not-yet"]), by="ann")
        registry.register_domain(spec(sources=["not-yet"]), by="ann")


class TestLifecycle:
    def test_every_move_is_audited_with_who_when_and_why(self, registry: Registry) -> None:
        ready(registry)
        before = datetime.now(UTC)
        registry.move("live-rooms", State.TRAINING, by="ann", why="first launch")
        entry = registry.audit("live-rooms")[0]
        assert (entry["who"], entry["what"], entry["why"]) == ("ann", "move", "first launch")
        assert entry["details"] == {"before": "data_ready", "after": "training"}
        assert before <= entry["at"] <= datetime.now(UTC)

    def test_a_forbidden_move_changes_nothing(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        noted, generation = registry.audit(), registry.generation()
        with pytest.raises(IllegalTransition, match="registered cannot become training"):
            registry.move("live-rooms", State.TRAINING, by="ann")
        assert registry.domain("live-rooms").state is State.REGISTERED
        assert (registry.audit(), registry.generation()) == (noted, generation)

    def test_moving_to_where_it_is_leaves_no_trace(self, registry: Registry) -> None:
        ready(registry)
        noted, generation = registry.audit(), registry.generation()
        assert registry.move("live-rooms", State.DATA_READY, by="ann").state is State.DATA_READY
        assert (registry.audit(), registry.generation()) == (noted, generation)

    def test_live_needs_something_that_answers(self, registry: Registry) -> None:
        ready(registry)
        with pytest.raises(IllegalTransition, match="no live version"):
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
        assert registry.live("live-rooms").version_id == "a"


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
        assert [report["ingest_id"] for report in registry.ingests("live-rooms")] == ["ingest-50", "ingest-100"]

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


class TestRuns:
    def test_a_run_from_start_to_end(self, registry: Registry) -> None:
        registry.register_domain(spec(), by="ann")
        begun = registry.start_run("launch-domain", "live-rooms", params={"seeds": 5}, by="ann", run_id="r")
        assert (begun.state, begun.progress, begun.params) == ("running", 0.0, {"seeds": 5})
        registry.report_progress("r", 0.25, "training", loss=0.7)
        registry.report_progress("r", 0.5, "evaluating", epoch=3)
        registry.link_flow_run("r", "flow-1")
        halfway = registry.run("r")
        assert (halfway.progress, halfway.step, halfway.detail) == (0.5, "evaluating", {"loss": 0.7, "epoch": 3})
        ended = registry.finish_run("r", state="succeeded", result={"version": "a"})
        assert (ended.state, ended.progress, ended.result, ended.flow_run_id) == (
            "succeeded",
            1.0,
            {"version": "a"},
            "flow-1",
        )
        assert ended.started_at <= ended.finished_at
        assert registry.runs("live-rooms") == registry.runs() == [ended]

    def test_the_same_id_resumes_the_run(self, registry: Registry) -> None:
        begun = registry.start_run("train-shared", None, params={}, by="ann", run_id="r", state="queued")
        assert begun.state == "queued"
        registry.start_run("train-shared", None, params={}, by="ann", run_id="r")
        registry.report_progress("r", 0.4, "training")
        registry.finish_run("r", state="failed", error="worker died")
        again = registry.start_run("train-shared", None, params={}, by="ann", run_id="r")
        assert (again.state, again.error, again.finished_at) == ("running", None, None)
        assert (again.progress, again.started_at) == (0.4, begun.started_at)
        assert len(registry.runs()) == 1

    def test_an_id_belongs_to_one_kind_of_run(self, registry: Registry) -> None:
        registry.start_run("train-shared", None, params={}, by="ann", run_id="r")
        with pytest.raises(Conflict, match="is train-shared of None"):
            registry.start_run("retrain", None, params={}, by="ann", run_id="r")

    def test_the_first_end_stands(self, registry: Registry) -> None:
        """A crash hook or a progress report that comes late does not reopen what has ended."""
        registry.start_run("train-shared", None, params={}, by="ann", run_id="r")
        ended = registry.finish_run("r", state="cancelled")
        registry.report_progress("r", 0.9, "training")
        assert registry.finish_run("r", state="failed", error="killed") == ended
        with pytest.raises(Rejected):
            registry.finish_run("r", state="running")

    def test_progress_stays_between_none_and_all(self, registry: Registry) -> None:
        registry.start_run("train-shared", None, params={}, by="ann", run_id="r")
        for fraction, shown in ((0.5, 0.5), (float("nan"), 0.5), (1.5, 1.0), (-1.0, 0.0)):
            registry.report_progress("r", fraction, "training")
            assert registry.run("r").progress == shown

    def test_an_unknown_run_is_not_found(self, registry: Registry) -> None:
        with pytest.raises(UnknownRun):
            registry.run("never")
        with pytest.raises(UnknownRun):
            registry.report_progress("never", 0.5, "training")
        with pytest.raises(UnknownDomain):
            registry.start_run("launch-domain", "never", params={}, by="ann")


class TestVersions:
    def test_a_version_is_recorded_once(self, registry: Registry) -> None:
        ready(registry)
        first = registry.add_version(replace(adapter("a"), metrics={"auc": 0.7}, created_by="ann"))
        assert registry.add_version(replace(adapter("a"), metrics={"auc": 0.9})) == first
        assert registry.versions("live-rooms") == [first] == registry.versions(kind="adapter")
        assert first.metrics == {"auc": 0.7}

    def test_an_id_names_one_artifact(self, registry: Registry) -> None:
        ready(registry, "a")
        with pytest.raises(Conflict, match="another level"):
            registry.add_version(replace(adapter("a"), level="zero_shot"))

    def test_numbers_that_are_none_come_back_as_none(self, registry: Registry) -> None:
        """JSON knows no not-a-number, and PostgreSQL insists: both databases give null."""
        metrics = {"auc": float("nan"), "interval": [0.1, float("inf")]}
        version = registry.add_version(Version(id="b", kind="backbone", artifact="tag", metrics=metrics))
        assert version.metrics == registry.version("b").metrics == {"auc": None, "interval": [0.1, None]}

    def test_what_a_version_names_must_exist(self, registry: Registry) -> None:
        ready(registry, "a")
        with pytest.raises(UnknownDomain):
            registry.add_version(adapter("x", "never"))
        with pytest.raises(UnknownVersion):
            registry.add_version(replace(adapter("x"), backbone_id="never"))
        with pytest.raises(Rejected, match="not a backbone"):
            registry.add_version(replace(adapter("x"), backbone_id="a"))
        with pytest.raises(Rejected, match="names neither"):
            registry.add_version(Version(id="x", kind="backbone", domain="live-rooms", artifact="tag"))
        with pytest.raises(UnknownVersion):
            registry.version("x")


class TestPromotion:
    def test_a_promotion_flips_the_pointer_and_makes_the_domain_live(self, registry: Registry) -> None:
        ready(registry, "a")
        assert registry.live("live-rooms") is None
        generation = registry.generation()
        flip = registry.promote("live-rooms", "a", expect=None, who="ann", why="beats popularity")
        assert (flip.from_version, flip.to_version, flip.who, flip.why) == (None, "a", "ann", "beats popularity")
        pointer = registry.live("live-rooms")
        assert (pointer.version_id, pointer.generation) == ("a", generation + 1)
        assert registry.generation() == generation + 1
        assert registry.domain("live-rooms").state is State.LIVE
        assert registry.promotions("live-rooms") == [flip]

    def test_the_shared_model_has_a_pointer_of_its_own(self, registry: Registry) -> None:
        ready(registry, "a").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.promote(None, "shared", expect=None, who="ann", why="")
        assert {pointer.domain: pointer.version_id for pointer in registry.lives()} == {
            None: "shared",
            "live-rooms": "a",
        }
        assert registry.live(None).version_id == "shared"

    def test_a_stale_promotion_is_refused(self, registry: Registry) -> None:
        ready(registry, "a", "b", "c").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.promote("live-rooms", "b", expect="a", who="ann", why="")
        generation, noted = registry.generation(), registry.audit()
        with pytest.raises(StalePromotion) as refused:
            registry.promote("live-rooms", "c", expect="a", who="bob", why="")
        assert (refused.value.details["live"], refused.value.details["expected"]) == ("b", "a")
        assert (registry.generation(), registry.audit()) == (generation, noted)

    def test_a_repeated_promotion_is_the_same_promotion(self, registry: Registry) -> None:
        """A caller whose answer was lost asks again, and finds that it has happened."""
        ready(registry, "a")
        flip = registry.promote("live-rooms", "a", expect=None, who="ann", why="")
        generation = registry.generation()
        assert registry.promote("live-rooms", "a", expect=None, who="ann", why="") == flip
        assert registry.promote("live-rooms", "a", expect="a", who="ann", why="") == flip
        assert registry.generation() == generation

    def test_a_retrain_that_keeps_what_is_live_ends_live(self, registry: Registry) -> None:
        ready(registry, "a").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.move("live-rooms", State.TRAINING, by="ann", why="retrain")
        registry.promote("live-rooms", "a", expect="a", who="ann", why="nothing better")
        assert registry.domain("live-rooms").state is State.LIVE

    def test_a_zero_shot_version_answers_and_the_domain_is_still_to_be_launched(self, registry: Registry) -> None:
        ready(registry, "a").add_version(replace(adapter("z"), level="zero_shot"))
        registry.promote("live-rooms", "z", expect=None, who="ann", why="")
        assert registry.live("live-rooms").version_id == "z"
        assert registry.domain("live-rooms").state is State.DATA_READY
        registry.promote("live-rooms", "a", expect="z", who="ann", why="")
        assert registry.domain("live-rooms").state is State.LIVE

    def test_only_a_domains_own_versions_go_live_in_it(self, registry: Registry) -> None:
        ready(registry, "a")
        ready(registry, "g", name="grocery")
        for domain, version in (("live-rooms", "g"), ("live-rooms", "shared"), (None, "a")):
            with pytest.raises(PromotionRefused):
                registry.promote(domain, version, expect=None, who="ann", why="")
        with pytest.raises(UnknownVersion):
            registry.promote("live-rooms", "never", expect=None, who="ann", why="")
        with pytest.raises(UnknownDomain):
            registry.promote("never", "a", expect=None, who="ann", why="")

    def test_a_domain_without_data_cannot_go_live(self, registry: Registry) -> None:
        ready(registry).register_domain(spec("empty"), by="ann")
        registry.add_version(adapter("e", "empty"))
        with pytest.raises(IllegalTransition):
            registry.promote("empty", "e", expect=None, who="ann", why="")
        assert registry.live("empty") is None

    def test_of_many_challengers_at_once_one_goes_live(self, registry: Registry) -> None:
        ids = [f"v{n}" for n in range(12)]
        ready(registry, *ids)
        generation = registry.generation()
        outcomes = at_once(12, lambda n: registry.promote("live-rooms", ids[n], expect=None, who=f"p{n}", why=""))
        winners = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        assert len(winners) == 1
        assert all(isinstance(outcome, StalePromotion) for outcome in outcomes if outcome is not winners[0])
        assert registry.live("live-rooms").version_id == winners[0].to_version
        assert registry.generation() == generation + 1

    def test_racing_flips_form_one_chain(self, registry: Registry) -> None:
        """Each caller retries until it wins: every flip starts where the one before it ended, and none is lost."""
        ids = [f"v{n}" for n in range(8)]
        ready(registry, *ids)
        generation, seen, done = registry.generation(), [], threading.Event()

        def watch() -> None:
            while not done.is_set():
                seen.append(registry.generation())

        def insist(number: int) -> None:
            while True:
                pointer = registry.live("live-rooms")
                expect = None if pointer is None else pointer.version_id
                try:
                    registry.promote("live-rooms", ids[number], expect=expect, who=f"p{number}", why="")
                    return
                except StalePromotion:
                    continue

        watcher = threading.Thread(target=watch)
        watcher.start()
        at_once(8, insist)
        done.set()
        watcher.join()
        flips = registry.promotions("live-rooms")[::-1]
        assert sorted(flip.to_version for flip in flips) == ids
        assert [flip.from_version for flip in flips] == [None] + [flip.to_version for flip in flips[:-1]]
        assert registry.generation() == generation + len(flips)
        assert seen == sorted(seen)


class TestRollBack:
    def test_one_step_back_and_again_one_further(self, registry: Registry) -> None:
        ready(registry, "a", "b", "c")
        for version, expect in (("a", None), ("b", "a"), ("c", "b")):
            registry.promote("live-rooms", version, expect=expect, who="ann", why="")
        generation = registry.generation()
        back = registry.roll_back("live-rooms", who="bob", why="complaints")
        assert (back.kind, back.from_version, back.to_version, back.who, back.why) == (
            "roll_back",
            "c",
            "b",
            "bob",
            "complaints",
        )
        assert registry.roll_back("live-rooms", who="bob", why="").to_version == "a"
        assert registry.generation() == generation + 2
        with pytest.raises(NoLiveVersion, match="before a"):
            registry.roll_back("live-rooms", who="bob", why="")
        assert registry.live("live-rooms").version_id == "a"
        assert [flip.kind for flip in registry.promotions("live-rooms")] == ["roll_back"] * 2 + ["promote"] * 3

    def test_after_a_roll_back_the_next_promotion_rests_on_what_is_live(self, registry: Registry) -> None:
        """The version that was rolled away from is not what a later roll back returns to."""
        ready(registry, "a", "bad", "b").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.promote("live-rooms", "bad", expect="a", who="ann", why="")
        registry.roll_back("live-rooms", who="bob", why="")
        registry.promote("live-rooms", "b", expect="a", who="ann", why="")
        assert registry.roll_back("live-rooms", who="bob", why="").to_version == "a"

    def test_two_hands_on_the_button_go_one_back(self, registry: Registry) -> None:
        ready(registry, "a", "b", "c")
        for version, expect in (("a", None), ("b", "a"), ("c", "b")):
            registry.promote("live-rooms", version, expect=expect, who="ann", why="")
        outcomes = at_once(6, lambda n: registry.roll_back("live-rooms", who=f"p{n}", why="", expect="c"))
        assert sum(isinstance(outcome, StalePromotion) for outcome in outcomes) == 5
        assert registry.live("live-rooms").version_id == "b"

    def test_nothing_live_is_nothing_to_roll_back(self, registry: Registry) -> None:
        ready(registry)
        with pytest.raises(NoLiveVersion):
            registry.roll_back("live-rooms", who="ann", why="")
        with pytest.raises(NoLiveVersion):
            registry.roll_back(None, who="ann", why="")

    def test_a_roll_back_during_a_retrain_leaves_the_retrain_alone(self, registry: Registry) -> None:
        ready(registry, "a", "b").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.promote("live-rooms", "b", expect="a", who="ann", why="")
        registry.move("live-rooms", State.TRAINING, by="ann")
        registry.roll_back("live-rooms", who="bob", why="complaints")
        assert registry.domain("live-rooms").state is State.TRAINING
        assert registry.live("live-rooms").version_id == "a"


class TestPointerModel:
    @given(st.lists(st.one_of(st.sampled_from("abcd"), st.none()), max_size=15))
    @settings(max_examples=40, deadline=None)
    def test_any_sequence_of_flips_behaves_as_a_stack(self, steps: list[str | None]) -> None:
        """Promoting pushes (unless it is live already), rolling back pops, and the last version is never popped."""
        registry = Registry("sqlite://")
        registry.migrate()
        ready(registry, *"abcd")
        stack: list[str] = []
        for step in steps:
            top = stack[-1] if stack else None
            if step is not None:
                registry.promote("live-rooms", step, expect=top, who="ann", why="")
                stack += [step] if step != top else []
            elif len(stack) > 1:
                stack.pop()
                assert registry.roll_back("live-rooms", who="ann", why="").to_version == stack[-1]
            else:
                with pytest.raises(NoLiveVersion):
                    registry.roll_back("live-rooms", who="ann", why="")
            pointer = registry.live("live-rooms")
            assert (pointer.version_id if pointer else None) == (stack[-1] if stack else None)
        registry.close()


class TestGeneration:
    def test_it_grows_with_whatever_a_server_must_notice(self, registry: Registry) -> None:
        changes: list[Callable[[], object]] = [
            lambda: ready(registry, "a", "b"),
            lambda: registry.update_spec(spec(owner="other"), by="ann"),
            lambda: registry.record_ingest("live-rooms", "second", {"rows_added": 1}),
            lambda: registry.promote("live-rooms", "a", expect=None, who="ann", why=""),
            lambda: registry.promote("live-rooms", "b", expect="a", who="ann", why=""),
            lambda: registry.roll_back("live-rooms", who="ann", why=""),
            lambda: registry.move("live-rooms", State.PAUSED, by="ann"),
        ]
        for change in changes:
            before = registry.generation()
            change()
            assert registry.generation() > before

    def test_traffic_does_not_wake_the_servers(self, registry: Registry) -> None:
        ready(registry)
        before = registry.generation()
        registry.report_progress(registry.start_run("retrain", "live-rooms", params={}, by="ann").id, 0.5, "training")
        registry.log_predictions([prediction()])
        registry.log_feedback([click()])
        assert registry.generation() == before

    def test_it_is_read_while_another_writes(self, registry: Registry, url: str) -> None:
        """A poll never waits for a writer, and sees nothing of what is not committed."""
        before = registry.generation()
        other = Database(url)
        with other.write() as connection:
            advance(connection, "generation")
            began = time.monotonic()
            assert registry.generation() == before
            assert time.monotonic() - began < 1
        assert registry.generation() == before + 1
        other.engine.dispose()


def prediction(item: str = "i1", request: str = "q1", **other: object) -> dict[str, object]:
    return {"request_id": request, "domain": "live-rooms", "user_id": "u1", "item_id": item, "score": 0.5, **other}


def click(item: str = "i1", request: str = "q1", action: str = "click", **other: object) -> dict[str, object]:
    return {"request_id": request, "item_id": item, "action": action, **other}


class TestJudgingAgain:
    def test_a_newer_report_takes_the_place_of_the_old_one(self, registry: Registry) -> None:
        """The weights are the same, so it is the same version; the audit says that the verdict changed."""
        ready(registry, "a")
        judged = {"metrics": {"auc": 1}, "report": {"decision": {"verdict": "hold"}}, "certificate": {"ok": True}}
        again = registry.reevaluate("a", **judged, config={"seed": 1}, by="ann")
        assert (again.report, again.config, again.id) == (judged["report"], {"seed": 1}, "a")
        assert registry.version("a") == again
        (entry,) = [entry for entry in registry.audit() if entry["what"] == "reevaluate"]
        assert (entry["who"], entry["details"]["after"]) == ("ann", "hold")
        with pytest.raises(UnknownVersion):
            registry.reevaluate("nobody", **judged, config={}, by="ann")


class TestPredictionLog:
    def test_feedback_joins_its_prediction(self, registry: Registry) -> None:
        registry.log_predictions([prediction(position=3, model_version="a", served_by="adapter", shadow=True)])
        assert registry.log_feedback([click(label=1, seconds=12)]) == 1
        (row,) = registry.feedback("live-rooms")
        assert (row["user_id"], row["score"], row["position"], row["model_version"]) == ("u1", 0.5, 3, "a")
        assert (row["served_by"], row["value"], row["detail"]) == ("adapter", 1.0, {"seconds": 12})

    def test_sent_twice_is_kept_once(self, registry: Registry) -> None:
        for _ in range(2):
            registry.log_predictions([prediction("i1"), prediction("i2"), prediction("i1", score=0.9)])
        assert registry.log_feedback([click("i1"), click("i2"), click("i1")]) == 2
        assert registry.log_feedback([click("i1"), click("i1", action="buy")]) == 1
        found = registry.feedback("live-rooms")
        assert [(row["item_id"], row["action"], row["score"]) for row in found] == [
            ("i1", "click", 0.5),
            ("i2", "click", 0.5),
            ("i1", "buy", 0.5),
        ]

    def test_feedback_may_come_before_its_prediction(self, registry: Registry) -> None:
        """It waits, and is paged after rows that overtook it: a reader who has passed them still sees it."""
        assert registry.log_feedback([click(request="early")]) == 1
        registry.log_predictions([prediction()])
        registry.log_feedback([click()])
        (first,) = registry.feedback("live-rooms")
        registry.log_predictions([prediction(request="early")])
        (late,) = registry.feedback("live-rooms", after_id=first["id"])
        assert (late["request_id"], late["user_id"], late["score"]) == ("early", "u1", 0.5)

    def test_old_answers_are_forgotten_and_young_ones_kept(self, registry: Registry) -> None:
        """In batches, with their feedback, also feedback whose request never became known; again changes nothing."""
        registry.register_domain(spec(), by="ann")
        today = datetime.now(UTC)
        for number in range(25):
            at = today - timedelta(days=10 if number < 20 else 1, seconds=number)
            registry.log_predictions([prediction(request=f"q{number}", at=at)])
            registry.log_feedback([click(request=f"q{number}", at=at)])
        registry.log_feedback([click(request="never-asked", at=today - timedelta(days=10))])
        assert registry.forget_answers(today - timedelta(days=5), batch=3) == 20 + 20 + 1
        left = registry.feedback("live-rooms")
        assert sorted(row["request_id"] for row in left) == ["q20", "q21", "q22", "q23", "q24"]
        assert {row["score"] for row in left} == {0.5}
        assert set(registry.answered({f"q{number}" for number in range(25)})) == {
            f"q{number}" for number in range(20, 25)
        }
        assert registry.forget_answers(today - timedelta(days=5)) == 0

    def test_a_reader_that_pages_misses_nothing(self, registry: Registry) -> None:
        """Ids appear in the order of commits, whoever writes at the same time."""
        seen: list[tuple[int, str]] = []
        done = threading.Event()

        def page() -> None:
            while True:
                ending = done.is_set()
                rows = registry.feedback("live-rooms", after_id=seen[-1][0] if seen else 0, limit=7)
                seen.extend((row["id"], row["item_id"]) for row in rows)
                if ending and not rows:
                    return

        reader = threading.Thread(target=page)
        reader.start()

        def write(number: int) -> None:
            for batch in range(5):
                registry.log_feedback([click(f"{number}-{batch}-{n}", domain="live-rooms") for n in range(3)])

        at_once(6, write)
        done.set()
        reader.join()
        assert sorted(item for _, item in seen) == sorted(
            f"{w}-{b}-{n}" for w in range(6) for b in range(5) for n in range(3)
        )

    @pytest.mark.parametrize(
        ("wrong", "field"),
        [
            ({"item_id": None}, "item_id"),
            ({"user_id": ""}, "user_id"),
            ({"user_id": 7}, "user_id"),
            ({"user_id": "a\x00b"}, "user_id"),
            ({"request_id": "x" * 201}, "request_id"),
            ({"score": "high"}, "score"),
            ({"at": "yesterday"}, "at"),
        ],
    )
    def test_a_wrong_row_is_named_and_none_is_kept(self, registry: Registry, wrong: dict, field: str) -> None:
        with pytest.raises(InvalidData, match="row 2") as refused:
            registry.log_predictions([prediction(), {**prediction("i2"), **wrong}])
        assert refused.value.details == {"row": 2, "field": field}
        registry.log_feedback([click()])
        assert registry.feedback("live-rooms") == []

    def test_no_rows_are_no_work(self, registry: Registry) -> None:
        registry.log_predictions([])
        assert registry.log_feedback([]) == 0

    def test_times_are_kept_in_utc(self, registry: Registry) -> None:
        """Another zone is converted, a naive time is taken to be UTC, a number is microseconds."""
        noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
        tokyo = noon.astimezone(timezone(timedelta(hours=9)))
        moments = [tokyo, noon.replace(tzinfo=None), int(noon.timestamp() * 1e6)]
        registry.log_feedback([click(f"i{n}", at=at, domain="live-rooms") for n, at in enumerate(moments)])
        assert [row["at"] for row in registry.feedback("live-rooms")] == [noon] * 3
        assert {row["at"].tzinfo for row in registry.feedback("live-rooms")} == {UTC}


class TestFaults:
    def test_killed_writers_lose_nothing_that_was_acknowledged(self, registry: Registry, url: str) -> None:
        """kill -9 amid a stream of writes: every domain whose registration was answered is there, whole."""
        script = """
import sys
from domains.registry.registry import Registry
from domains.spec import DomainSpec
registry = Registry(sys.argv[1])
for n in range(100_000):
    name = f"{sys.argv[2]}-{n}"
    registry.register_domain(DomainSpec.from_mapping({"name": name, "role": "target", "task": "ctr", "owner": "t",
        "interactions": {"user": "u", "item": "i"}}), by="t")
    registry.record_ingest(name, "first", {"rows_added": 1})
    print(name, flush=True)
"""
        acknowledged: list[str] = []
        for attempt in ("red", "blue"):
            writer = process(script, url, attempt)
            acknowledged += [writer.stdout.readline().strip() for _ in range(15)]
            writer.send_signal(signal.SIGKILL)
            acknowledged += writer.communicate(timeout=30)[0].split("\n")[:-1]
        kept = {domain.name: domain for domain in registry.domains()}
        assert set(acknowledged) <= set(kept)
        assert all(kept[name].counts["rows_added"] == 1 for name in acknowledged)
        assert sorted(domain.number for domain in kept.values()) == list(range(1, len(kept) + 1))
        assert registry.register_domain(spec("after"), by="ann").number == len(kept) + 1

    def test_killed_inside_a_transaction_leaves_no_trace_and_no_lock(self, registry: Registry, url: str) -> None:
        script = """
import sys, time
from sqlalchemy import text
from domains.registry.database import Database, advance
with Database(sys.argv[1]).write() as connection:
    advance(connection, "generation", by=1000)
    connection.execute(text("UPDATE domains SET state = 'retired'"))
    print("inside", flush=True)
    time.sleep(600)
"""
        ready(registry)
        before = registry.generation()
        writer = process(script, url)
        assert writer.stdout.readline().strip() == "inside"
        writer.kill()
        writer.communicate(timeout=30)
        registry.move("live-rooms", State.TRAINING, by="ann")
        assert registry.generation() == before + 1

    def test_a_forked_child_opens_connections_of_its_own(self, registry: Registry, url: str) -> None:
        script = """
import os, sys
from domains.registry.registry import Registry
registry = Registry(sys.argv[1])
before = registry.generation()
child = os.fork()
if child == 0:
    ok = all(registry.generation() == before for _ in range(50))
    os._exit(0 if ok else 1)
ok = all(registry.generation() == before for _ in range(50))
_, status = os.waitpid(child, 0)
print("fine" if ok and status == 0 else "broken", registry.generation() == before)
"""
        assert process(script, url).communicate(timeout=60)[0].split() == ["fine", "True"]

    def test_what_comes_out_is_detached(self, registry: Registry) -> None:
        """Changing a value that was handed out changes nothing that is kept."""
        ready(registry)
        domain = registry.domain("live-rooms")
        domain.counts["rows_added"] = 0
        assert registry.domain("live-rooms").counts["rows_added"] == 10
        with pytest.raises(FrozenInstanceError):
            domain.state = State.LIVE

    def test_times_come_out_in_utc_whatever_the_session_says(self, registry: Registry, url: str) -> None:
        ready(registry)
        zone = "?options=-c%20timezone%3DAsia/Tokyo" if url.startswith("postgresql") else ""
        elsewhere = Registry(url + zone)
        created = elsewhere.domain("live-rooms").created_at
        assert created.tzinfo is UTC
        assert created == registry.domain("live-rooms").created_at
        elsewhere.close()


class TestDatabases:
    def test_sqlite_is_set_up_on_every_connection(self, tmp_path: Path) -> None:
        """Write-ahead log, patience, durable commits and foreign keys; the folder is made when it is missing."""
        database = Database(f"sqlite:///{tmp_path}/deep/down/registry.db")
        with database.change_tables() as connection:
            migrations.upgrade(connection)
        for _ in range(2):
            with database.read() as connection:
                pragmas = ("journal_mode", "busy_timeout", "synchronous", "foreign_keys")
                values = [connection.execute(text(f"PRAGMA {pragma}")).scalar_one() for pragma in pragmas]
                assert values == ["wal", 30_000, 2, 1]
            database.engine.dispose()

    def test_a_new_sqlite_file_that_is_busy_is_waited_for(self, tmp_path: Path) -> None:
        """The switch to write-ahead logging fails at once while another process makes the file: tried again."""
        creator = sqlite3.connect(tmp_path / "registry.db", isolation_level=None, check_same_thread=False)
        creator.execute("BEGIN IMMEDIATE")
        creator.execute("CREATE TABLE being_made (x)")
        release = threading.Timer(0.3, lambda: creator.execute("COMMIT"))
        release.start()
        database = Database(f"sqlite:///{tmp_path}/registry.db")
        with database.read() as connection:
            assert connection.execute(text("SELECT count(*) FROM being_made")).scalar_one() == 0
        release.join()
        creator.close()
        database.engine.dispose()

    def test_memory_serves_many_threads(self) -> None:
        registry = Registry("sqlite://")
        registry.migrate()
        at_once(8, lambda n: registry.register_domain(spec(f"name-{n}"), by="ann"))
        assert len(registry.domains()) == 8

    @pytest.mark.parametrize("url", ["mysql://host/name", "registry.db", ""])
    def test_other_databases_are_refused_by_name(self, url: str) -> None:
        with pytest.raises(DomainFault, match=r"SQLite or PostgreSQL|must be a URL"):
            Registry(url)
