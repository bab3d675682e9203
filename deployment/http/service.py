"""The BentoML service: one process (or several equal ones) for all domains.

    bentoml serve deployment.http.service:Graft --host 127.0.0.1 --port 3000

BentoML starts and restarts the workers. Every request goes to the app of ``api.py`` alone: BentoML's own pages load
scripts from elsewhere, and its metrics make a label of every path that a caller thinks of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bentoml
from uvicorn.config import HTTP_PROTOCOLS

from deployment.http import connections
from deployment.http.api import create_app
from deployment.http.keys import Keys
from deployment.records import metrics
from deployment.records.log_lines import log_as_json
from orchestrator.errors import Unavailable
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from deployment.engine.prepared import Prepared
    from deployment.engine.serving import Serving

SETTINGS = Settings()
PREPARED: list[Prepared] = []
"""What the process that forks the workers loaded for them; empty where a worker starts alone."""
_running: list[Serving] = []
_keys: list[Keys] = []


def _serving() -> Serving:
    if not _running:
        raise Unavailable("the service is starting")
    return _running[0]


app = create_app(_serving, lambda: _keys[0] if _keys else None)
metrics.place(str(SETTINGS.service_port), workers=SETTINGS.service_workers)
# BentoML leaves the choice to uvicorn; this is what it chooses, with limits.
HTTP_PROTOCOLS["auto"] = "deployment.http.connections:BoundedConnection"


class OwnApp:
    """Sends every request to the app, and the start and end of the process to BentoML."""

    def __init__(self, bentoml_app: Any) -> None:
        self._bentoml_app = bentoml_app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (app if scope["type"] == "http" else self._bentoml_app)(scope, receive, send)


@bentoml.service(
    name="graft",
    workers=SETTINGS.service_workers,
    traffic={"timeout": 60},
    # A line a request costs more than some requests; the prediction log holds what was answered.
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Graft:
    """Ranks items for users in every registered domain."""

    def __init__(self) -> None:
        # Only here: the parent process of the workers imports this module too, and needs neither torch nor Feast.
        from deployment.engine.serving import Serving

        log_as_json()
        self._serving = Serving(SETTINGS, prepared=PREPARED[0] if PREPARED else None)
        self._serving.start()
        keys = Keys(SETTINGS)
        keys.start()
        _keys[:] = [keys]
        metrics.reserve()
        self._serving.settle_memory()
        _running[:] = [self._serving]
        connections.OVERLOADED[:] = [lambda: self._serving.overloaded]

    @bentoml.on_shutdown
    def close(self) -> None:
        """Keep the records of what was answered."""
        self._serving.close()
        metrics.release()


Graft.add_asgi_middleware(OwnApp)  # type: ignore[attr-defined]
