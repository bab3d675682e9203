"""The servers are started, supervised and stopped together; a run survives the death of its process."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import httpx
import psutil
import pytest

from domains.registry.registry import Registry
from domains.simulation.simulator import SimulatorConfig, simulate
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.errors import ServersUnavailable
from orchestrator.servers import chores, handover, plan, state, supervisor, watch
from orchestrator.servers.plan import Server
from orchestrator.settings import Settings

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("servers")]

NAMES = {"prefect", "worker", "service", "ui"}


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds now."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def settings_in(home) -> Settings:
    """A home of its own on ports of its own."""
    prefect, service, ui = free_ports(3)
    return Settings(home=home, prefect_port=prefect, service_port=service, ui_port=ui)


def wait_until(done: Callable[[], object], limit_s: float) -> None:
    """Fail when it does not come true in time."""
    deadline = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def graft(settings: Settings, *words: str, **options) -> subprocess.CompletedProcess:
    """A command from another shell."""
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env=plan.environment(settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


# ------------------------------------------------------------------------- supervision, with servers that do nothing


def idle(
    name: str, code: str = "import time; time.sleep(600)", *, healthy: Callable[[], bool] = lambda: True
) -> Server:
    """A server that does nothing."""
    return Server(name, (sys.executable, "-c", code), check=healthy)


@pytest.fixture
def supervise(tmp_path, monkeypatch):
    """Runs idle servers in a thread; gives the settings, the lines printed and how to stop it."""
    monkeypatch.setattr(supervisor.Supervisor, "deploy_flows", lambda self: None)
    monkeypatch.setattr(chores.Chores, "do", lambda self: None)
    ends = []

    def start(*planned: Server):
        settings, lines, stop, faults = settings_in(tmp_path), [], threading.Event(), []
        monkeypatch.setattr(supervisor, "servers", lambda settings, ui=True, worker="": list(planned))

        def run():
            try:
                supervisor.up(settings, say=lines.append, stop=stop)
            except ServersUnavailable as fault:
                faults.append(fault)

        thread = threading.Thread(target=run)
        thread.start()
        ends.append((stop, thread))
        return settings, lines, stop, thread, faults

    yield start
    for stop, thread in ends:
        stop.set()
        thread.join(30)


def ready(settings: Settings) -> bool:
    """Whether all servers have come up."""
    running = state.read(settings)
    return running is not None and running.ready


def test_stopping_ends_every_server_and_forgets_them(supervise):
    """No process and no state file is left."""
    settings, lines, stop, thread, _ = supervise(idle("ui"), idle("worker"))
    wait_until(lambda: ready(settings), 20)
    pids = [server.pid for server in state.read(settings).servers]
    stop.set()
    thread.join(30)
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
    assert state.read(settings) is None
    assert lines[-2:] == ["worker ended", "ui ended"]


def test_nothing_opens_wider_than_loopback_without_a_key(tmp_path):
    """Neither the pages, which have no login, nor the service before there is a key."""
    wide = settings_in(tmp_path).model_copy(update={"bind_host": "0.0.0.0"})
    for start in (supervisor.up, supervisor.up_in_background):
        with pytest.raises(ServersUnavailable, match="no login"):
            start(wide)
        with pytest.raises(ServersUnavailable, match="no API key"):
            start(wide, ui=False)
    assert state.read(wide) is None


def test_a_server_that_dies_is_started_again(supervise):
    """Another process takes its place."""
    settings, _, _, _, _ = supervise(idle("ui"), idle("worker"))
    wait_until(lambda: ready(settings), 20)
    before = {server.name: server.pid for server in state.read(settings).servers}
    os.kill(before["ui"], signal.SIGKILL)
    wait_until(lambda: {s.name: s.restarts for s in state.read(settings).servers}["ui"] == 1, 20)
    after = {server.name: server.pid for server in state.read(settings).servers}
    assert after["ui"] != before["ui"]
    assert after["worker"] == before["worker"]


def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(supervise):
    """The reason is in the error, and the servers that had started are ended."""
    code = "import sys; print('no such column: fruit', file=sys.stderr); sys.exit(3)"
    settings, _, _, thread, faults = supervise(idle("ui"), idle("service", code, healthy=lambda: False), idle("worker"))
    thread.join(30)
    assert "the service ended with status 3: no such column: fruit" in str(faults[0])
    assert state.read(settings) is None


def test_a_second_start_in_the_same_home_is_refused(supervise):
    """Two supervisors would disturb each other."""
    settings, _, _, _, _ = supervise(idle("ui"), idle("worker"))
    wait_until(lambda: ready(settings), 20)
    with pytest.raises(ServersUnavailable, match="up already"):
        supervisor.up(settings)


def restarts(settings: Settings) -> dict[str, int]:
    """How often each server was started again."""
    running = state.read(settings)
    return {server.name: server.restarts for server in running.servers} if running else {}


def pids(settings: Settings) -> dict[str, int]:
    """The process of each server."""
    return {server.name: server.pid for server in state.read(settings).servers}


def test_no_number_of_deaths_leaves_a_server_down(supervise, monkeypatch):
    """Seven in a row, more than any budget had; the waits between them grow and are forgiven by time in health."""
    monkeypatch.setattr(watch, "LONGEST_WAIT_S", 0.1)
    settings, _, _, _, _ = supervise(idle("ui"), idle("worker"))
    wait_until(lambda: ready(settings), 20)
    for death in range(1, 8):
        os.kill(pids(settings)["ui"], signal.SIGKILL)
        wait_until(lambda death=death: restarts(settings)["ui"] == death, 20)
    wait_until(lambda: all(server.healthy for server in state.read(settings).servers), 20)


def test_one_server_that_waits_for_its_next_start_keeps_no_other_waiting(supervise):
    """The second death of one is answered after a second; a death of the other meanwhile at once."""
    settings, _, _, _, _ = supervise(idle("ui"), idle("worker"), idle("service", "import sys; sys.exit(1)"))
    wait_until(lambda: restarts(settings).get("service", 0) >= 2, 20)
    before = pids(settings)["ui"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: pids(settings)["ui"] != before, 2)


def test_a_server_that_answers_nothing_any_more_is_started_again(supervise, monkeypatch):
    """Its process is stopped, not dead: only its silence tells."""
    monkeypatch.setattr(supervisor, "HUNG_AFTER", 2)
    monkeypatch.setattr(supervisor, "LOOK_EVERY_S", 0.2)
    (port,) = free_ports(1)
    code = f"from http.server import *; HTTPServer(('127.0.0.1', {port}), SimpleHTTPRequestHandler).serve_forever()"
    answering = Server("ui", (sys.executable, "-c", code), f"http://127.0.0.1:{port}/")
    settings, lines, _, _, _ = supervise(answering, idle("worker"))
    wait_until(lambda: ready(settings), 20)
    os.kill(pids(settings)["ui"], signal.SIGSTOP)
    wait_until(lambda: restarts(settings)["ui"] == 1, 60)
    assert any("answered nothing" in line for line in lines)


@pytest.mark.parametrize("how", ["killed", "ended alone"])
def test_the_next_supervisor_takes_over_what_runs(tmp_path, monkeypatch, how):
    """The servers' processes and logs stay; one that died meanwhile is started, and the supervisor looks after all."""
    monkeypatch.setattr(supervisor.Supervisor, "deploy_flows", lambda self: None)
    monkeypatch.setattr(chores.Chores, "do", lambda self: None)
    settings = settings_in(tmp_path)
    monkeypatch.setattr(supervisor, "servers", lambda settings, ui=True, worker="": [idle("ui"), idle("worker")])

    def supervised() -> tuple[threading.Event, threading.Event, threading.Thread]:
        stop, leave = threading.Event(), threading.Event()
        with handover.only_supervisor(settings):
            taken = handover.take_over(handover.left_behind(settings), supervisor.servers(settings))
            planned = supervisor.servers(settings)
            one = supervisor.Supervisor(settings, planned, lambda line: None, stop, leave=leave, taken_over=taken)
        thread = threading.Thread(target=one.run, daemon=True)
        thread.start()
        wait_until(lambda: ready(settings), 20)
        return stop, leave, thread

    stop, leave, thread = supervised()
    before = pids(settings)
    with monkeypatch.context() as dying:
        if how == "killed":  # it ends nothing and says nothing
            dying.setattr(supervisor.Supervisor, "_end", lambda self, came_up: None)
        else:
            leave.set()
        stop.set()
        thread.join(10)
    os.kill(before["worker"], signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(before["worker"], 0)
    stop, _, thread = supervised()
    wait_until(lambda: pids(settings)["worker"] != before["worker"], 20)
    after = pids(settings)
    assert after["ui"] == before["ui"]
    os.kill(after["ui"], signal.SIGKILL)
    wait_until(lambda: restarts(settings)["ui"] == 1, 20)
    stop.set()
    thread.join(30)
    assert state.read(settings) is None


def test_down_ends_what_a_killed_supervisor_left_behind(tmp_path):
    """The supervisor is gone; `down` still finds the servers."""
    settings = settings_in(tmp_path)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    created = psutil.Process(orphan.pid).create_time()
    running = state.ServersState(supervisor_pid=orphan.pid, supervisor_created=created - 1000, ready=True)
    running.servers = [state.RunningServer("service", orphan.pid, created, "", "")]
    (tmp_path / "servers.json").write_text(json.dumps(asdict(running)))
    assert supervisor.down(settings, say=lambda line: None) == ["service"]
    orphan.wait(10)
    assert state.read(settings) is None


def test_down_never_ends_a_process_that_only_has_the_same_id(tmp_path):
    """Process ids are used again; the time of the start tells them apart."""
    settings = settings_in(tmp_path)
    own = psutil.Process()
    running = state.ServersState(own.pid, own.create_time() - 1000, True, [])
    running.servers = [state.RunningServer("service", own.pid, own.create_time() - 1000, "", "")]
    (tmp_path / "servers.json").write_text(json.dumps(asdict(running)))
    assert supervisor.down(settings) == []


@pytest.mark.parametrize("name", ["prefect", "service", "ui"])
def test_a_busy_port_is_refused_with_the_setting_that_changes_it(tmp_path, name):
    """Before anything starts, in one line."""
    settings = settings_in(tmp_path)
    port = getattr(settings, f"{name}_port")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        done = graft(settings, "up")
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert f"GRAFT_{name.upper()}_PORT" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "logs").exists()


def test_health_is_asked_where_the_server_was_started(tmp_path):
    """Another shell may have other ports in its environment."""
    own = psutil.Process()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/health"
    running = state.ServersState(own.pid, own.create_time(), True, [])
    for name, health_url in (("worker", ""), ("service", url)):
        running.servers.append(state.RunningServer(name, own.pid, own.create_time(), "", "", health_url))
    (tmp_path / "servers.json").write_text(json.dumps(asdict(running)))
    assert state.health(settings_in(tmp_path)) == {"worker": True, "service": False}


def test_no_server_sends_usage_statistics(tmp_path):
    """They are off in all four."""
    environment = plan.environment(settings_in(tmp_path))
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert environment["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] == "false"
    assert environment["DO_NOT_TRACK"] == "1"


def test_a_server_reads_the_same_settings_from_its_environment(tmp_path, monkeypatch):
    """Settings written to an environment and read again are equal."""
    settings = settings_in(tmp_path).model_copy(update={"required_baselines": ("scratch", "popularity")})
    for name, value in plan.environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


# ---------------------------------------------------------------------------------------------- the real four servers


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
