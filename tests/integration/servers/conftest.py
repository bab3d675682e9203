"""Supervision of servers that do nothing."""

import threading

import pytest

from orchestrator.errors import ServersUnavailable
from orchestrator.servers import chores, supervisor
from orchestrator.servers.plan import Server
from tests.integration.servers.fakes import settings_in


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
