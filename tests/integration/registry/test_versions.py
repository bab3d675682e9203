"""Versions and live pointers in the registry, on SQLite and on PostgreSQL."""

import threading
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.errors import (
    Conflict,
    IllegalTransition,
    NoLiveVersion,
    PromotionRefused,
    Rejected,
    StalePromotion,
    UnknownDomain,
    UnknownVersion,
)
from domains.lifecycle import State
from domains.registry.records import Version
from domains.registry.registry import Registry
from tests.integration.registry.fakes import adapter, at_once, ready, spec


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
        promotion = registry.promote("live-rooms", "a", expect=None, who="ann", why="beats popularity")
        assert (promotion.from_version, promotion.to_version, promotion.who, promotion.why) == (
            None,
            "a",
            "ann",
            "beats popularity",
        )
        pointer = registry.live("live-rooms")
        assert (pointer.version_id, pointer.generation) == ("a", generation + 1)
        assert registry.generation() == generation + 1
        assert registry.domain("live-rooms").state is State.LIVE
        assert registry.promotions("live-rooms") == [promotion]

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
        promotion = registry.promote("live-rooms", "a", expect=None, who="ann", why="")
        generation = registry.generation()
        assert registry.promote("live-rooms", "a", expect=None, who="ann", why="") == promotion
        assert registry.promote("live-rooms", "a", expect="a", who="ann", why="") == promotion
        assert registry.generation() == generation

    def test_a_promotion_never_undoes_a_pause(self, registry: Registry) -> None:
        """A retrain moves the pointer of a paused domain, and a person says when it answers again."""
        ready(registry, "a", "b").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.move("live-rooms", State.PAUSED, by="ann", why="complaints")
        for version in ("a", "b"):
            registry.promote("live-rooms", version, expect="a", who="schedule", why="retrained")
            assert registry.domain("live-rooms").state is State.PAUSED
        assert registry.live("live-rooms").version_id == "b"

    def test_what_waits_is_named_until_something_is_promoted(self, registry: Registry) -> None:
        ready(registry, "a", "b")
        ready(registry, "g", name="grocery")
        assert registry.offer("live-rooms", "a", by="ann").challenger == "a"
        with pytest.raises(Rejected, match="not one of"):
            registry.offer("live-rooms", "g", by="ann")
        assert registry.offer("live-rooms", "b", by="ann").challenger == "b"
        registry.promote("live-rooms", "b", expect=None, who="ann", why="")
        assert registry.domain("live-rooms").challenger is None
        registry.offer("live-rooms", "a", by="ann")
        assert registry.move("live-rooms", State.RETIRED, by="ann").challenger is None

    def test_a_forced_promotion_is_marked_for_good(self, registry: Registry) -> None:
        ready(registry, "a", "b").promote("live-rooms", "a", expect=None, who="ann", why="late", force=True)
        registry.promote("live-rooms", "b", expect="a", who="ann", why="")
        registry.roll_back("live-rooms", who="bob", why="")
        assert [move.kind for move in registry.promotions("live-rooms")] == ["roll_back", "promote", "force"]
        assert [entry["why"] for entry in registry.audit("live-rooms") if entry["what"] == "force"] == ["late"]

    def test_what_is_live_already_gets_its_mark_and_keeps_what_it_rests_on(self, registry: Registry) -> None:
        ready(registry, "a", "b").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.promote("live-rooms", "b", expect="a", who="ann", why="")
        generation = registry.generation()
        marked = registry.promote("live-rooms", "b", expect="b", who="bob", why="a leak came out", force=True)
        assert (marked.kind, marked.from_version, marked.to_version) == ("force", "b", "b")
        assert registry.generation() > generation
        assert registry.promote("live-rooms", "b", expect="b", who="bob", why="again", force=True) == marked
        assert registry.forced("live-rooms") == registry.forced() == {"b": marked}
        assert registry.roll_back("live-rooms", who="bob", why="").to_version == "a"

    def test_a_zero_shot_version_answers_and_the_domain_is_still_to_be_launched(self, registry: Registry) -> None:
        ready(registry, "a").add_version(replace(adapter("z"), level="zero_shot"))
        registry.promote("live-rooms", "z", expect=None, who="ann", why="")
        assert registry.live("live-rooms").version_id == "z"
        assert registry.domain("live-rooms").state is State.DATA_READY
        registry.promote("live-rooms", "a", expect="z", who="ann", why="")
        assert registry.domain("live-rooms").state is State.LIVE
        registry.roll_back("live-rooms", who="bob", why="")
        assert registry.live("live-rooms").level == "zero_shot"
        assert registry.domain("live-rooms").state is State.DATA_READY

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
        """Each caller retries until it wins: every move starts where the one before it ended, and none is lost."""
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
        moves = registry.promotions("live-rooms")[::-1]
        assert sorted(move.to_version for move in moves) == ids
        assert [move.from_version for move in moves] == [None] + [move.to_version for move in moves[:-1]]
        assert registry.generation() == generation + len(moves)
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
        with pytest.raises(NoLiveVersion, match=r"no earlier version to go back to \(live: a\)"):
            registry.roll_back("live-rooms", who="bob", why="")
        assert registry.live("live-rooms").version_id == "a"
        assert [move.kind for move in registry.promotions("live-rooms")] == ["roll_back"] * 2 + ["promote"] * 3

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

    def test_a_roll_back_leaves_a_pause_alone(self, registry: Registry) -> None:
        ready(registry, "a", "b").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.promote("live-rooms", "b", expect="a", who="ann", why="")
        registry.move("live-rooms", State.PAUSED, by="ann")
        registry.roll_back("live-rooms", who="bob", why="complaints")
        assert registry.domain("live-rooms").state is State.PAUSED
        assert registry.live("live-rooms").version_id == "a"


class TestWithdrawal:
    def test_nothing_is_live_afterwards_and_no_roll_back_brings_it_back(self, registry: Registry) -> None:
        ready(registry, "a", "b").promote("live-rooms", "a", expect=None, who="ann", why="")
        generation = registry.generation()
        taken = registry.withdraw("live-rooms", who="ann", why="hold", expect="a")
        assert (taken.kind, taken.from_version, taken.to_version, taken.why) == ("withdraw", "a", None, "hold")
        assert registry.live("live-rooms") is None
        assert registry.domain("live-rooms").state is State.DATA_READY
        assert registry.generation() > generation
        assert registry.withdraw("live-rooms", who="ann", why="again") is None
        with pytest.raises(NoLiveVersion):
            registry.roll_back("live-rooms", who="bob", why="")
        registry.promote("live-rooms", "b", expect=None, who="ann", why="")
        with pytest.raises(NoLiveVersion, match="no earlier version"):
            registry.roll_back("live-rooms", who="bob", why="")

    def test_only_what_was_judged_is_withdrawn(self, registry: Registry) -> None:
        ready(registry, "a").promote("live-rooms", "a", expect=None, who="ann", why="")
        with pytest.raises(StalePromotion):
            registry.withdraw("live-rooms", who="ann", why="", expect="b")
        assert registry.live("live-rooms").version_id == "a"

    def test_a_paused_domain_stays_paused(self, registry: Registry) -> None:
        ready(registry, "a").promote("live-rooms", "a", expect=None, who="ann", why="")
        registry.move("live-rooms", State.PAUSED, by="ann")
        registry.withdraw("live-rooms", who="ann", why="")
        assert registry.domain("live-rooms").state is State.PAUSED


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


class TestReevaluation:
    def test_a_newer_report_takes_the_place_of_the_old_one(self, registry: Registry) -> None:
        """The weights are the same, so it is the same version; the audit says that the verdict changed."""
        ready(registry, "a")
        evaluated = {"metrics": {"auc": 1}, "report": {"leaks": []}, "certificate": {"ok": True}, "by": "ann"}
        again = registry.reevaluate("a", **evaluated, config={"seed": 1}, noted={"before": "ship", "after": "hold"})
        assert (again.report, again.config, again.id) == (evaluated["report"], {"seed": 1}, "a")
        assert registry.version("a") == again
        (entry,) = [entry for entry in registry.audit() if entry["what"] == "reevaluate"]
        assert (entry["who"], entry["details"]["after"]) == ("ann", "hold")
        with pytest.raises(UnknownVersion):
            registry.reevaluate("nobody", **evaluated, config={}, noted={})
