"""What can go wrong with a domain, its data, its runs and its versions: all ``ValueError`` kin, one class a reason.

They are defined below the registry, ingest and the spec, which raise them without knowing HTTP.
``orchestrator/errors.py`` draws the whole tree and maps it to status codes once.

    DomainFault
        NotFound    UnknownDomain, UnknownVersion, UnknownRun, UnknownKey, UnknownUser, NoLiveVersion
        Conflict    DomainAlreadyRegistered, StalePromotion, IllegalTransition
        Forbidden   KeyRefused, RoleRefused, LoginRefused
        Rejected    InvalidSpec, InvalidData, NotEnoughData, PromotionRefused
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class DomainFault(ValueError):
    """A request that cannot be fulfilled, with the reason for a person and the details for a program.

    ``code`` is the class name in snake_case; ``details`` holds plain JSON values (names, fields, lines, counts).
    """

    code: ClassVar[str] = "domain_fault"

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, Any] = details

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class NotFound(DomainFault):
    """The thing that was named does not exist."""


class UnknownDomain(NotFound):
    """No domain is registered under this name."""


class UnknownVersion(NotFound):
    """No version has this id."""


class UnknownRun(NotFound):
    """No run has this id."""


class UnknownKey(NotFound):
    """No API key has this id or name."""


class UnknownUser(NotFound):
    """Nobody of this name may sign in."""


class NoLiveVersion(NotFound):
    """Nothing is live here, or nothing was live before what is live now."""


class Conflict(DomainFault):
    """The request contradicts what is already recorded."""


class DomainAlreadyRegistered(Conflict):
    """Another spec holds this name."""


class StalePromotion(Conflict):
    """Another version went live meanwhile; evaluate against it and promote again."""


class IllegalTransition(Conflict):
    """The lifecycle has no such move."""


class Forbidden(DomainFault):
    """The key or the role of whoever asks does not allow it."""


class KeyRefused(Forbidden):
    """The API key does not count here."""


class RoleRefused(Forbidden):
    """The role of whoever is logged in does not allow it."""


class LoginRefused(Forbidden):
    """Nobody is signed in, or the name and the password do not belong together."""


class Rejected(DomainFault):
    """The request was understood and is wrong or not good enough."""


class InvalidSpec(Rejected):
    """A domain spec breaks a rule; ``details["problems"]`` lists each with its field, line and message."""


class InvalidData(Rejected):
    """Rows or files break a rule."""


class NotEnoughData(Rejected):
    """Fewer rows or users than the step needs."""


class PromotionRefused(Rejected):
    """The version may not go live: it failed its gate, or it is not a version of this domain."""
