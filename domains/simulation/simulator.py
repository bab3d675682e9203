"""A marketplace of domains with known truth: shared tastes, shifted domains, one harmful source.

Every user and item is a point in one latent space of tastes. A domain turns the users' tastes by an angle and shifts
them, then clicks follow a logistic model whose probability is written beside each row, so the best AUC that any model
can reach is known (``best_reachable_auc``). Users are shared by all domains; items belong to one domain.

    user  (N, D)   age centroid + region centroid + own noise, unit variance per axis
    item  (I, D)   category centroid + style centroid + own noise, unit length on average
    logit          bias + device + user bias + item quality + taste_scale * <turn(user) + shift, item>

Nothing larger than one chunk of events and the latent tables is ever held, so size is bounded by disk alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from domains.simulation.marketplace import (
    ACTIONS,
    AGE_BANDS,
    CATEGORIES,
    DEVICES,
    REGIONS,
    STYLES,
    DomainShape,
    SimulatorConfig,
)
from domains.simulation.population import Centroids, People, Shelf, category_draw, stream, tastes_here
from domains.spec import DomainSpec

DAY_US = 86_400_000_000
CHUNK_EVENTS = 500_000  # part of what a seed means: each chunk draws from its own child stream


@dataclass(frozen=True)
class SimulatedDomain:
    """One written domain: its spec and where its files are. ``truth`` has its rows in the order of ``interactions``."""

    spec: DomainSpec
    directory: Path
    interactions: Path
    items: Path
    users: Path
    truth: Path
    events: int


def simulate(config: SimulatorConfig, out_dir: Path) -> list[SimulatedDomain]:
    """Write every domain of the marketplace under ``out_dir/<name>/`` and say where.

    Files per domain: ``spec.yaml``, ``interactions.parquet`` (user_id, item_id, ts in microseconds, click, event_type,
    device), ``items.csv``, ``users.csv``, ``truth.parquet`` (user_id, item_id, ts, probability of an
    honest click). Rows are in time order.
    """
    people = People.draw(config)
    centroids = Centroids.draw(config)
    return [_write_domain(shape, config, people, centroids, Path(out_dir) / shape.name) for shape in config.domains]


def best_reachable_auc(probability: np.ndarray) -> float:
    """Expected AUC of a model that knows the click probability of each row.

    It is P(p_i > p_j) + P(p_i = p_j) / 2 over a clicked row i and an unclicked row j, in expectation over the clicks:
    each row counts as clicked with weight p and as unclicked with weight 1 - p.
    """
    value, group = np.unique(np.asarray(probability, dtype=np.float64), return_inverse=True)
    count = np.bincount(group)
    clicked, unclicked = value * count, (1 - value) * count
    below = np.cumsum(unclicked) - unclicked
    return float((clicked * (below + unclicked / 2)).sum() / (clicked.sum() * unclicked.sum()))


@dataclass(frozen=True)
class _Events:
    """One chunk of events, all arrays of the chunk's length and in time order."""

    user: np.ndarray
    place: np.ndarray
    time_us: np.ndarray
    probability: np.ndarray
    clicked: np.ndarray
    action: np.ndarray
    device: np.ndarray


@dataclass(frozen=True)
class _Scene:
    """What happens in one domain: its shelf, and the users' tastes as they show here.

    Shapes (N users, D latent axes, C categories): ``here`` (N, D); ``drawn_to`` (N, C - 1), see ``category_draw``.
    """

    shape: DomainShape
    config: SimulatorConfig
    people: People
    shelf: Shelf
    here: np.ndarray
    drawn_to: np.ndarray

    @classmethod
    def draw(cls, shape: DomainShape, config: SimulatorConfig, people: People, centroids: Centroids) -> _Scene:
        here = tastes_here(shape, config, people.taste)
        return cls(shape, config, people, Shelf.draw(shape, config, centroids), here, category_draw(here, centroids))

    def events(self, member: np.ndarray, weight: np.ndarray, late: np.ndarray) -> Iterator[_Events]:
        """Chunks of events in time order: first without the late users, then with everybody.

        Shapes (M members of the domain): ``member`` (M,) user; ``weight`` (M,) activity; ``late`` (M,) bool.
        """
        total = round(self.config.total_events * self.shape.events_share)
        end = self.config.days * DAY_US
        opening, arrival = int(self.shape.opens_at * end), int(0.8 * end)
        early_rate, full_rate = float(weight[~late].sum()), float(weight.sum())
        early_mass = early_rate * (arrival - opening)
        early_events = round(total * early_mass / (early_mass + full_rate * (end - arrival)))
        chunk = 0
        for begin, until, events, present in (
            (opening, arrival, early_events, ~late),
            (arrival, end, total - early_events, np.ones_like(late)),
        ):
            user, until_weight = member[present], np.cumsum(weight[present])
            done = 0
            while done < events:
                n = min(CHUNK_EVENTS, events - done)
                rng = stream(self.config, f"{self.shape.name}/events", chunk)
                span_us = (begin + (until - begin) * done // events, begin + (until - begin) * (done + n) // events)
                who = np.searchsorted(until_weight, rng.random(n) * until_weight[-1], side="right")
                yield self._chunk(user[np.minimum(who, len(user) - 1)], rng, span_us)
                done, chunk = done + n, chunk + 1

    def _chunk(self, user: np.ndarray, rng: np.random.Generator, span_us: tuple[int, int]) -> _Events:
        n = len(user)
        place = self._browse(user, rng)
        device = rng.choice(len(DEVICES), size=n, p=(0.6, 0.1, 0.3)).astype(np.int8)

        rest = self.people.bias[user] + self.shelf.quality[place] + np.array([0.1, 0.0, -0.2], dtype=np.float32)[device]
        rest += np.float32(self.shape.bias)
        taste = np.zeros(n, dtype=np.float32)
        for axis in range(self.config.latent):  # axis by axis: no (n, D) copies, and no BLAS whose sums vary by machine
            taste += self.here[:, axis][user] * self.shelf.vector[:, axis][place]
        taste *= np.float32(self.config.taste_scale)
        probability = _sigmoid(rest + taste)

        labelled_by = probability
        if self.shape.lie_share:
            lying = rng.random(n) < self.shape.lie_share
            labelled_by = np.where(lying, _sigmoid(rest - taste), probability)
        clicked = rng.random(n, dtype=np.float32) < labelled_by
        bought = clicked & (rng.random(n) < 0.12)

        gaps = rng.standard_exponential(n + 1)  # spacings of uniform order statistics: sorted times with no sort
        since_us, until_us = span_us
        within_us = (np.cumsum(gaps)[:n] / gaps.sum() * (until_us - since_us)).astype(np.int64)
        time_us = self.config.start_us + since_us + within_us
        return _Events(user, place, time_us, probability, clicked, clicked.astype(np.int8) + bought, device)

    def _browse(self, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The shelf place that each user looks at, (n,): a category by taste (or any), then an item by popularity."""
        shelf, n = self.shelf, len(user)
        by_taste = rng.random(n) < self.shape.browse_by_taste
        category = (self.drawn_to[user] < rng.random(n, dtype=np.float32)[:, None]).sum(axis=1)
        low = np.where(by_taste, shelf.weight_until[shelf.category_start[category]], 0.0)
        high = np.where(by_taste, shelf.weight_until[shelf.category_start[category + 1]], shelf.weight_until[-1])
        drawn = low + rng.random(n) * (high - low)
        return np.clip(np.searchsorted(shelf.weight_until, drawn, side="right") - 1, 0, len(shelf.id) - 1)


def _write_domain(
    shape: DomainShape, config: SimulatorConfig, people: People, centroids: Centroids, directory: Path
) -> SimulatedDomain:
    directory.mkdir(parents=True, exist_ok=True)
    scene = _Scene.draw(shape, config, people, centroids)
    rng = stream(config, f"{shape.name}/members")
    member = np.flatnonzero(rng.random(config.total_users) < shape.user_share)
    late = rng.random(len(member)) < shape.late_share
    weight = people.activity[member] * rng.lognormal(0, 0.3, size=len(member))

    spec = _spec(shape, config)
    (directory / "spec.yaml").write_text(spec.to_yaml(), encoding="utf-8")
    items, users = directory / "items.csv", directory / "users.csv"
    pyarrow.csv.write_csv(_item_table(shape, scene.shelf), items)
    pyarrow.csv.write_csv(_user_table(people, member), users)

    interactions, truth = directory / "interactions.parquet", directory / "truth.parquet"
    count = 0
    with pq.ParquetWriter(interactions, _ROW_SCHEMA) as rows, pq.ParquetWriter(truth, _TRUTH_SCHEMA) as probabilities:
        for events in scene.events(member, weight, late):
            who, when = people.id.take(pa.array(events.user)), pa.array(events.time_us)
            what = scene.shelf.id.take(pa.array(events.place))
            click, action = pa.array(events.clicked.astype(np.int8)), _named(ACTIONS, events.action)
            device = _named(DEVICES, events.device)
            rows.write_table(pa.table([who, what, when, click, action, device], schema=_ROW_SCHEMA))
            probability = pa.array(events.probability)
            probabilities.write_table(pa.table([who, what, when, probability], schema=_TRUTH_SCHEMA))
            count += len(when)
    return SimulatedDomain(spec, directory, interactions, items, users, truth, count)


def _spec(shape: DomainShape, config: SimulatorConfig) -> DomainSpec:
    declared = {
        "name": shape.name,
        "role": shape.role,
        "task": "ctr",
        "owner": f"team-{shape.name}",
        "interactions": {
            "user": "user_id",
            "item": "item_id",
            "time": "ts",
            "time_unit": "us",
            "label": "click",
            "label_range": [0, 1],
            "action": "event_type",
            "context": {"device": "category"},
        },
        "items": {"id": "item_id", "features": {"category": "category", "style": "category", shape.number: "number"}},
        "users": {"id": "user_id", "features": {"age_band": "category", "region": "category", "tenure_days": "number"}},
        "domain_features": {"surface": shape.surface, "layout": shape.layout},
    }
    if shape.role == "target":
        declared["sources"] = [name for name in shape.sources if name in {d.name for d in config.domains}]
        declared["schedule"] = "0 3 * * *"
        declared["gate"] = {"metric": "auc", "minimum_cold_users": 30}
    return DomainSpec.model_validate(declared)


def _item_table(shape: DomainShape, shelf: Shelf) -> pa.Table:
    columns = {
        "item_id": shelf.id,
        "category": _named(CATEGORIES, shelf.shown_category),
        "style": _named(STYLES, shelf.style),
        shape.number: pa.array(shelf.number),
    }
    return pa.table(columns).sort_by("item_id")


def _user_table(people: People, member: np.ndarray) -> pa.Table:
    return pa.table(
        {
            "user_id": people.id.take(pa.array(member)),
            "age_band": _named(AGE_BANDS, people.age_band[member]),
            "region": _named(REGIONS, people.region[member]),
            "tenure_days": pa.array(people.tenure_days[member]),
        }
    )


_ROW_SCHEMA = pa.schema(
    [
        *(("user_id", pa.string()), ("item_id", pa.string()), ("ts", pa.int64())),
        *(("click", pa.int8()), ("event_type", pa.string()), ("device", pa.string())),
    ]
)
_TRUTH_SCHEMA = pa.schema(
    [("user_id", pa.string()), ("item_id", pa.string()), ("ts", pa.int64()), ("probability", pa.float32())]
)


def _named(names: tuple[str, ...], code: np.ndarray) -> pa.Array:
    """Codes as strings; -1 is a missing value."""
    return pa.array(names).take(pa.array(code, mask=code < 0))


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))
