"""Start, watch and stop flow runs over Prefect's REST API.

With httpx alone: the pages, the command line and the service need not import Prefect (3 s, 150 MB).
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx

from domains.errors import NotFound
from orchestrator.errors import FlowsUnavailable

TIMEOUT_S = 10.0
BUSY_WAITS_S = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Prefect on SQLite answers 503 while another writer holds its database; the request is repeated after these waits."""
RETRAIN = "retrain"
WORK_POOL = "graft"
TAG = "graft"
"""Tag of all of Graft's deployments, and so of their flow runs."""

STARTS_ALLOWED = 4
"""A run whose process dies or cannot start is started again; after this many starts it stays crashed."""
RESUMING = "Resuming"
"""Name of the state of a run that is started again after a death: Prefect keeps the states, so they can be counted."""
PENDING_LIMIT_S = 180.0
"""A run that a worker took and that has not begun by then is lost: the server died before it heard of its end."""
CRASH_SETTLES_S = 10.0
"""Prefect's worker may report one crash twice within seconds: a run is resumed only after this time."""
RESUMED_WITHIN_S = 86_400.0
"""A run that crashed longer ago is not resumed."""

FINAL = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
"""Types of the states that end a flow run."""


@dataclass(frozen=True)
class FlowState:
    """The state of a flow run."""

    kind: str
    """Prefect's state type: SCHEDULED, PENDING, RUNNING, COMPLETED, FAILED, CRASHED, CANCELLING or CANCELLED."""
    name: str
    """Prefect's name for the state, as its own pages show it."""
    message: str
    """Prefect's remark, such as the first line of the error."""

    @property
    def final(self) -> bool:
        return self.kind in FINAL


def create_flow_run(
    deployment_name: str,
    parameters: dict[str, Any],
    *,
    api_url: str,
    name: str | None = None,
    idempotency_key: str | None = None,
    patience_s: float = 0.0,
) -> str:
    """Ask Prefect to run a deployment; returns the flow run's id at once.

    Args:
        deployment_name: ``flow/deployment``, or one word when both have the same name (``train-shared``).
        parameters: The flow's arguments.
        api_url: Prefect's API with its credentials, ``Settings.prefect_api``.
        name: The run's name on Prefect's pages; Prefect invents one otherwise.
        idempotency_key: A second call with the same key returns the first call's run and starts nothing; by default
            the name.
        patience_s: How long to ask again while Prefect does not answer, as when it is being started again.

    Raises:
        FlowsUnavailable: Prefect does not answer.
        NotFound: Prefect knows no such deployment; ``graft up`` creates them.
    """
    body: dict[str, Any] = {
        "parameters": parameters,
        "state": {"type": "SCHEDULED"},
        # Always a key: a request that is repeated after a timeout must not start a second run.
        "idempotency_key": idempotency_key or name or uuid.uuid4().hex,
    }
    if name is not None:
        body["name"] = name
    until = time.monotonic() + patience_s
    while True:
        try:
            with _client(api_url) as client:
                deployment = _deployment(client, deployment_name)
                return str(_send(client, "POST", f"/deployments/{deployment['id']}/create_flow_run", body)["id"])
        except FlowsUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


def state(flow_run_id: str, *, api_url: str) -> FlowState:
    """The present state of a flow run.

    Raises:
        FlowsUnavailable: Prefect does not answer.
        NotFound: Prefect knows no such run.
    """
    with _client(api_url) as client:
        answer = _send(client, "GET", f"/flow_runs/{flow_run_id}")
    now = answer.get("state") or {}
    return FlowState(now.get("type") or "PENDING", now.get("name") or "Pending", now.get("message") or "")


def cancel(flow_run_id: str, *, api_url: str) -> FlowState:
    """Ask Prefect to stop a flow run: its worker ends the process within seconds. A finished run is left as it is.

    Raises:
        FlowsUnavailable: Prefect does not answer.
        NotFound: Prefect knows no such run.
    """
    before = state(flow_run_id, api_url=api_url)
    if before.final:
        return before
    # A run that no worker has taken yet has no process to end: it is cancelled at once.
    kind = "CANCELLED" if before.kind == "SCHEDULED" else "CANCELLING"
    with _client(api_url) as client:
        _send(client, "POST", f"/flow_runs/{flow_run_id}/set_state", {"state": {"type": kind}, "force": False})
    return state(flow_run_id, api_url=api_url)


def schedule_retrain(domain: str, cron: str | None, *, api_url: str) -> None:
    """Give a domain its own deployment ``retrain/<domain>`` on its cron schedule (UTC); None removes it.

    All else is as in the deployment ``retrain/retrain``. At most one scheduled retrain of a domain runs at a time;
    those that come due meanwhile are dropped.

    Raises:
        FlowsUnavailable: Prefect does not answer.
        NotFound: there is no deployment ``retrain/retrain``; ``graft up`` creates it.
    """
    with _client(api_url) as client:
        if cron is None:
            try:
                old = _deployment(client, f"{RETRAIN}/{domain}")
            except NotFound:
                return
            _send(client, "DELETE", f"/deployments/{old['id']}")
            return
        base = _deployment(client, RETRAIN)
        body = {
            "name": domain,
            "flow_id": base["flow_id"],
            "entrypoint": base["entrypoint"],
            "path": base["path"],
            "version": base["version"],
            "work_pool_name": base["work_pool_name"],
            "parameter_openapi_schema": base["parameter_openapi_schema"],
            "parameters": {"domain": domain},
            "description": f"Retrain {domain} on the events since, by its own schedule.",
            "tags": [TAG, "scheduled"],
            "schedules": [{"schedule": {"cron": cron, "timezone": "UTC"}, "active": True}],
            "concurrency_limit": 1,
            "concurrency_options": {"collision_strategy": "CANCEL_NEW"},
        }
        _send(client, "POST", "/deployments/", body)


def worker_online(name: str, *, api_url: str) -> bool:
    """Whether the worker of that name has reported to Graft's work pool lately.

    Raises:
        FlowsUnavailable: Prefect does not answer.
    """
    with _client(api_url) as client:
        try:
            workers = _send(client, "POST", f"/work_pools/{WORK_POOL}/workers/filter", {})
        except NotFound:
            return False
    return any(worker["name"] == name and worker["status"] == "ONLINE" for worker in workers)


def resume_abandoned(*, api_url: str) -> int:
    """Schedule every run that is marked as running once more; returns how many there were.

    Only right while no worker runs, so that their processes are gone: after the server's start, before the worker's.

    Raises:
        FlowsUnavailable: Prefect does not answer.
    """
    wanted = {
        "flow_runs": {
            "tags": {"all_": [TAG]},
            "state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}},
        }
    }
    with _client(api_url) as client:
        abandoned = _send(client, "POST", "/flow_runs/filter", wanted)
        for run in abandoned:
            state = {"type": "SCHEDULED", "name": "Continuing", "message": "the servers were stopped while it ran"}
            if run["state_type"] == "CANCELLING":
                state = {"type": "CANCELLED", "message": "it was being stopped when the servers were stopped"}
            _send(client, "POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})
    return len(abandoned)


def resume_crashed(*, api_url: str) -> list[str]:
    """Schedule every run once more whose process died or never began; returns their flow run ids.

    A run of the second kind is one whose start the Prefect server did not live to see. None is started more than
    ``STARTS_ALLOWED`` times.

    Raises:
        FlowsUnavailable: Prefect does not answer.
    """
    kinds = {"CRASHED": CRASH_SETTLES_S, "PENDING": PENDING_LIMIT_S}
    wanted = {
        "flow_runs": {"tags": {"all_": [TAG]}, "state": {"type": {"any_": list(kinds)}}},
        "sort": "EXPECTED_START_TIME_DESC",
    }
    resumed = []
    with _client(api_url) as client:
        for run in _send(client, "POST", "/flow_runs/filter", wanted):
            since = datetime.now(UTC) - datetime.fromisoformat(run["state"]["timestamp"])
            if kinds[run["state_type"]] < since.total_seconds() < RESUMED_WITHIN_S and _start_again(client, run["id"]):
                resumed.append(run["id"])
    return resumed


def start_again(flow_run_id: str, *, api_url: str) -> bool:
    """Schedule a run once more whose process is gone; False when it had all the starts that it is allowed.

    Raises:
        FlowsUnavailable: Prefect does not answer.
        NotFound: Prefect knows no such run.
    """
    with _client(api_url) as client:
        return _start_again(client, flow_run_id)


def _start_again(client: httpx.Client, flow_run_id: str) -> bool:
    states = _send(client, "GET", f"/flow_run_states/?flow_run_id={flow_run_id}")
    starts = 1 + sum(one["name"] == RESUMING for one in states)
    if starts >= STARTS_ALLOWED:
        return False
    message = f"its process is gone; start {starts + 1} of {STARTS_ALLOWED} continues where it stopped"
    now = {"type": "SCHEDULED", "name": RESUMING, "message": message}
    _send(client, "POST", f"/flow_runs/{flow_run_id}/set_state", {"state": now, "force": True})
    return True


def healthy(api_url: str, *, timeout_s: float = 2.0) -> bool:
    """Whether Prefect answers."""
    try:
        return httpx.get(f"{api_url}/health", timeout=timeout_s).status_code == 200
    except httpx.HTTPError:
        return False


def _client(api_url: str) -> httpx.Client:
    # The credentials leave the URL here, so that no error text and no log can show them.
    url = httpx.URL(api_url)
    auth = (url.username, url.password) if url.username else None
    return httpx.Client(base_url=url.copy_with(userinfo=b""), auth=auth, timeout=TIMEOUT_S)


def _deployment(client: httpx.Client, name: str) -> dict[str, Any]:
    flow, _, deployment = name.partition("/")
    try:
        answer: dict[str, Any] = _send(client, "GET", f"/deployments/name/{flow}/{deployment or flow}")
    except NotFound:
        raise NotFound(f"Prefect has no deployment {flow}/{deployment or flow}; `graft up` creates it") from None
    return answer


def _send(client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    try:
        answer = client.request(method, path, json=body)
        for wait_s in BUSY_WAITS_S:
            if answer.status_code != 503:
                break
            time.sleep(wait_s)
            answer = client.request(method, path, json=body)
        if answer.status_code == 404:
            raise NotFound(f"Prefect knows nothing at {path}")
        answer.raise_for_status()
    except httpx.HTTPStatusError as fault:
        if fault.response.status_code == 401:
            raise FlowsUnavailable(
                f"the Prefect server at {client.base_url} refuses Graft's credentials; the setting prefect_auth "
                "(GRAFT_PREFECT_AUTH=user:password) names them"
            ) from fault
        reason = f"{fault.response.status_code}: {fault.response.text[:300]}"
        raise FlowsUnavailable(f"Prefect refused {method} {path}: {reason}") from fault
    except httpx.HTTPError as fault:
        raise FlowsUnavailable(
            f"the Prefect server does not answer at {client.base_url}; `graft up` starts it ({fault})"
        ) from fault
    return answer.json() if answer.content else None
