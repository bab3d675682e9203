"""The four real servers; a run survives the death of its process."""

import json
import signal
import subprocess
import sys

import httpx
import psutil
import pytest

from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.servers import plan, state, supervisor
from tests.integration.servers.fakes import graft, ready, settings_in, wait_until

pytestmark = pytest.mark.servers

NAMES = {"prefect", "worker", "service", "ui"}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """The real servers, started by the command."""
    settings = settings_in(tmp_path_factory.mktemp("servers") / "home")
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator.cli", "up"],
        env=plan.environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: ready(settings) or process.poll() is not None, 240)
        assert process.poll() is None, process.communicate()[0]
        yield settings, process
    finally:
        supervisor.down(settings, say=lambda line: None)
        process.wait(60)


@pytest.fixture(scope="module")
def market(running, tmp_path_factory):
    """Data in the home that the servers look after; nothing is trained."""
    settings, _ = running
    registry = Registry(settings.registry_url)
    for made in simulate(SimulatorConfig(events=6_000), tmp_path_factory.mktemp("simulated"))[:4]:
        use_cases.register(made.spec, registry=registry, by="test")
        use_cases.ingest_data(
            made.spec.name,
            interactions=[made.interactions],
            items=made.items,
            users=made.users,
            registry=registry,
            settings=settings,
            by="test",
        )
    return settings, registry


@pytest.mark.timeout(600)
def test_all_four_answer_on_loopback_only(running):
    """Each at the address that it was said to have, and on no other interface."""
    settings, process = running
    running = state.read(settings)
    assert {server.name for server in running.servers} == NAMES
    assert state.health(settings) == dict.fromkeys(NAMES, True)
    for url in (f"{settings.prefect_url}/health", f"{settings.service_url}/livez", settings.ui_url):
        assert httpx.get(url, timeout=10, trust_env=False).status_code == 200
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    listening = {
        connection.laddr.ip
        for pid in family
        for connection in psutil.Process(pid).net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_prefects_api_is_closed_to_strangers_and_runs_no_command_for_anybody(running):
    """Without the stack's secret 401, in any content type; with it a run cannot choose what its process executes."""
    settings, _ = running
    assert settings.prefect_auth_file.stat().st_mode & 0o777 == 0o600
    with httpx.Client(base_url=settings.prefect_api, timeout=10) as ours:
        path = f"/deployments/{ours.get('/deployments/name/train-shared/train-shared').json()['id']}/create_flow_run"
        before = ours.post("/flow_runs/count", json={}).json()
        for variables in ({"command": "id"}, {"env": {"LD_PRELOAD": "x"}}, {"working_dir": "/"}, {"env.PATH": "/tmp"}):
            refused = ours.post(path, json={"job_variables": variables})
            assert refused.status_code == 422, refused.text
        body = json.dumps({"job_variables": {"command": "id"}})
        with httpx.Client(base_url=settings.prefect_url, timeout=10) as stranger:
            for kind in ("application/json", "text/plain"):
                assert stranger.post(path, content=body, headers={"content-type": kind}).status_code == 401
            assert stranger.post("/flow_runs/filter", json={}).status_code == 401
            assert stranger.post("/flow_runs/filter", json={}, auth=("graft", "guess")).status_code == 401
            page = {"Origin": "http://elsewhere.example", "Access-Control-Request-Method": "POST"}
            assert "access-control-allow-origin" not in stranger.options(path, headers=page).headers
        assert ours.post("/flow_runs/count", json={}).json() == before


def test_status_shows_each_server_with_its_address(running):
    """From another shell."""
    settings, _ = running
    shown = graft(settings, "status").stdout
    for name in NAMES:
        assert name in shown
    assert shown.count("healthy") == len(NAMES)
    assert settings.service_url in shown


@pytest.mark.timeout(600)
def test_a_run_whose_process_is_killed_continues_where_it_stopped(market):
    """kill -9 in the middle of training: Crashed, then the same run continues and succeeds."""
    settings, registry = market
    params = {"epochs": 2, "width": 8, "batch_size": 32, "checkpoint_every_steps": 5}
    run = use_cases.start("train-shared", params=params, registry=registry, settings=settings, by="test")
    folder = settings.runs_dir / run.id / "training"
    wait_until(lambda: any(folder.glob("*")) or registry.run(run.id).state == "failed", 200)
    assert registry.run(run.id).state == "running", registry.run(run.id).error

    worker = next(server for server in state.read(settings).servers if server.name == "worker")
    children = psutil.Process(worker.pid).children(recursive=True)
    engines = [child for child in children if any(word.startswith("prefect.") for word in child.cmdline())]
    assert engines, [child.cmdline() for child in children]
    for engine in engines:
        engine.kill()
    wait_until(lambda: registry.run(run.id).state != "running", 300)
    ended = registry.run(run.id)
    assert ended.state == "succeeded", ended.error
    assert registry.live(None).version_id == ended.result["version"]
    with httpx.Client(base_url=settings.prefect_api, timeout=10) as prefect:
        states = prefect.get("/flow_run_states/", params={"flow_run_id": ended.flow_run_id}).json()
    assert "CRASHED" in {one["type"] for one in states}
    assert states[-1]["type"] in ("COMPLETED", "RUNNING")


@pytest.mark.timeout(600)
def test_the_clock_starts_a_retrain_until_its_schedule_is_removed(market):
    """A run appears in the registry by itself, in the minute that the spec names, and comes to an end."""
    settings, registry = market
    if registry.live(None) is None:
        use_cases.train_shared(registry=registry, settings=settings, by="test", epochs=1, width=4)
    declared = registry.domain("live").spec.model_dump(mode="json")

    def scheduled():
        return [run for run in registry.runs("live") if (run.kind, run.started_by) == ("retrain", "schedule")]

    def deployed() -> bool:
        with httpx.Client(base_url=settings.prefect_api, timeout=10) as prefect:
            return prefect.get("/deployments/name/retrain/live").status_code == 200

    assert scheduled() == []
    registry.update_spec(DomainSpec.from_mapping({**declared, "schedule": "* * * * *"}), by="test")
    wait_until(lambda: bool(scheduled()), 200)
    registry.update_spec(DomainSpec.from_mapping({**declared, "schedule": None}), by="test")
    wait_until(lambda: not deployed(), 60)
    wait_until(lambda: all(run.finished_at for run in scheduled()), 200)
    # A handful of rows may be too few to launch on: the run then fails with that reason.
    assert all(run.state == "succeeded" or "rows" in run.error for run in scheduled()), scheduled()


@pytest.mark.timeout(600)
def test_one_ctrl_c_ends_all_of_them(running):
    """SIGINT to the one process: exit status 0, no process left, every port free again. Last: it stops the servers."""
    settings, process = running
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=90)[0]
    assert process.returncode == 0, said
    assert [child for child in family if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    assert state.read(settings) is None
    plan.refuse_busy_ports(plan.servers(settings), settings)
