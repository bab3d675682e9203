"""Every error that Graft raises on purpose, and what the outside world sees of it.

DomainFault (a ValueError; domains/errors.py)
    NotFound      404   UnknownDomain, UnknownVersion, UnknownRun, NoLiveVersion
    Conflict      409   DomainAlreadyRegistered, StalePromotion, IllegalTransition
    Rejected      422   InvalidSpec, InvalidData, NotEnoughData, PromotionRefused
Unavailable       503   FeaturesUnavailable, ArtifactMissing, Overloaded, FlowsUnavailable
Refused           422   what the prediction service said no to, in its own words and code
ValueError        422   AdapterMismatch, CorruptCheckpoint (models), and any other broken promise about a value

The service, the command line and the pages read the same two functions below, so one error looks the same everywhere.
"""

from __future__ import annotations

import re
from typing import Any

from domains.errors import Conflict, DomainFault, NotFound, Rejected


class Unavailable(RuntimeError):
    """Something that Graft leans on does not answer; the same request may work later."""

    @property
    def code(self) -> str:
        return _snake(type(self).__name__)


class FeaturesUnavailable(Unavailable):
    """The online feature store does not answer."""


class ArtifactMissing(Unavailable):
    """A version's files are not in the model store."""


class Overloaded(Unavailable):
    """More requests are waiting than the service takes."""


class Refused(ValueError):
    """The prediction service turned a request down; carries the code, field and details that it gave."""

    def __init__(self, message: str, *, code: str, details: dict[str, Any] | None, field: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.details = {**(details or {}), **({"field": field} if field else {})}


class FlowsUnavailable(Unavailable):
    """The Prefect server does not answer."""


_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (NotFound, 404),
    (Conflict, 409),
    (Rejected, 422),
    (Unavailable, 503),
    (ValueError, 422),
)


def http_status(error: BaseException) -> int:
    """The HTTP status of an error; 500 for one that nobody meant to raise."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def as_json(error: BaseException) -> dict[str, Any]:
    """The one JSON shape of an error: ``{"error": {"code", "message", "field"?, "details"?}}``."""
    status = http_status(error)
    if status == 500:
        return {"error": {"code": "internal", "message": "Graft failed to answer; the log of the server says why."}}
    details = dict(getattr(error, "details", None) or {})
    body: dict[str, Any] = {
        "code": getattr(error, "code", None) or _snake(type(error).__name__),
        "message": str(error),
    }
    if "field" in details:
        body["field"] = details.pop("field")
    if details:
        body["details"] = details
    return {"error": body}


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


__all__ = [
    "ArtifactMissing",
    "Conflict",
    "DomainFault",
    "FeaturesUnavailable",
    "FlowsUnavailable",
    "NotFound",
    "Overloaded",
    "Refused",
    "Rejected",
    "Unavailable",
    "as_json",
    "http_status",
]
