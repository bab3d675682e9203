"""The HTTP face: paths, checks, and one shape for every error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from deployment.http.envelope import Envelope
from deployment.http.keys import KEY
from deployment.http.replies import error, reply
from deployment.messages import (
    MOST_BYTES,
    DomainsAnswer,
    ErrorAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    RankAnswer,
    RankRequest,
)
from deployment.records.metrics import exposition

if TYPE_CHECKING:
    from deployment.engine.serving import Serving

_ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "An API key is needed, and none that counts was sent"},
    403: {"model": ErrorAnswer, "description": "The API key does not allow this, or not in this domain"},
    404: {"model": ErrorAnswer, "description": "No such domain"},
    408: {"model": ErrorAnswer, "description": "The body did not arrive in time"},
    409: {"model": ErrorAnswer, "description": "It contradicts what is on record"},
    413: {"model": ErrorAnswer, "description": "The request is too large, packed or unpacked"},
    415: {"model": ErrorAnswer, "description": "The content type is not JSON, or the encoding is unknown"},
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
        redirect_slashes=False,
    )
    app.add_middleware(Envelope, serving=serving, most_bytes=MOST_BYTES)

    @app.post("/v1/domains/{domain}/rank", response_model=RankAnswer, responses=_ERRORS, tags=["rank"])
    async def rank(domain: str, request: RankRequest) -> Response:
        """Score candidates for a user and answer them from best to worst.

        It always answers: without the user's history, or without a model, by popularity, and says so.
        """
        ranking = await serving().rank(domain, request)
        timing = f"queue;dur={ranking.queue_ms:.3f}, features;dur={ranking.features_ms:.3f}"
        timing += f", model;dur={ranking.model_ms:.3f}, rank;dur={ranking.features_ms + ranking.model_ms:.3f}"
        return reply(ranking.answer, headers={"Server-Timing": timing})

    @app.post("/v1/feedback", response_model=FeedbackAnswer, responses=_ERRORS, tags=["feedback"])
    async def feedback(request: FeedbackRequest, http: Request) -> Response:
        """Say what the user did with a ranking; sending it again changes nothing."""
        return reply(await serving().feedback(request, http.scope.get(KEY)))

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
        return reply(answer)

    _add_health(app, serving)
    app.add_exception_handler(RequestValidationError, _wrong_request)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _add_health(app: FastAPI, serving: Callable[[], Serving]) -> None:
    """Paths for whoever runs the service; they wait for nothing."""

    @app.get("/", include_in_schema=False)
    async def about() -> dict[str, str]:
        return {"service": "graft", "paths": "/openapi.json"}

    @app.get("/livez", include_in_schema=False)
    @app.get("/healthz", include_in_schema=False)
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> Response:
        if serving().ready:
            return Response('{"status":"ready"}', media_type="application/json")
        reason = f"registry: {serving().registry}"
        return error(503, "not_ready", reason, headers={"Retry-After": "1"})

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        text, kind = exposition()
        return Response(text, media_type=kind)


async def _wrong_request(_: Request, raised: Exception) -> Response:
    assert isinstance(raised, RequestValidationError)
    problems = [
        {"field": _field(problem["loc"]), "message": str(problem["msg"]), "kind": problem["type"]}
        for problem in raised.errors()[:20]
    ]
    first = problems[0]
    if first["kind"] == "json_invalid" or not first["field"]:
        return error(422, "invalid_request", "the body must be a JSON object", details={"problems": problems})
    message = f"{first['field']}: {first['message']}"
    return error(422, "invalid_request", message, field=first["field"], details={"problems": problems})


def _field(location: tuple[int | str, ...]) -> str:
    """``items.3.item_id``: the place in the body, or the parameter."""
    return ".".join(str(part) for part in location if part not in ("body", "path", "query"))


async def _http_error(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, HTTPException)
    known = {
        404: ("not_found", f"nothing answers {request.method} {request.url.path}"),
        405: ("method_not_allowed", f"{request.url.path} does not take {request.method}"),
    }
    if raised.status_code == 400:  # what FastAPI says of a body that is no text, too deep, or a number too long to read
        return error(422, "invalid_request", "the body must be a JSON object in UTF-8")
    code, message = known.get(raised.status_code, ("http_error", str(raised.detail)))
    return error(raised.status_code, code, message, headers=dict(raised.headers or {}))
