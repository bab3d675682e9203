"""The HTTP face: paths, checks, and one shape for every error."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from deployment.http.keys import KEY
from deployment.messages import (
    MOST_BYTES,
    DomainsAnswer,
    ErrorAnswer,
    ErrorBody,
    FeedbackAnswer,
    FeedbackRequest,
    Message,
    RankAnswer,
    RankRequest,
)
from orchestrator.errors import as_json, http_status

if TYPE_CHECKING:
    from deployment.engine.serving import Serving

logger = logging.getLogger(__name__)

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "An API key is needed, and none that counts was sent"},
    403: {"model": ErrorAnswer, "description": "The API key does not allow this, or not in this domain"},
    404: {"model": ErrorAnswer, "description": "No such domain"},
    409: {"model": ErrorAnswer, "description": "It contradicts what is on record"},
    413: {"model": ErrorAnswer, "description": "The request is too large"},
    422: {"model": ErrorAnswer, "description": "The request is wrong; the error names the field"},
    429: {"model": ErrorAnswer, "description": "The API key's quota is used up; Retry-After says for how long"},
    503: {"model": ErrorAnswer, "description": "Too busy or not ready; try again"},
}


def create_app(serving: Callable[[], Serving]) -> FastAPI:
    """The app over whatever ``serving`` gives when a request comes in."""
    app = FastAPI(
        title="Graft",
        description="Rank items for a user in any registered domain.",
        version="1",
        # The page of FastAPI loads its scripts from a public host; /openapi.json needs nobody.
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(_LimitBody, most_bytes=MOST_BYTES)

    @app.post("/v1/domains/{domain}/rank", response_model=RankAnswer, responses=_ERRORS, tags=["rank"])
    async def rank(domain: str, request: RankRequest) -> Response:
        """Score candidates for a user and answer them from best to worst.

        It always answers: without the user's history, or without a model, by popularity, and says so.
        """
        ranking = await serving().rank(domain, request)
        timing = f"queue;dur={ranking.queue_ms:.3f}, features;dur={ranking.features_ms:.3f}"
        timing += f", model;dur={ranking.model_ms:.3f}, rank;dur={ranking.features_ms + ranking.model_ms:.3f}"
        return _reply(ranking.answer, headers={"Server-Timing": timing})

    @app.post("/v1/feedback", response_model=FeedbackAnswer, responses=_ERRORS, tags=["feedback"])
    async def feedback(request: FeedbackRequest, http: Request) -> Response:
        """Say what the user did with a ranking; sending it again changes nothing."""
        return _reply(await serving().feedback(request, http.scope.get(KEY)))

    @app.get(
        "/v1/domains",
        response_model=DomainsAnswer,
        responses={k: _ERRORS[k] for k in (401, 403, 429)},
        tags=["domains"],
    )
    async def domains(http: Request) -> Response:
        """Every domain that answers here and that the key covers, with its version and fallback level."""
        answer, key = serving().status(), http.scope.get(KEY)
        if key is not None:
            seen = [domain for domain in answer.domains if key.covers(domain.name)]
            answer = answer.model_copy(update={"domains": seen})
        return _reply(answer)

    @app.api_route("/v1/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def nothing_here() -> Response:
        raise HTTPException(404)

    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(HTTPException, _http_error)
    for kind in (ValueError, RuntimeError, Exception):
        app.add_exception_handler(kind, _fault)
    return app


def _reply(message: Message, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(message.as_json(), status, headers, "application/json")


def _error(status: int, code: str, message: str, **more: Any) -> Response:
    return _reply(ErrorAnswer(error=ErrorBody(code=code, message=message, **more)), status=status)


async def _wrong_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = [
        {"field": _field(problem["loc"]), "message": str(problem["msg"]), "kind": problem["type"]}
        for problem in error.errors()[:20]
    ]
    first = problems[0]
    if first["kind"] == "json_invalid" or not first["field"]:
        return _error(422, "invalid_request", "the body must be a JSON object", details={"problems": problems})
    message = f"{first['field']}: {first['message']}"
    return _error(422, "invalid_request", message, field=first["field"], details={"problems": problems})


def _field(location: tuple[int | str, ...]) -> str:
    """``items.3.item_id``: the place in the body, or the parameter."""
    return ".".join(str(part) for part in location if part not in ("body", "path", "query"))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    known = {
        404: ("not_found", f"nothing answers {request.method} {request.url.path}"),
        405: ("method_not_allowed", "wrong method"),
    }
    code, message = known.get(error.status_code, ("http_error", str(error.detail)))
    return _error(error.status_code, code, message)


async def _fault(request: Request, error: Exception) -> Response:
    status = http_status(error)
    if status == 500:
        logger.error("request failed", exc_info=error, extra={"path": request.url.path})
    headers = {"Retry-After": "1"} if status == 503 else None
    return _reply(ErrorAnswer.model_validate(as_json(error)), status=status, headers=headers)


class _LimitBody:
    """Refuse a body over ``most_bytes``, by what it says of itself or else by what arrives."""

    def __init__(self, app: Any, most_bytes: int) -> None:
        self._app = app
        self._most = most_bytes

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        refusal = _error(413, "too_large", f"a request may have {self._most} bytes at most")
        if declared.isdigit() and int(declared) > self._most:
            await refusal(scope, receive, send)
            return
        arrived = 0
        refused = False

        async def counted() -> Any:
            nonlocal arrived
            message = await receive()
            arrived += len(message.get("body", b""))
            # To the app it looks as if the caller hung up; what it says to that is not sent.
            return message if arrived <= self._most else {"type": "http.disconnect"}

        async def noted(message: Any) -> None:
            nonlocal refused
            if arrived <= self._most:
                await send(message)
            elif not refused:
                refused = True
                await refusal(scope, receive, send)

        await self._app(scope, counted, noted)
