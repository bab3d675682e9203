"""Runs in the registry, and the generation that servers poll."""

import time
from collections.abc import Callable

import pytest

from domains.errors import (
    Conflict,
    Rejected,
    UnknownDomain,
    UnknownRun,
)
from domains.lifecycle import State
from domains.registry.database import Database, advance
from domains.registry.registry import Registry
from tests.integration.registry.fakes import click, prediction, ready, spec


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

    def test_only_the_first_end_counts(self, registry: Registry) -> None:
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
