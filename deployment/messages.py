"""What the service takes and gives, as types: they check requests and they write the OpenAPI page."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

MOST_ITEMS = 1_000
MOST_BYTES = 4 * 1024 * 1024


def _id_as_text(value: Any) -> Any:
    # Many callers hold ids as numbers; everywhere in Graft they are text. A bool is a mistake, not an id.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_NO_NUL = r"^[^\x00]+$"  # PostgreSQL keeps no NUL in text

Id = Annotated[str, BeforeValidator(_id_as_text), StringConstraints(max_length=400, pattern=_NO_NUL)]
RequestId = Annotated[str, BeforeValidator(_id_as_text), StringConstraints(max_length=200, pattern=_NO_NUL)]
FeatureValue = str | int | float | bool | None
Features = Annotated[dict[str, FeatureValue], Field(max_length=256)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class Candidate(_Message):
    """An item to score."""

    item_id: Id
    features: Features | None = None
    """Values that replace what is stored for the item; for an item that is not stored, all there is."""


class RankRequest(_Message):
    """Who is asking, and what for."""

    request_id: RequestId | None = None
    """Names this request in feedback; made up where absent."""
    user_id: Id
    user: Features | None = None
    """Profile values that replace the stored ones for this request."""
    context: Features | None = None
    """Values of the domain's context columns, such as the hour."""
    items: Annotated[list[Candidate], Field(min_length=1, max_length=MOST_ITEMS)]
    top_k: Annotated[int, Field(ge=1)] | None = None
    """Answer only the best so many."""


class RankedItem(_Message):
    """An item with its score: a probability of a click, or a rating."""

    item_id: str
    score: float
    reason: str | None = None
    """Why the score rests on less than a full answer: item_unknown, or the reason of the whole answer."""


class RankAnswer(_Message):
    """Items from best to worst, and what the order rests on."""

    request_id: str
    domain: str
    model_version: str | None
    """The version that scored; none where popularity did."""
    served_by: Literal["prior", "zero_shot", "adapter"]
    reason: str | None = None
    """Why it is only the prior: user_unknown, no_history, features_unavailable, no_version, paused, model_fault."""
    took_ms: float
    items: list[RankedItem]


class FeedbackEvent(_Message):
    """What the user did with one item."""

    item_id: Id
    action: Annotated[str, StringConstraints(max_length=60, pattern=_NO_NUL)] = "click"
    value: float = 1.0
    """The label in the domain's own unit: 1 for a click, or a rating."""
    time_us: Annotated[int, Field(ge=0)] | None = None
    """When, in microseconds since the epoch; now where absent."""


class FeedbackRequest(_Message):
    """What came of a ranking. Sending it again changes nothing."""

    request_id: RequestId
    """Of the ranking that it answers."""
    user_id: Id | None = None
    """Needed, with the domain, only where the ranking is not on record any more."""
    domain: str | None = None
    events: Annotated[list[FeedbackEvent], Field(min_length=1, max_length=MOST_ITEMS)]


class FeedbackAnswer(_Message):
    """How many events were new."""

    request_id: str
    accepted: int
    duplicates: int


class DomainStatus(_Message):
    """One domain as this process serves it."""

    name: str
    role: str
    task: str
    state: str
    served_by: Literal["prior", "zero_shot", "adapter"]
    model_version: str | None
    items: int
    fault: str | None = None
    """Why a newer version could not be loaded; the one before goes on answering."""


class DomainsAnswer(_Message):
    """Every domain that answers, and how the process is."""

    generation: int
    """Of the registry, as of what this process has loaded."""
    features: str
    """up, or why the feature store does not answer."""
    lost_records: int
    """Predictions and pushes that could not be kept since the process started."""
    domains: list[DomainStatus]


class ErrorBody(_Message):
    code: str
    message: str
    field: str | None = None
    details: dict[str, Any] | None = None


class ErrorAnswer(_Message):
    """The one shape of every error."""

    error: ErrorBody
