"""What the registry hands out: frozen values, detached from the database, with times in UTC."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from domains.lifecycle import State
from domains.registry.database import now
from domains.spec import DomainSpec

VersionKind = Literal["backbone", "adapter"]
FallbackLevel = Literal["zero_shot", "adapter"]
RunState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED: tuple[RunState, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A registered domain."""

    name: str
    number: int
    """Small and stable, from 1: the domain's code in histories and tables."""
    role: Literal["source", "target"]
    state: State
    spec: DomainSpec
    owner: str
    created_at: datetime
    counts: dict[str, Any]
    """Over all ingests: ``ingests``, the sums of ``rows_...`` and ``reasons``, the largest ``users`` and ``items``,
    the earliest ``first_us`` and the latest ``last_us``."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """An immutable trained artifact: a backbone, or one domain's adapter for one backbone."""

    id: str
    """Content hash."""
    kind: VersionKind
    domain: str | None = None
    backbone_id: str | None = None
    level: FallbackLevel | None = None
    artifact: str
    """Where the weights lie, such as a tag of the model store."""
    metrics: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    created_at: datetime = field(default_factory=now)
    created_by: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a flow, however often it was resumed."""

    id: str
    kind: str
    domain: str | None
    state: RunState
    progress: float
    """0 to 1."""
    step: str
    detail: dict[str, Any]
    params: dict[str, Any]
    result: dict[str, Any]
    error: str | None
    started_at: datetime
    finished_at: datetime | None
    flow_run_id: str | None
    started_by: str


@dataclass(frozen=True, kw_only=True)
class Live:
    """The pointer to what answers in a domain; ``domain`` None: the shared model."""

    domain: str | None
    version_id: str
    generation: int
    """The registry's generation when the pointer was moved here."""
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One flip of a live pointer, forwards or back."""

    id: int
    domain: str | None
    from_version: str | None
    to_version: str
    who: str
    why: str
    at: datetime
    kind: Literal["promote", "roll_back"]
