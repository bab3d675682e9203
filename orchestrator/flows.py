"""Graft's Prefect flows: which kinds of run they cover, which failures are retried, and what follows a schedule.

A flow has no logic of its own: it runs the steps of a run as tasks under their own titles, retries what may be a
passing fault, and shows progress. A run continues where the same ``run_id`` stopped, so a retry, a killed process and a
restarted machine are one case.

``deploy`` writes the work pool, the deployments and the automation that marks a run without heartbeats as crashed. The
supervisor in ``orchestrator.servers`` starts crashed runs again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
from prefect import flow, get_client, runtime, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy, FlowRun, State, StateType
from prefect.deployments.runner import EntrypointType
from prefect.events import EventTrigger
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.flows import Flow
from sqlalchemy.exc import OperationalError

from domains.registry.registry import Registry
from orchestrator import prefect_client, use_cases
from orchestrator.errors import Unavailable
from orchestrator.jobs.runner import RunContext, Step
from orchestrator.prefect_client import TAG, WORK_POOL
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

RUNS_AT_ONCE = 2
"""How many flow runs the work pool lets run at the same time."""
RETRY_DELAYS_S = (2, 10, 60)
"""Waits before a step's second, third and fourth try."""
SILENT_AFTER_S = 65
"""A run without a heartbeat for this long has lost its process; it sends one every 30 s."""

JOB_TEMPLATE: dict[str, Any] = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": {}, "additionalProperties": False},
}
"""What a flow run may choose of its process: nothing. Prefect's own template lets whoever starts a run name the
command, the environment and the folder, which is a shell for them."""

TRANSIENT = (Unavailable, ConnectionError, TimeoutError, OperationalError, httpx.TransportError)
"""Faults that may be temporary: only these are retried."""


def may_be_temporary(_task: Any, _task_run: Any, state: State) -> bool:
    """Whether Prefect shall retry a failed step: yes after a temporary fault, no after bad data."""
    return isinstance(state.result(raise_on_failure=False), TRANSIENT)


def run_as_task(title: str, work: Callable[[], None], description: str | None = None) -> None:
    """Run a piece of work as a Prefect task; temporary faults are retried."""

    @task(
        name=title,
        description=description,
        retries=len(RETRY_DELAYS_S),
        retry_delay_seconds=list(RETRY_DELAYS_S),
        retry_condition_fn=may_be_temporary,
        persist_result=False,
    )
    def piece() -> None:
        work()

    piece()


def step_as_task(step: Step, context: RunContext) -> None:
    """Run one step of a run as a task under the step's title."""
    run_as_task(step.title, lambda: step.work(context), step.work.__doc__)


class ProgressArtifact:
    """A run's progress as one bar on the flow run's page; at most one update a second."""

    def __init__(self) -> None:
        self._artifact: Any = None
        self._shown_at = 0.0

    def __call__(self, fraction: float, step: str = "", _detail: dict[str, Any] | None = None) -> None:
        now = time.monotonic()
        if fraction < 1 and now - self._shown_at < 1:
            return
        self._shown_at = now
        percent = round(100 * min(max(fraction, 0.0), 1.0), 1)
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(percent, description=step)
            else:
                update_progress_artifact(self._artifact, percent, description=step)
        except httpx.HTTPError:  # a progress bar is no reason to fail a run
            logger.warning("progress not shown", extra={"step": step})


def mark_cancelled(flow: Flow, flow_run: FlowRun, state: State) -> None:  # noqa: ARG001  Prefect passes it by name
    """Record in the registry that somebody stopped the flow run."""
    run_id = (flow_run.parameters or {}).get("run_id") or str(flow_run.id)
    _registry(Settings()).finish_run(run_id, state="cancelled", error=state.message or "stopped")


@flow(name="train-shared", on_cancellation=[mark_cancelled])
def train_shared(run_id: str | None = None, by: str = "schedule", params: dict[str, Any] | None = None) -> None:
    """Train the shared model on the sources' events and evaluate it on each."""
    _drive("train-shared", None, run_id, by, params)


@flow(name="launch-domain", on_cancellation=[mark_cancelled])
def launch_domain(
    domain: str, run_id: str | None = None, by: str = "schedule", params: dict[str, Any] | None = None
) -> None:
    """Fine-tune one domain on top of the shared model, certify, compare with its baselines and ask the gate."""
    _drive("launch-domain", domain, run_id, by, params)


@flow(name="retrain", on_cancellation=[mark_cancelled])
def retrain(domain: str, run_id: str | None = None, by: str = "schedule", params: dict[str, Any] | None = None) -> None:
    """Fine-tune a domain again on the events since its last version; it goes live if its gate lets it pass."""
    _drive("retrain", domain, run_id, by, params)


@flow(name="preview", on_cancellation=[mark_cancelled])
def preview(domain: str, run_id: str | None = None, by: str = "schedule", params: dict[str, Any] | None = None) -> None:
    """Estimate with short runs what each source contributes and how much data the adapter needs to be ahead."""
    _drive("preview", domain, run_id, by, params)


@flow(name="materialise-features")
def materialise_features() -> None:
    """Bring histories and online features up to date with the events."""
    settings = Settings()
    run_as_task(
        "Gather histories and online features",
        lambda: use_cases.build_features(registry=_registry(settings), settings=settings),
    )


DEPLOYED: dict[str, Flow] = {
    flow_function.name: flow_function
    for flow_function in (train_shared, launch_domain, retrain, preview, materialise_features)
}


def deploy(settings: Settings) -> list[str]:
    """Write the work pool, a deployment per flow, a scheduled retrain per domain, and the automation; repeatable.

    Returns:
        Names of the deployments, ``flow/deployment``.
    """
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(
                WorkPoolCreate(
                    name=WORK_POOL,
                    type="process",
                    base_job_template=JOB_TEMPLATE,
                    concurrency_limit=RUNS_AT_ONCE,
                )
            )
        except ObjectAlreadyExists:
            client.update_work_pool(WORK_POOL, WorkPoolUpdate(base_job_template=JOB_TEMPLATE))
        _write_automation(client)
    names = []
    for name, flow_function in DEPLOYED.items():
        deployment: Any = flow_function.to_deployment(
            name,
            description=flow_function.description,
            tags=[TAG],
            work_pool_name=WORK_POOL,
            entrypoint_type=EntrypointType.MODULE_PATH,
            # Two training runs at the same time would only slow each other down, so the second one waits.
            concurrency_limit=(
                ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
                if name == "train-shared"
                else None
            ),
        )
        deployment.apply()
        names.append(f"{name}/{name}")
    for domain in _registry(settings).domains():
        cron = None if domain.state == "retired" else domain.spec.schedule
        prefect_client.schedule_retrain(domain.name, cron, api_url=settings.prefect_api)
        if cron:
            names.append(f"retrain/{domain.name}")
    return names


def _write_automation(client: SyncPrefectClient) -> None:
    this_flow_run = {"prefect.resource.id"}
    of_graft: dict[str, str | list[str]] = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    reason = f"no heartbeat for {SILENT_AFTER_S} s"
    crashed = ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=reason, force=False)
    silent = Automation(
        name="graft: a run that went silent has crashed",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={
                "prefect.flow-run.heartbeat",
                *(f"prefect.flow-run.{end}" for end in ("Completed", "Failed", "Cancelled", "Crashed")),
            },
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related=of_graft,
            for_each=this_flow_run,
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENT_AFTER_S),
        ),
        actions=[crashed],
    )
    for old in client.read_automations_by_name(silent.name):
        client.delete_automation(old.id)
    silent.create()


def _registry(settings: Settings) -> Registry:
    return Registry(settings.registry_url)


def _drive(kind: str, domain: str | None, run_id: str | None, by: str, params: dict[str, Any] | None) -> None:
    """Run the steps as tasks, under the registry's run that was asked for or, by schedule, a new one."""
    flow_run_id = str(runtime.flow_run.id)
    settings = Settings()
    registry = _registry(settings)
    run = registry.start_run(kind, domain, params=params or {}, by=by, run_id=run_id or flow_run_id)
    registry.link_flow_run(run.id, flow_run_id)
    use_cases.run(
        kind,
        domain,
        params=params,
        registry=registry,
        settings=settings,
        by=by,
        run_id=run.id,
        on_progress=ProgressArtifact(),
        call=step_as_task,
    )
