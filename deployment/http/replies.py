"""Answers as JSON, and the one shape of every error."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import Response

from deployment.messages import ErrorAnswer, ErrorBody, Message
from orchestrator.errors import as_json, http_status

logger = logging.getLogger(__name__)


def reply(message: Message, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A message as it goes out."""
    return Response(message.as_json(), status, headers, "application/json")


def error(status: int, code: str, message: str, *, headers: dict[str, str] | None = None, **more: Any) -> Response:
    """An error that the HTTP face itself finds; what else it has is ``field`` and ``details``."""
    return reply(ErrorAnswer(error=ErrorBody(code=code, message=message, **more)), status=status, headers=headers)


def fault(path: str, raised: Exception) -> Response:
    """What a caller sees of an exception; the log sees the rest of one that nobody meant to raise."""
    status = http_status(raised)
    if status == 500:
        logger.error("request failed", exc_info=raised, extra={"path": path[:200]})
    return reply(ErrorAnswer.model_validate(as_json(raised)), status=status)
