"""Every error that Graft raises on purpose, and what the outside world sees of it.

    error                               HTTP  graft
    NotFound (domains/errors.py)        404   1      UnknownDomain, UnknownVersion, UnknownRun, UnknownKey,
                                                     UnknownUser, NoLiveVersion
    Forbidden                           403   1      KeyRefused, RoleRefused, LoginRefused
    Conflict                            409   1      DomainAlreadyRegistered, StalePromotion, IllegalTransition,
                                                     ArtifactDamaged
    Rejected                            422   1      InvalidSpec, InvalidData, NotEnoughData, PromotionRefused
    Unavailable                         503   1      ArtifactMissing, FlowsUnavailable, Overloaded, RegistryAway,
                                                     RegistryUnread, ServersUnavailable; the registry's database
                                                     away
    any other ValueError                422   1      AdapterMismatch, BenchmarkUnavailable, CheckpointMismatch,
                                                     CorruptCheckpoint, ProcessesFailed, Refused, RunFailed,
                                                     TrainingDiverged, UnreadableState
    OSError                             500   1      a file that is missing or cannot be read
    anything else, a bug in Graft       500   1      with a traceback

``graft`` prints one line for all but bugs; ``EXIT_STATUS`` lists its exit statuses. The service, the command line, the
pages and the records of runs all describe an error by the functions below, so that it reads the same everywhere.
"""

from __future__ import annotations

import os
import re
import traceback
from typing import Any

from pydantic import ValidationError
from sqlalchemy import exc

from domains.errors import Conflict, Forbidden, NotFound, Rejected

EXIT_STATUS = {
    0: "done",
    1: "an error, described in one line on standard error; a bug in Graft shows its traceback",
    2: "an unknown command, option or value",
    130: "interrupted by Ctrl-C",
    143: "ended by SIGTERM",
}
"""What each exit status of ``graft`` means."""


class Unavailable(RuntimeError):
    """Something that Graft depends on does not answer; the same request may succeed later."""


class ArtifactMissing(Unavailable):
    """The model store does not hold a version's files."""


class ArtifactDamaged(Conflict):
    """A version's files are not what was published, or its model does not give numbers: it may not go live."""


class FlowsUnavailable(Unavailable):
    """The Prefect server does not answer."""


class Overloaded(Unavailable):
    """More requests are waiting than the service accepts."""


class RegistryUnread(Unavailable):
    """The service could not read the registry since it started, so it does not know which domains there are."""


class ServersUnavailable(Unavailable):
    """The servers cannot be started, or one of them does not come up."""


class RunFailed(ValueError):
    """A run failed or was cancelled in another process; the message holds the reason that it gave."""


class Refused(ValueError):
    """The prediction service refused a request; carries the code, field and details of its answer."""

    def __init__(self, message: str, *, code: str, details: dict[str, Any] | None, field: str | None) -> None:
        super().__init__(message)
        self.code = code
        self.details = {**(details or {}), **({"field": field} if field else {})}


HTTP_STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (NotFound, 404),
    (Forbidden, 403),
    (Conflict, 409),
    (Rejected, 422),
    (Unavailable, 503),
    (ValueError, 422),
)
"""The first class that an error belongs to decides; none of them means 500."""


DATABASE_AWAY = (exc.OperationalError, exc.InterfaceError, exc.InternalError, exc.TimeoutError, exc.DisconnectionError)
"""How SQLAlchemy says that the database is gone, full, locked or too slow, rather than that a statement is wrong."""


def http_status(error: BaseException) -> int:
    """The HTTP status of an error; 500 for one that nobody meant to raise."""
    if isinstance(error, DATABASE_AWAY):
        return 503
    return next((status for kind, status in HTTP_STATUS if isinstance(error, kind)), 500)


def as_json(error: BaseException) -> dict[str, Any]:
    """The one JSON shape of an error: ``{"error": {"code", "message", "field"?, "details"?}}``."""
    if http_status(error) == 500:
        return {"error": {"code": "internal", "message": "Graft failed to answer; the log of the server says why."}}
    if isinstance(error, DATABASE_AWAY):
        return {"error": {"code": "database_unavailable", "message": "the registry's database does not answer now"}}
    details = dict(getattr(error, "details", None) or {})
    body: dict[str, Any] = {
        "code": getattr(error, "code", None) or re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower(),
        "message": _message(error),
    }
    if "field" in details:
        body["field"] = details.pop("field")
    if details:
        body["details"] = details
    return {"error": body}


def as_line(error: BaseException) -> str:
    """An error in one line for a person, with the field, file and line that it came from where they are known."""
    if not isinstance(error, Exception):  # Ctrl-C, SIGTERM, a cancelled flow
        return _printable(str(error)) or "interrupted"
    message = _printable(_message(error)) or type(error).__name__
    if isinstance(error, OSError) and error.filename:
        return _printable(f"{os.fsdecode(error.filename)}: {error.strerror or message}")
    if http_status(error) == 500:
        return _printable("".join(traceback.format_exception_only(error)))
    details = getattr(error, "details", None) or {}
    known = [(key, str(details[key])) for key in ("field", "file", "line") if details.get(key) is not None]
    absent = [f"{key} {value}" for key, value in known if value not in message]
    return message + (f" ({', '.join(absent)})" if absent else "")


def _printable(text: str) -> str:
    """The text in one line; what a terminal would obey rather than show comes escaped."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in " ".join(text.split())
    )


def _message(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # its own message has several lines
        first = error.errors(include_input=False, include_url=False)[0]
        said = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
        if error.title == "Settings":
            return f"GRAFT_{str(first['loc'][0]).upper()}: {said}"
        return f"{error.title}: {'.'.join(str(part) for part in first['loc'])}: {said}"
    return str(error)
