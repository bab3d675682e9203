"""What `graft status` repeats of the prediction service's own account."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from orchestrator.servers import state
from orchestrator.settings import Settings

SAID = {
    "generation": 3,
    "registry": "OperationalError: gone",
    "features": "no answer within 50 ms",
    "lost_records": 7,
    "domains": [{"name": "live", "fault": None}, {"name": "shop", "fault": "version abc: bytes changed"}],
}


class Service(BaseHTTPRequestHandler):
    said: object = SAID

    def do_GET(self) -> None:
        body = json.dumps(self.said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


def test_status_names_each_part_that_is_amiss(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registry, feature store, lost records, versions; nothing where all is well or nobody answers."""
    settings = Settings(home=tmp_path, service_port=port)
    assert state.service_faults(settings) == [
        "registry not read, what was loaded goes on answering: OperationalError: gone",
        "feature store away, popularity answers: no answer within 50 ms",
        "7 records of answers could not be kept since it started",
        "shop: version abc: bytes changed",
    ]
    monkeypatch.setattr(Service, "said", SAID | {"registry": "up", "features": "up", "lost_records": 0, "domains": []})
    assert state.service_faults(settings) == []
    assert state.service_faults(settings.model_copy(update={"service_port": 1})) == []
