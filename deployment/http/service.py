"""The BentoML service: one process (or several equal ones) for all domains.

    bentoml serve deployment.http.service:Graft --host 127.0.0.1 --port 3000

BentoML brings /livez, /readyz and /metrics; the paths of ``api.py`` are mounted beside them.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import bentoml
import orjson

from deployment.http.api import create_app
from deployment.http.keys import Keys, RequireKey
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from deployment.engine.serving import Serving

SETTINGS = Settings()
_running: list[Serving] = []
_keys: list[Keys] = []


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, event, and whatever ``extra`` gave."""

    _PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}

    def format(self, record: logging.LogRecord) -> str:
        """A record as a line."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in self._PLAIN},
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


def log_as_json() -> None:
    """Graft's own loggers write JSON lines to stderr; BentoML keeps its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("deployment", "orchestrator", "feature_repo", "domains", "models"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _serving() -> Serving:
    if not _running:
        raise RuntimeError("the service has not started")
    return _running[0]


app = create_app(_serving)


@bentoml.service(
    name="graft",
    workers=SETTINGS.service_workers,
    traffic={"timeout": 60},
    # A line a request costs more than some requests; the prediction log holds what was answered.
    logging={"access": {"enabled": False}},
    metrics={"enabled": True, "namespace": "graft"},
)
@bentoml.asgi_app(app, path="/")
class Graft:
    """Ranks items for users in every registered domain."""

    def __init__(self) -> None:
        # Only here: the parent process of the workers imports this module too, and needs neither torch nor Feast.
        from deployment.engine.serving import Serving

        log_as_json()
        self._serving = Serving(SETTINGS)
        self._serving.start()
        keys = Keys(SETTINGS)
        keys.start()
        _keys[:] = [keys]
        self._serving.settle_memory()
        _running[:] = [self._serving]

    async def __is_ready__(self) -> bool:
        return self._serving.ready

    @bentoml.on_shutdown
    def close(self) -> None:
        """Keep the records of what was answered."""
        self._serving.close()


# Around everything that BentoML serves too: its /metrics and its pages.
Graft.add_asgi_middleware(RequireKey, keys=lambda: _keys[0] if _keys else None)  # type: ignore[attr-defined]
