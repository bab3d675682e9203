"""What may be forgotten, on each kind of database; and that nothing in use ever is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule
from sqlalchemy import insert

from domains.errors import Conflict, DomainFault, PromotionRefused
from domains.registry.database import Database
from domains.registry.records import Version
from domains.registry.registry import Registry
from domains.registry.tables import audit
from tests.integration.registry.fakes import adapter, ready, spec

TODAY = datetime.now(UTC)
LONG_AGO = TODAY - timedelta(days=400)


def made(id: str, days_ago: int, domain: str = "live-rooms") -> Version:
    """An adapter of the shared model that was made so many days ago."""
    of_now = adapter(id, domain)
    return Version(**{**vars(of_now), "created_at": TODAY - timedelta(days=days_ago)})


def collect(registry: Registry, *, keep: int = 1, used: frozenset[str] = frozenset()) -> set[str]:
    """Ids of all versions that are marked now."""
    return {id for id, _ in registry.collect_versions(keep=keep, made_before=TODAY - timedelta(days=1), used=used)}


def test_versions_in_use_stay_and_the_rest_goes_but_for_the_newest(registry):
    """Live, what a roll back returns to, what waits, what a run names, the newest, and the base of each of them."""
    ready(registry)
    for number in range(8):
        registry.add_version(made(f"v{number}", 100 - number))
    for before, after in ((None, "v0"), ("v0", "v1"), ("v1", "v2")):
        registry.promote("live-rooms", after, expect=before, who="ann", why="test")
    registry.offer("live-rooms", "v3", by="ann")
    assert collect(registry, used=frozenset({"v4"})) == {"v0", "v5", "v6"}
    assert registry.version("v5").collected_at is not None
    with pytest.raises(PromotionRefused, match="files were deleted"):
        registry.promote("live-rooms", "v5", expect="v2", who="ann", why="test", force=True)
    registry.roll_back("live-rooms", who="ann", why="test")
    with pytest.raises(PromotionRefused, match="files were deleted"):
        registry.roll_back("live-rooms", who="ann", why="test")
    assert registry.live("live-rooms").version_id == "v1"


def test_a_version_that_is_published_again_is_wanted_again(registry):
    """Its mark goes, and it counts as new."""
    ready(registry)
    for id, days in (("old", 30), ("new", 20)):
        registry.add_version(made(id, days))
    assert collect(registry) == {"old"}
    registry.add_version(made("old", 0))
    assert collect(registry) == {"new"}
    registry.promote("live-rooms", "old", expect=None, who="ann", why="test")


def test_a_shared_model_stays_while_one_kept_adapter_rests_on_it(registry):
    """However old it is."""
    ready(registry)
    for id in ("base-1", "base-2", "base-3"):
        registry.add_version(Version(id=id, kind="backbone", artifact=id, created_at=LONG_AGO))
    registry.add_version(Version(**{**vars(made("a", 30)), "backbone_id": "base-1"}))
    registry.promote("live-rooms", "a", expect=None, who="ann", why="test")
    assert collect(registry) == {"base-2", "base-3"}


def test_old_runs_go_but_for_the_newest_of_each_kind(registry, monkeypatch):
    """And never one that is under way."""
    ready(registry)
    for number in range(25):
        registry.start_run("ingest", "live-rooms", params={}, by="ann", run_id=f"r{number:02d}")
        if number:
            registry.finish_run(f"r{number:02d}", state="succeeded")
    registry.start_run("preview", "live-rooms", params={}, by="ann", run_id="only")
    registry.finish_run("only", state="succeeded")
    assert registry.forget_runs(LONG_AGO) == []
    assert sorted(registry.forget_runs(datetime.now(UTC))) == ["r01", "r02", "r03", "r04"]
    left = {run.id for run in registry.runs(limit=100)}
    assert {"r00", "only", "r24"} <= left
    assert len(left) == 22


def test_the_audit_log_forgets_what_is_older(url, registry):
    """In portions, and nothing younger."""
    ready(registry)
    entry = {"who": "ann", "what": "refuse", "domain": None, "details": {}}
    database = Database(url)
    with database.write() as connection:
        for number in range(1100):
            connection.execute(insert(audit).values(at=LONG_AGO, why=str(number), **entry))
    database.engine.dispose()
    young = len(registry.audit(limit=10_000)) - 1100
    assert registry.forget_audit(LONG_AGO) == 0
    assert registry.forget_audit(LONG_AGO + timedelta(seconds=1)) == 1100
    assert registry.forget_audit(TODAY + timedelta(days=1)) == 0, "none of the last year, whatever is asked"
    assert len(registry.audit(limit=10_000)) == young


def test_the_log_of_answers_is_counted_and_knows_its_oldest_row(registry):
    """Over all domains."""
    ready(registry)
    assert (registry.logged_rows(), registry.oldest_answer()) == (0, None)
    row = {"request_id": "r", "domain": "live-rooms", "user_id": "u", "item_id": "i"}
    registry.log_predictions([{**row, "at": LONG_AGO}, {**row, "item_id": "j"}])
    registry.log_feedback([{**row, "action": "click"}])
    assert registry.logged_rows() == 3
    assert registry.oldest_answer() == LONG_AGO


DOMAINS = ("one", "two")


class Forgetting(RuleBasedStateMachine):
    """Versions come, go live, are rolled back, offered, withdrawn and collected in any order."""

    made_versions = Bundle("versions")

    @initialize()
    def begin(self) -> None:
        self.registry = Registry("sqlite://")
        self.registry.migrate()
        self.count = 0
        self.registry.add_version(Version(id="b0", kind="backbone", artifact="b0", created_at=LONG_AGO))
        self.backbones = ["b0"]
        for name in DOMAINS:
            self.registry.register_domain(spec(name), by="ann")
            self.registry.record_ingest(name, "first", {"rows_added": 10})

    def teardown(self) -> None:
        self.registry.close()

    @rule()
    def train(self) -> None:
        self.backbones.append(f"b{len(self.backbones)}")
        at = LONG_AGO + timedelta(hours=self.count)
        self.registry.add_version(Version(id=self.backbones[-1], kind="backbone", artifact="b", created_at=at))

    @rule(target=made_versions, domain=st.sampled_from(DOMAINS), of=st.integers(0, 3))
    def launch(self, domain: str, of: int) -> str:
        self.count += 1
        id, at = f"v{self.count}", LONG_AGO + timedelta(hours=self.count)
        backbone = self.backbones[-1 - of % len(self.backbones)]
        whole = Version(**{**vars(adapter(id, domain)), "backbone_id": backbone, "created_at": at})
        if self.registry.version(backbone).collected_at is None:
            self.registry.add_version(whole)
        else:
            self.registry.add_version(Version(id=backbone, kind="backbone", artifact="b", created_at=at))
            self.registry.add_version(whole)
        return id

    @rule(id=made_versions)
    def promote(self, id: str) -> None:
        version = self.registry.version(id)
        live = self.registry.live(version.domain)
        try:
            self.registry.promote(
                version.domain, id, expect=live.version_id if live else None, who="ann", why="test", force=True
            )
        except PromotionRefused:
            assert version.collected_at is not None

    @rule(id=made_versions)
    def offer(self, id: str) -> None:
        version = self.registry.version(id)
        if version.collected_at is None:
            self.registry.offer(version.domain, id, by="ann")

    @rule(domain=st.sampled_from(DOMAINS))
    def roll_back(self, domain: str) -> None:
        try:
            self.registry.roll_back(domain, who="ann", why="test")
        except (DomainFault, Conflict):
            return

    @rule(domain=st.sampled_from(DOMAINS))
    def withdraw(self, domain: str) -> None:
        self.registry.withdraw(domain, who="ann", why="test")

    @rule(keep=st.integers(1, 3), used=st.sets(st.integers(1, 20)))
    def collect(self, keep: int, used: set[int]) -> None:
        named = {f"v{number}" for number in used}
        earlier = {domain: self.registry.earlier(domain) for domain in DOMAINS}
        fresh = {version.id for version in self.registry.versions() if version.collected_at is None}
        self.registry.collect_versions(keep=keep, made_before=TODAY, used=named)
        for domain in DOMAINS:
            of_domain = [version for version in self.registry.versions(domain) if version.id in fresh]
            assert all(version.collected_at is None for version in of_domain[:keep] if version.id in fresh)
            if earlier[domain] in fresh:
                assert self.registry.version(earlier[domain]).collected_at is None
        for id in named & fresh:
            assert self.registry.version(id).collected_at is None

    @invariant()
    def nothing_in_use_is_ever_deleted(self) -> None:
        if not hasattr(self, "registry"):
            return
        live = {pointer.version_id for pointer in self.registry.lives()}
        waiting = {domain.challenger for domain in self.registry.domains() if domain.challenger}
        for id in live | waiting:
            version = self.registry.version(id)
            assert version.collected_at is None
            assert version.backbone_id is None or self.registry.version(version.backbone_id).collected_at is None


TestForgetting = Forgetting.TestCase
TestForgetting.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
