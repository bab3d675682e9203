"""Servers are started together, looked after, handed on and stopped; here with servers that do nothing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict

import psutil
import pytest

from orchestrator import use_cases
from orchestrator.credentials import os_user
from orchestrator.errors import ServersUnavailable
from orchestrator.servers import chores, doors, handover, plan, state, supervisor, watch
from orchestrator.servers.plan import Server
from orchestrator.settings import Settings
from tests.integration.servers.fakes import free_ports, graft, idle, pids, ready, restarts, settings_in, wait_until

pytestmark = pytest.mark.servers


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


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "graft.example", "127.evil.example", "localhost.evil"])
def test_nothing_opens_wider_than_loopback_without_a_key_and_a_login(tmp_path, host):
    """Neither the service before there is a key nor the pages before there is a user who was not removed."""
    wide = settings_in(tmp_path).model_copy(update={"bind_host": host})
    registry = use_cases.open_registry(wide)
    for start in (supervisor.up, supervisor.up_in_background):
        for ui in (True, False):
            with pytest.raises(ServersUnavailable, match="no API key"):
                start(wide, ui=ui)
    registry.add_key("page", by="t")
    registry.add_user("ann", role="admin", password=None, by="t")
    registry.remove_user("ann", by="t")
    for start in (supervisor.up, supervisor.up_in_background):
        with pytest.raises(ServersUnavailable, match="nobody can sign in"):
            start(wide)
    registry.revoke_key("page", by="t")
    with pytest.raises(ServersUnavailable, match="no API key"):
        supervisor.up(wide, ui=False)
    assert state.read(wide) is None


def test_doors_open_once_whoever_asks_can_be_known(tmp_path):
    """A key and a user, or a provider; what travels unencrypted is said; loopback needs none of it."""
    near = settings_in(tmp_path)
    wide = near.model_copy(update={"bind_host": "0.0.0.0"})
    registry = use_cases.open_registry(wide)
    registry.add_key("page", by="t")
    doors.refuse_open_doors(wide, ui=False)
    registry.add_user("ann", role="admin", password=None, by="t")
    doors.refuse_open_doors(wide, ui=True)
    assert "unencrypted" in str(doors.warning(wide))
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        doors.refuse_open_doors(near.model_copy(update={"bind_host": host}), ui=True)
        assert doors.warning(near.model_copy(update={"bind_host": host})) is None


def test_the_policy_is_on_record_whenever_it_changes(tmp_path):
    """What every launch must beat, and the interface: before and after, and who started the servers."""
    settings = settings_in(tmp_path)
    registry = use_cases.open_registry(settings)
    doors.note_policy(registry, settings)
    doors.note_policy(registry, settings)
    weaker = settings.model_copy(update={"required_seeds": 7})
    doors.note_policy(registry, weaker)
    after, before = [entry for entry in registry.audit() if entry["what"] == "change_policy"]
    assert before["details"]["before"] is None
    assert after["who"] == os_user()
    assert after["details"]["before"]["required_seeds"] == settings.required_seeds
    assert after["details"]["after"]["required_seeds"] == 7


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
