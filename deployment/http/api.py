"""The HTTP face: paths, checks, and one shape for every error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from deployment.http.bodies import Bodies
from deployment.http.envelope import Envelope
from deployment.http.keys import KEY, OPEN, Keys, RequireKey
from deployment.http.replies import error, reply
from deployment.messages import (
    MOST_BYTES,
    DomainsAnswer,
    ErrorAnswer,
    FeedbackAnswer,
    FeedbackRequest,
    Health,
    RankAnswer,
    RankRequest,
)
from deployment.records.metrics import exposition

if TYPE_CHECKING:
    from deployment.engine.serving import Serving

_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait"}}
_MEANINGS = {
    400: "The request is ambiguous or no HTTP/1.1, such as one with two lengths; the connection ends",
    401: "An API key is needed, and none that counts was sent",
    403: "The API key does not allow this, or not in this domain",
    404: "No such domain",
    408: "The headers or the body did not arrive in time",
    409: "It contradicts what is on record",
    413: "The request is too large, packed or unpacked",
    414: "The URL is too long",
    415: "The content type is not JSON, or the encoding is unknown",
    422: "The request is wrong; the error names the field",
    429: "The API key's quota is used up",
    431: "The headers are too large",
    500: "A fault of this service; its log says which",
    503: "Too busy or not ready; try again",
    505: "Another version of HTTP than 1.1 or 1.0",
}
_ANY = (400, 401, 403, 408, 414, 429, 431, 500, 503, 505)
"""What any request may get."""
_POSTED = (*_ANY, 404, 409, 413, 415, 422)
_PROBE = (400, 408, 414, 431, 505)


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    declared: dict[int | str, dict[str, Any]] = {}
    for status in sorted(statuses):
        declared[status] = {"model": ErrorAnswer, "description": _MEANINGS[status]}
        if status in (429, 503):
            declared[status]["headers"] = _RETRY_AFTER
    return declared


def create_app(serving: Callable[[], Serving], keys: Callable[[], Keys | None] | None = None) -> FastAPI:
    """The app over whatever ``serving`` gives when a request comes in.

    Args:
        keys: gives the API keys that are asked for before a body is read; without it anybody is answered.
    """
    app = FastAPI(
        title="Graft",
        description="Rank items for a user in any registered domain.",
        version="1",
        # The page of FastAPI loads its scripts from a public host; /openapi.json needs nobody.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    # The last one is the outermost.
    app.add_middleware(Bodies, serving=serving, most_bytes=MOST_BYTES)
    if keys is not None:
        app.add_middleware(RequireKey, keys=keys)
    app.add_middleware(Envelope)

    @app.post("/v1/domains/{domain}/rank", response_model=RankAnswer, responses=_errors(*_POSTED), tags=["rank"])
    async def rank(domain: str, request: RankRequest) -> Response:
        """Score candidates for a user and answer them from best to worst.

        It always answers: without the user's history, or without a model, by popularity, and says so.
        """
        ranking = await serving().rank(domain, request)
        timing = f"queue;dur={ranking.queue_ms:.3f}, features;dur={ranking.features_ms:.3f}"
        timing += f", model;dur={ranking.model_ms:.3f}, rank;dur={ranking.features_ms + ranking.model_ms:.3f}"
        return reply(ranking.answer, headers={"Server-Timing": timing})

    @app.post("/v1/feedback", response_model=FeedbackAnswer, responses=_errors(*_POSTED), tags=["feedback"])
    async def feedback(request: FeedbackRequest, http: Request) -> Response:
        """Say what the user did with a ranking; sending it again changes nothing."""
        return reply(await serving().feedback(request, http.scope.get(KEY)))

    @app.get("/v1/domains", response_model=DomainsAnswer, responses=_errors(*_ANY), tags=["domains"])
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
    _describe(app)
    return app


def _add_health(app: FastAPI, serving: Callable[[], Serving]) -> None:
    """Paths for whoever runs the service; they wait for nothing."""

    @app.get("/", include_in_schema=False)
    async def about() -> dict[str, str]:
        return {"service": "graft", "paths": "/openapi.json"}

    @app.get("/healthz", include_in_schema=False)
    @app.get("/livez", response_model=Health, responses=_errors(*_PROBE), tags=["health"])
    async def alive() -> Response:
        """Whether the process runs."""
        return reply(Health(status="alive"))

    @app.get("/readyz", response_model=Health, responses=_errors(*_PROBE, 500, 503), tags=["health"])
    async def ready() -> Response:
        """Whether it is to be sent requests: it is loaded, and knows what the registry says now."""
        if serving().ready:
            # A feature store that is away costs the level of the answers, not the answers: this process may be asked.
            # Why it is away stands in /v1/domains: probes ask without a key.
            return reply(Health(status="ready", features="up" if serving().features == "up" else "away"))
        return error(503, "not_ready", f"registry: {serving().registry}")

    @app.get("/metrics", response_class=PlainTextResponse, responses=_errors(*_ANY), tags=["health"])
    async def metrics() -> Response:
        """What is counted, for Prometheus."""
        text, kind = exposition(serving().snapshot.domains)
        return Response(text, media_type=kind)


def _describe(app: FastAPI) -> None:
    """Say in the document of the paths how a key is sent."""
    document = app.openapi()
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = [{}] if path in OPEN else [{}, {"key": []}]


async def _wrong_request(_: Request, raised: Exception) -> Response:
    assert isinstance(raised, RequestValidationError)
    problems = [
        {"field": _field(problem["loc"]), "message": str(problem["msg"]), "kind": problem["type"]}
        for problem in raised.errors()[:20]
    ]
    first = problems[0]
    if first["kind"] == "too_many_fields":
        return error(422, "invalid_request", first["message"])
    if first["kind"] == "json_invalid" or not first["field"]:
        return error(422, "invalid_request", "the body must be a JSON object", details={"problems": problems})
    message = f"{first['field']}: {first['message']}"
    return error(422, "invalid_request", message, field=first["field"], details={"problems": problems})


def _field(location: tuple[int | str, ...]) -> str:
    """``items.3.item_id``: the place in the body, or the parameter."""
    return ".".join(str(part) for part in location if part not in ("body", "path", "query"))


async def _http_error(request: Request, raised: Exception) -> Response:
    assert isinstance(raised, HTTPException)
    path = request.scope["path"][:200]
    known = {
        404: ("not_found", f"nothing answers {request.method} {path}"),
        405: ("method_not_allowed", f"{path} does not take {request.method}"),
    }
    if raised.status_code == 400:  # what FastAPI says of a body that is no text, too deep, or a number too long to read
        return error(422, "invalid_request", "the body must be a JSON object in UTF-8")
    code, message = known.get(raised.status_code, ("http_error", str(raised.detail)))
    headers = dict(raised.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"
    return error(raised.status_code, code, message, headers=headers)
