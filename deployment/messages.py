"""What the service takes and gives, as types: they check requests, are the answers, and write the OpenAPI page.

A field of a request or an answer is added here, and given its value in ``engine``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from domains.lifecycle import FallbackLevel
from domains.limits import LONGEST_ACTION, LONGEST_ID, SPACES

MOST_ITEMS = 1_000
MOST_BYTES = 4 * 1024 * 1024
MOST_FIELDS = 32
"""Of one object of a request, features aside. To name each of very many that do not belong there takes seconds."""
_MOST = {"most": MOST_FIELDS}


def _whole(value: Any) -> Any:
    """A whole number that was read as a float is that number; anything else is left to the checks."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


def _id_as_text(value: Any) -> Any:
    # Many callers hold ids as numbers; Graft knows them as text. A bool is a mistake, not an id.
    if isinstance(value, str):
        return value.strip(SPACES)  # as ingestion reads it
    value = _whole(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_NO_NUL = r"^[^\x00]+$"  # PostgreSQL keeps no NUL in text


def _id_schema(most: int) -> WithJsonSchema:
    text = {"type": "string", "minLength": 1, "maxLength": most, "pattern": r"^[^\u0000]+$"}
    return WithJsonSchema({"anyOf": [text, {"type": "integer"}]})


# The function last: constraints before it are checked inside pydantic's core, those behind it one by one in Python.
Id = Annotated[
    str,
    StringConstraints(max_length=LONGEST_ID, pattern=_NO_NUL),
    BeforeValidator(_id_as_text),
    _id_schema(LONGEST_ID),
]
RequestId = Annotated[
    str, StringConstraints(max_length=200, pattern=_NO_NUL), BeforeValidator(_id_as_text), _id_schema(200)
]
# Any value: one that cannot be used costs itself alone and is named in the answer.
Features = Annotated[dict[str, Any], Field(max_length=256)]


class Message(BaseModel):
    """What every request and answer has in common: no unknown fields, no changes, no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def as_json(self) -> str:
        """The fields that were given, as a JSON object; a default that nobody gave is left out."""
        return self.model_dump_json(exclude_unset=True)


class _Request(Message):
    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        listed = [one for name in ("items", "events") if isinstance(value.get(name), list) for one in value[name]]
        if any(isinstance(one, dict) and len(one) > MOST_FIELDS for one in (value, *listed[:MOST_ITEMS])):
            raise PydanticCustomError("too_many_fields", "an object of a request has {most} fields at most", _MOST)
        return value


class Candidate(Message):
    """An item to score."""

    item_id: Id
    features: Features | None = None
    """Values that replace what is stored for the item; for an item that is not stored, all there is."""


class RankRequest(_Request):
    """Who is asking, and what for."""

    request_id: RequestId | None = None
    """Names this request in feedback; made up where absent."""
    user_id: Id
    user: Features | None = None
    """Profile values that replace the stored ones for this request."""
    context: Features | None = None
    """Values of the domain's context columns, such as the hour."""
    items: Annotated[list[Candidate], Field(min_length=1, max_length=MOST_ITEMS)]
    top_k: Annotated[int, Field(ge=1, strict=True), BeforeValidator(_whole)] | None = None
    """Answer only the best so many."""


class RankedItem(Message):
    """An item with its score: a probability of a click, or a rating."""

    item_id: str
    score: float
    reason: str | None = None
    """Why the score rests on less than a full answer: item_unknown, or the reason of the whole answer."""


class FieldWarning(Message):
    """A part of the request that was left out, such as ``items.3.features.price``, and why."""

    field: str
    message: str


class RankAnswer(Message):
    """Items from best to worst, and what the order rests on."""

    request_id: str
    domain: str
    model_version: str | None
    """The version that scored; none where popularity did."""
    served_by: FallbackLevel
    reason: str | None = None
    """Why it is only the prior: user_unknown, no_history, features_unavailable, no_version, paused, model_fault."""
    took_ms: float
    items: list[RankedItem]
    warnings: list[FieldWarning] = []
    """What of the request was left out, and why; absent where all of it counted."""


class FeedbackEvent(Message):
    """What the user did with one item."""

    item_id: Id
    action: Annotated[str, StringConstraints(max_length=LONGEST_ACTION, pattern=_NO_NUL)] = "click"
    value: Annotated[float, Field(strict=True)] = 1.0
    """The label in the domain's own unit, within its label_range: 1 for a click, or a rating."""
    time_us: Annotated[int, Field(ge=0, strict=True), BeforeValidator(_whole)] | None = None
    """When, in microseconds since 1970 UTC, from the ranking to now, give or take five minutes; now where absent."""


class FeedbackRequest(_Request):
    """What the user did with a ranking, kept whole or not at all. Sending it again changes nothing."""

    request_id: RequestId
    """Of the ranking that it answers."""
    user_id: Id | None = None
    """Who asked; needed, with the domain, only where the ranking is not on record (any more)."""
    domain: Id | None = None
    events: Annotated[list[FeedbackEvent], Field(min_length=1, max_length=MOST_ITEMS)]


class FeedbackAnswer(Message):
    """How many events were new."""

    request_id: str
    accepted: int
    duplicates: int


class DomainStatus(Message):
    """One domain as this process serves it."""

    name: str
    role: str
    task: str
    state: str
    served_by: FallbackLevel
    model_version: str | None
    items: int
    fault: str | None = None
    """Why a newer version could not be loaded; the one before goes on answering."""
    forced: str | None = None
    """Why a person set this version live against the gate; absent where the gate let it pass."""


class OutboxStatus(Message):
    """Feedback on its way to the users' online histories."""

    events: int
    """Events that wait; from 50,000 on feedback is turned away."""
    oldest_s: float
    """How long the oldest has waited."""


class DomainsAnswer(Message):
    """Every domain that answers, and how the process is."""

    generation: int
    """Of the registry, as of what this process has loaded."""
    registry: str
    """up, or why the registry could not be read; what was loaded before goes on answering."""
    features: str
    """up, or why the feature store does not answer."""
    lost_records: int
    """Predictions and pushes that could not be kept since the process started."""
    outbox: OutboxStatus
    """Feedback that has been acknowledged and that rankings do not know yet, of all processes."""
    domains: list[DomainStatus]


class Health(Message):
    """That the process runs, or takes requests."""

    status: str
    features: str | None = None
    """up, or away while the feature store does not answer and popularity does; of /readyz alone."""


class ErrorBody(Message):
    """What went wrong, and in which field of the request."""

    code: str
    message: str
    field: str | None = None
    details: dict[str, Any] | None = None


class ErrorAnswer(Message):
    """The one shape of every error."""

    error: ErrorBody
