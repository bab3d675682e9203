"""What a simulated marketplace is made of: its domains, their sizes and how they differ. No random numbers here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

CATEGORIES = (
    *("sport", "cooking", "music", "travel", "games", "fashion", "science", "garden"),
    *("cars", "pets", "beauty", "home", "comedy", "news", "crafts", "fitness"),
)
STYLES = ("classic", "bold", "plain", "luxury")
AGE_BANDS = ("under-18", "18-24", "25-34", "35-44", "45-59", "60-plus")
REGIONS = ("north", "south", "east", "west", "coast", "hills", "islands", "capital")
DEVICES = ("phone", "tablet", "desktop")
ACTIONS = ("view", "click", "buy")


@dataclass(frozen=True, kw_only=True)
class DomainShape:
    """What makes one simulated domain differ from the others.

    ``events_share`` is relative to the marketplace's events; ``item_share`` (items per user) and ``user_share`` to its
    users. ``number`` names the item's numeric feature. ``turn_degrees`` is the angle by which tastes are turned here;
    ``shift`` the length of their common displacement. ``lie_share`` of the rows are labelled as if the user's taste
    were the opposite, at the same click rate. ``browse_by_taste`` is the share of looks that follow the user's taste;
    the others follow the shelf. A domain opens at ``opens_at`` of the simulated time. ``late_share`` of its users
    arrive only in the last fifth: with their source history they are the cold users of a time-forward split.
    """

    name: str
    role: Literal["source", "target"]
    events_share: float
    item_share: float
    user_share: float
    bias: float
    number: str
    surface: str
    layout: str
    turn_degrees: float
    shift: float
    sources: tuple[str, ...] = ()
    opens_at: float = 0.0
    late_share: float = 0.0
    browse_by_taste: float = 0.5
    lie_share: float = 0.0


def _target(name: str, *, sources: tuple[str, ...] = ("video", "shop"), **shape: Any) -> DomainShape:
    return DomainShape(name=name, role="target", sources=sources, opens_at=0.5, late_share=0.45, **shape)


MARKETPLACE = (
    DomainShape(
        name="video",
        role="source",
        events_share=0.4,
        item_share=0.6,
        user_share=0.95,
        bias=-2.0,
        number="minutes",
        surface="video",
        layout="feed",
        turn_degrees=8,
        shift=0.1,
    ),
    DomainShape(
        name="shop",
        role="source",
        events_share=0.26,
        item_share=0.5,
        user_share=0.75,
        bias=-2.4,
        number="price",
        surface="shop",
        layout="grid",
        turn_degrees=15,
        shift=0.2,
    ),
    DomainShape(
        name="lies",
        role="source",
        events_share=0.14,
        item_share=0.25,
        user_share=0.6,
        bias=-1.9,
        number="price",
        surface="partner",
        layout="banner",
        turn_degrees=10,
        shift=0.1,
        browse_by_taste=0.0,
        lie_share=0.85,
    ),
    _target(
        "live",
        events_share=0.08,
        item_share=0.15,
        user_share=0.5,
        bias=-2.1,
        number="minutes",
        surface="live",
        layout="feed",
        turn_degrees=18,
        shift=0.2,
    ),
    _target(
        "grocery",
        events_share=0.07,
        item_share=0.2,
        user_share=0.5,
        bias=-2.3,
        number="price",
        surface="grocery",
        layout="grid",
        turn_degrees=28,
        shift=0.3,
    ),
    _target(
        "reading",
        events_share=0.05,
        item_share=0.18,
        user_share=0.45,
        bias=-2.2,
        number="minutes",
        surface="reading",
        layout="list",
        turn_degrees=40,
        shift=0.3,
        sources=("video", "shop", "lies"),
    ),
)

SIZES = {"tiny": 20_000, "small": 300_000, "medium": 3_000_000, "large": 30_000_000}


@dataclass(frozen=True)
class SimulatorConfig:
    """Size, seed and shape of a marketplace; the same config always writes the same bytes.

    ``events`` overrides what ``size`` names ("tiny", "small", "medium", "large"). ``users`` defaults to one per 120
    events (at least 200). ``start_us`` is the first time, microseconds since the epoch (default 2025-01-01 UTC).

    Raises:
        ValueError: an unknown size, fewer than 1,000 events, or shares that do not add up to 1.
    """

    size: str = "small"
    events: int | None = None
    seed: int = 0
    users: int | None = None
    days: int = 60
    start_us: int = 1_735_689_600_000_000
    latent: int = 8
    taste_scale: float = 1.1
    domains: tuple[DomainShape, ...] = MARKETPLACE

    def __post_init__(self) -> None:
        if self.events is None and self.size not in SIZES:
            raise ValueError(f"unknown size {self.size!r}: one of {', '.join(SIZES)}, or give events")
        if self.total_events < 1_000:
            raise ValueError(f"events must be at least 1,000, got {self.total_events}")
        if abs(sum(d.events_share for d in self.domains) - 1) > 1e-9:
            raise ValueError("the domains' events_share must add up to 1")
        if self.latent % 2:
            raise ValueError(f"latent must be even (tastes are turned in planes), got {self.latent}")

    @property
    def total_events(self) -> int:
        return self.events if self.events is not None else SIZES[self.size]

    @property
    def total_users(self) -> int:
        return self.users if self.users is not None else max(200, self.total_events // 120)
