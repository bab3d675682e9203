"""One function runs anything here, one starts it elsewhere."""

import time

import pytest
import torch

from domains.errors import UnknownDomain
from orchestrator import use_cases
from orchestrator.errors import FlowsUnavailable
from orchestrator.jobs.runner import Step
from orchestrator.settings import Settings


@pytest.fixture
def settings(tmp_path) -> Settings:
    """A home of its own; no Prefect server answers."""
    return Settings(home=tmp_path, prefect_port=1)


@pytest.fixture
def one_step(monkeypatch):
    """Replaces the steps of every kind of run by one."""
    return lambda work: monkeypatch.setattr(use_cases, "steps", lambda kind: (Step("Do the work", work),))


@pytest.fixture(autouse=True)
def same_threads():
    """Leaves the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_training_computes_with_the_threads_of_the_settings(settings, one_step):
    """The setting takes effect in one process too; 0 changes nothing."""
    registry, seen = use_cases.open_registry(settings), []
    one_step(lambda context: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    for threads in (0, before + 2):
        changed = settings.model_copy(update={"threads": threads})
        use_cases.run("train-shared", registry=registry, settings=changed, by="test")
    assert seen == [before, before + 2]


def test_a_run_in_a_thread_returns_at_once_and_records_how_it_ended(settings, one_step):
    """Its error reaches nobody but the registry."""
    registry = use_cases.open_registry(settings)

    def fail(context):
        raise ValueError(f"no {context.params['fruit']}")

    one_step(fail)
    run = use_cases.start(
        "train-shared", params={"fruit": "figs"}, registry=registry, settings=settings, by="test", local=True
    )
    deadline = time.monotonic() + 20
    while registry.run(run.id).finished_at is None and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = registry.run(run.id)
    assert (ended.state, ended.error, ended.params) == ("failed", "no figs", {"fruit": "figs"})


def test_a_run_that_prefect_does_not_take_is_recorded_as_failed(settings):
    """The caller gets the error, the registry keeps it."""
    registry = use_cases.open_registry(settings)
    with pytest.raises(FlowsUnavailable, match="graft up"):
        use_cases.start("train-shared", registry=registry, settings=settings, by="test")
    assert registry.runs()[0].state == "failed"


@pytest.mark.parametrize("begin", [use_cases.run, use_cases.start])
def test_a_run_of_an_unknown_domain_is_refused_before_it_is_recorded(settings, begin):
    """A misspelt name leaves nothing behind."""
    registry = use_cases.open_registry(settings)
    with pytest.raises(UnknownDomain, match="ghost"):
        begin("launch-domain", "ghost", registry=registry, settings=settings, by="test")
    assert registry.runs() == []
