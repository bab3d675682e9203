"""The service's own log: JSON lines, and not more of them than a disk can bear."""

from __future__ import annotations

import logging
import math
import time
from datetime import UTC, datetime

import orjson


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


class FewTraces(logging.Filter):
    """Lets the same event with the same kind of exception through once in ``every_s``, and says how many it held back.

    A caller who finds a request that fails could fill the disk with tracebacks.
    """

    def __init__(self, every_s: float = 60.0) -> None:
        super().__init__()
        self._every_s = every_s
        self._seen: dict[tuple[str, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if not record.exc_info:
            return True
        key = (record.name, str(record.msg), str(record.exc_info[0]))
        since, held_back = self._seen.get(key, (-math.inf, 0))
        if time.monotonic() - since < self._every_s:
            self._seen[key] = since, held_back + 1
            return False
        self._seen[key] = time.monotonic(), 0
        if held_back:
            record.held_back = held_back
        return True


def log_as_json() -> None:
    """Graft's own loggers and uvicorn's errors write JSON lines to stderr; BentoML keeps its own."""
    handler = logging.StreamHandler()
    handler.addFilter(FewTraces())
    handler.setFormatter(JsonLines())
    for name in ("deployment", "orchestrator", "feature_repo", "domains", "models", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
