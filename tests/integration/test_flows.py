"""Flows on a real Prefect server in this process: named steps, retries, resuming, deployments."""

import os
import tempfile

# Prefect reads these once, at its first import.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="graft-prefect-")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
os.environ["PREFECT_LOGGING_TO_API_ENABLED"] = "false"

import httpx
import pytest
from prefect import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import State, StateType
from prefect.settings import get_current_settings
from prefect.testing.utilities import prefect_test_harness
from sqlalchemy.exc import OperationalError

from domains.errors import InvalidData, NotFound
from domains.registry.registry import Registry
from domains.spec import DomainSpec
from orchestrator import flows, prefect_client, use_cases
from orchestrator.errors import FlowsUnavailable, Unavailable
from orchestrator.jobs.results import SharedTraining
from orchestrator.jobs.runner import Step
from orchestrator.settings import Settings

pytestmark = pytest.mark.servers

SPEC = """
name: {name}
role: source
task: ctr
owner: tests
interactions: {{user: user_id, item: item_id, time: ts, label: click, label_range: [0, 1]}}
{more}
"""


@pytest.fixture(scope="module")
def prefect():
    """A throw-away Prefect server; the address of its API."""
    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


@pytest.fixture
def settings(tmp_path, monkeypatch, prefect) -> Settings:
    """Settings of a home of its own, as the flows read them."""
    monkeypatch.setenv("GRAFT_HOME", str(tmp_path))
    monkeypatch.setenv("GRAFT_PREFECT_API_URL", prefect)
    return Settings()


@pytest.fixture
def registry(settings) -> Registry:
    """The registry of that home."""
    registry = Registry(settings.registry_url)
    registry.migrate()
    return registry


@pytest.fixture
def steps(monkeypatch):
    """Replaces the steps of shared training by ones that record their calls; no waits between retries."""
    calls: list[str] = []

    def use(**work):
        def noted(name):
            def step(context):
                calls.append(name)
                work[name](context)

            return Step(name.replace("_", " ").capitalize(), step)

        monkeypatch.setattr(use_cases, "steps", lambda kind: tuple(noted(name) for name in work))
        return calls

    monkeypatch.setattr(flows, "RETRY_DELAYS_S", (0, 0, 0))
    return use


def fails(times: int, error: Exception):
    """A step that fails so many times, then succeeds."""
    left = [error] * times

    def step(context):
        if left:
            raise left.pop()

    return step


def done(context):
    """A step that just publishes the run's result."""
    context.write("result", SharedTraining(version="v1", domains=[]))


def test_a_run_goes_through_its_steps_and_is_recorded(settings, registry, steps):
    """The registry holds the run that was asked for, linked to its flow run."""
    calls = steps(gather=lambda context: None, train=done)
    flows.train_shared(run_id="run-1", by="ann", params={"epochs": 2})
    run = registry.run("run-1")
    assert calls == ["gather", "train"]
    assert (run.state, run.result, run.params, run.started_by) == (
        "succeeded",
        {"version": "v1", "domains": []},
        {"epochs": 2},
        "ann",
    )
    assert prefect_client.state(run.flow_run_id, api_url=settings.prefect_url).kind == "COMPLETED"


def test_steps_are_tasks_under_their_own_titles(settings, registry, steps):
    """Prefect's page shows the steps' own titles."""
    steps(gather_every_history=done)
    flows.train_shared(run_id="run-titles")
    with get_client(sync_client=True) as client:
        task_runs = client.read_task_runs()
    assert any(task_run.name.startswith("Gather every history") for task_run in task_runs)


@pytest.mark.parametrize("kind", ["train-shared", "launch-domain", "retrain"])
def test_every_real_step_has_a_title_in_words(kind):
    """People read no function names."""
    for step in use_cases.steps(kind):
        assert " " in step.title
        assert step.title[0].isupper()
        assert "_" not in step.title


@pytest.mark.parametrize(
    "fault",
    [Unavailable("the store restarts"), ConnectionError("reset"), OperationalError("", {}, Exception("locked"))],
    ids=["unavailable", "connection", "database"],
)
def test_a_temporary_fault_is_retried(settings, registry, steps, fault):
    """Two failures, then success: the run succeeds, and the step before it ran once."""
    calls = steps(gather=lambda context: None, train=fails(2, fault), publish=done)
    flows.train_shared(run_id="run-again")
    assert calls == ["gather", "train", "train", "train", "publish"]
    assert registry.run("run-again").state == "succeeded"


def test_bad_data_is_not_retried(settings, registry, steps):
    """What a retry cannot correct fails at once, and the registry says why."""
    calls = steps(train=fails(9, InvalidData("label out of range in line 7")))
    with pytest.raises(InvalidData):
        flows.train_shared(run_id="run-bad")
    assert calls == ["train"]
    run = registry.run("run-bad")
    assert run.state == "failed"
    assert "line 7" in run.error


def test_a_lasting_fault_fails_after_the_last_retry(settings, registry, steps):
    """Four attempts in all."""
    calls = steps(train=fails(9, ConnectionError("gone")))
    with pytest.raises(ConnectionError):
        flows.train_shared(run_id="run-gone")
    assert calls == ["train"] * 4
    assert registry.run("run-gone").state == "failed"


def test_the_same_run_id_resumes_the_run(settings, registry, steps):
    """A run that failed continues under its id; its folder is still there."""
    steps(
        first=lambda context: context.write("first", SharedTraining(version="v0", domains=[])),
        second=fails(1, ValueError("no")),
        third=done,
    )
    with pytest.raises(ValueError, match="no"):
        flows.train_shared(run_id="run-resumed")
    steps(first=lambda context: context.holds("first") or pytest.fail("the folder is gone"), third=done)
    flows.train_shared(run_id="run-resumed")
    assert registry.run("run-resumed").state == "succeeded"


def test_a_run_by_schedule_is_recorded_under_its_flow_run(settings, registry, steps):
    """Nobody gave a run id: the flow run's own id stays the same when it is resumed."""
    steps(train=done)
    flows.train_shared()
    (run,) = registry.runs()
    assert run.id == run.flow_run_id
    assert run.started_by == "schedule"


def test_a_stopped_run_counts_as_cancelled(settings, registry, steps):
    """SIGTERM and Ctrl-C are no failures."""

    class Stopped(BaseException):
        pass

    def stopped(context):
        raise Stopped

    steps(train=stopped)
    with pytest.raises(Stopped):
        flows.train_shared(run_id="run-stopped")
    assert registry.run("run-stopped").state == "cancelled"


def test_deploying_twice_leaves_one_of_each(settings, registry):
    """Every flow has its deployment, entry points are module paths, a domain's schedule is its own deployment."""
    registry.register_domain(DomainSpec.from_yaml(SPEC.format(name="nightly", more='schedule: "0 3 * * *"')), by="t")
    registry.register_domain(DomainSpec.from_yaml(SPEC.format(name="by-hand", more="")), by="t")
    names = flows.deploy(settings)
    with get_client(sync_client=True) as client:
        wide = {"job_configuration": {"command": "{{ command }}"}, "variables": {"properties": {"command": {}}}}
        client.update_work_pool(prefect_client.WORK_POOL, WorkPoolUpdate(base_job_template=wide))
    assert flows.deploy(settings) == names
    assert set(names) == {
        *("train-shared/train-shared", "launch-domain/launch-domain", "retrain/retrain"),
        *("preview/preview", "materialise-features/materialise-features", "retrain/nightly"),
    }
    with get_client(sync_client=True) as client:
        deployed = {deployment.name: deployment for deployment in client.read_deployments()}
        automations = client.read_automations_by_name("graft: a run that went silent has crashed")
        template = client.read_work_pool(prefect_client.WORK_POOL).base_job_template
    assert template == flows.JOB_TEMPLATE, "what a run may choose of its process is put back"
    assert len(deployed) == 6
    assert len(automations) == 1
    for name, deployment in deployed.items():
        assert deployment.entrypoint.startswith("orchestrator.flows."), name
        assert deployment.work_pool_name == prefect_client.WORK_POOL
    (schedule,) = deployed["nightly"].schedules
    assert schedule.schedule.cron == "0 3 * * *"
    assert deployed["nightly"].parameters == {"domain": "nightly"}


def test_a_removed_schedule_is_gone(settings, registry):
    """None removes the domain's deployment, and removing it again is harmless."""
    flows.deploy(settings)
    prefect_client.schedule_retrain("gone-soon", "15 4 * * 1", api_url=settings.prefect_url)
    prefect_client.schedule_retrain("gone-soon", "30 5 * * 1", api_url=settings.prefect_url)
    for _ in range(2):
        prefect_client.schedule_retrain("gone-soon", None, api_url=settings.prefect_url)
    with get_client(sync_client=True) as client:
        assert "gone-soon" not in {deployment.name for deployment in client.read_deployments()}


def test_starting_a_run_twice_under_one_key_starts_it_once(settings, registry):
    """A repeated request returns the first run."""
    flows.deploy(settings)
    first, second = (
        prefect_client.create_flow_run("train-shared", {}, api_url=settings.prefect_url, idempotency_key="once")
        for _ in range(2)
    )
    assert first == second
    assert prefect_client.state(first, api_url=settings.prefect_url).kind == "SCHEDULED"


def test_a_run_that_no_worker_took_yet_is_cancelled_at_once(settings, registry):
    """And cancelling what has ended changes nothing."""
    flows.deploy(settings)
    flow_run = prefect_client.create_flow_run("train-shared", {}, api_url=settings.prefect_url)
    assert prefect_client.cancel(flow_run, api_url=settings.prefect_url).kind == "CANCELLED"
    assert prefect_client.cancel(flow_run, api_url=settings.prefect_url).kind == "CANCELLED"


def test_an_unknown_deployment_says_what_creates_it(settings):
    """The answer to a fresh Prefect server is `graft up`."""
    with pytest.raises(NotFound, match="graft up"):
        prefect_client.create_flow_run("no-such-flow", {}, api_url=settings.prefect_url)


def test_a_prefect_server_that_does_not_answer_is_named():
    """The address is in the message."""
    with pytest.raises(FlowsUnavailable, match=r"127\.0\.0\.1:1"):
        prefect_client.state("x", api_url="http://127.0.0.1:1/api")
    assert not prefect_client.healthy("http://127.0.0.1:1/api")


def test_a_run_that_crashed_before_it_began_is_started_again_a_few_times(settings, registry, monkeypatch):
    """As when the Prefect server died while it was starting; four starts in all, counted by Prefect itself."""
    monkeypatch.setattr(prefect_client, "CRASH_SETTLES_S", 0.0)
    flows.deploy(settings)
    flow_run = prefect_client.create_flow_run("train-shared", {}, api_url=settings.prefect_url)
    for _ in range(3):
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run, State(type=StateType.CRASHED), force=True)
        assert flow_run in prefect_client.resume_crashed(api_url=settings.prefect_url)
        assert flow_run not in prefect_client.resume_crashed(api_url=settings.prefect_url), "once a crash"
        assert prefect_client.state(flow_run, api_url=settings.prefect_url).kind == "SCHEDULED"
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run, State(type=StateType.CRASHED), force=True)
    assert flow_run not in prefect_client.resume_crashed(api_url=settings.prefect_url)
    assert not prefect_client.start_again(flow_run, api_url=settings.prefect_url)


def test_a_run_that_a_worker_took_and_nobody_began_is_started_again(settings, registry, monkeypatch):
    """The server died between the two; after a while, not at once."""
    flows.deploy(settings)
    flow_run = prefect_client.create_flow_run("train-shared", {}, api_url=settings.prefect_url)
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(flow_run, State(type=StateType.PENDING), force=True)
    assert flow_run not in prefect_client.resume_crashed(api_url=settings.prefect_url)
    monkeypatch.setattr(prefect_client, "PENDING_LIMIT_S", 0.0)
    assert flow_run in prefect_client.resume_crashed(api_url=settings.prefect_url)


@pytest.mark.usefixtures("registry")
def test_a_prefect_server_that_is_being_started_again_is_waited_for(settings, monkeypatch):
    """Whoever asks for a run meanwhile gets it; without patience one line says that it does not answer."""
    flows.deploy(settings)
    request, away = httpx.Client.request, [httpx.ConnectError("refused")] * 2

    def sometimes(*words, **options):
        if away:
            raise away.pop()
        return request(*words, **options)

    monkeypatch.setattr(httpx.Client, "request", sometimes)
    with pytest.raises(FlowsUnavailable):
        prefect_client.create_flow_run("train-shared", {}, api_url=settings.prefect_url)
    assert prefect_client.create_flow_run("train-shared", {}, api_url=settings.prefect_url, patience_s=30)
