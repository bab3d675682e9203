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

import zlib
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
from domains.spec import DomainSpec

DAY_US = 86_400_000_000
CHUNK_EVENTS = 500_000  # part of what a seed means: each chunk draws from its own child stream


@dataclass(frozen=True)
class SimulatedDomain:
    """One written domain: its spec and where its files lie. ``truth`` rows stand in the order of ``interactions``."""

    spec: DomainSpec
    directory: Path
    interactions: Path
    items: Path
    users: Path
    truth: Path
    events: int


def simulate(config: SimulatorConfig, out_dir: Path) -> list[SimulatedDomain]:
    """Write every domain of the marketplace under ``out_dir/<name>/`` and say where.

    Files per domain: ``spec.yaml``, ``interactions.parquet`` (or ``.csv``; user_id, item_id, ts in microseconds, click,
    event_type, device), ``items.csv``, ``users.csv``, ``truth.parquet`` (user_id, item_id, ts, probability of an
    honest click). Rows stand in time order.
    """
    people = _People.draw(config)
    centroids = _Centroids.draw(config)
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
class _People:
    """Users of the whole marketplace: latent tastes (N, D) and what the profile shows of them."""

    id: pa.Array
    taste: np.ndarray
    bias: np.ndarray
    activity: np.ndarray
    age_band: np.ndarray
    region: np.ndarray
    tenure_days: np.ndarray

    @classmethod
    def draw(cls, config: SimulatorConfig) -> _People:
        rng, n, d = _stream(config, "people"), config.total_users, config.latent
        age, region = rng.integers(len(AGE_BANDS), size=n), rng.integers(len(REGIONS), size=n)
        age_centroid, region_centroid = rng.normal(size=(len(AGE_BANDS), d)), rng.normal(size=(len(REGIONS), d))
        taste = 0.5 * age_centroid[age] + 0.4 * region_centroid[region] + 0.77 * rng.normal(size=(n, d))
        activity = _zipf(rng, n, 0.7)
        tenure = 30 + 300 * np.sqrt(activity / activity.mean()) * rng.lognormal(0, 0.6, size=n)
        return cls(
            id=pa.array([f"u{i:07d}" for i in range(n)]),
            taste=taste.astype(np.float32),
            bias=rng.normal(0, 0.3, size=n).astype(np.float32),
            activity=activity,
            age_band=np.where(rng.random(n) < 0.05, -1, _mislabelled(rng, age, len(AGE_BANDS), 0.1)),
            region=_mislabelled(rng, region, len(REGIONS), 0.05),
            tenure_days=tenure.astype(np.int64),
        )


@dataclass(frozen=True)
class _Centroids:
    """Where categories (C, D) and the styles within them (C, S, D) lie; one meaning of "sport" in every domain."""

    category: np.ndarray
    style: np.ndarray

    @classmethod
    def draw(cls, config: SimulatorConfig) -> _Centroids:
        rng, d = _stream(config, "centroids"), config.latent
        return cls(
            category=rng.normal(size=(len(CATEGORIES), d)) / np.sqrt(d),
            style=rng.normal(size=(len(CATEGORIES), len(STYLES), d)) / np.sqrt(d),
        )


@dataclass(frozen=True)
class _Shelf:
    """Items of one domain, sorted by true category so that a category is a range of the shelf."""

    id: pa.Array
    vector: np.ndarray
    quality: np.ndarray
    weight_until: np.ndarray  # (I + 1,) cumulative popularity weight
    category_start: np.ndarray  # (C + 1,) first shelf place of each category
    shown_category: np.ndarray
    style: np.ndarray
    number: np.ndarray

    @classmethod
    def draw(cls, shape: DomainShape, config: SimulatorConfig, centroids: _Centroids) -> _Shelf:
        rng, d = _stream(config, f"{shape.name}/items"), config.latent
        n = max(2 * len(CATEGORIES), int(config.total_users * shape.item_share))
        # One item of each category at least, so that every category can be browsed.
        category = np.sort(np.concatenate([np.arange(len(CATEGORIES)), rng.integers(len(CATEGORIES), size=n - 16)]))
        style = rng.integers(len(STYLES), size=n)
        noise = rng.normal(size=(n, d)) / np.sqrt(d)
        vector = 0.8 * centroids.category[category] + 0.45 * centroids.style[category, style] + 0.4 * noise
        weight = _zipf(rng, n, 0.9)
        fame = np.log(weight)
        quality = 0.25 * (fame - fame.mean()) / fame.std() + rng.normal(0, 0.2, size=n)
        log_number = 2.5 + 0.9 * np.sqrt(d) * vector[:, 0] + rng.normal(0, 0.4, size=n)
        places = rng.permutation(n)  # ids tell nothing about category or fame
        return cls(
            id=pa.array([f"{shape.name}-{i:06d}" for i in places]),
            vector=vector.astype(np.float32),
            quality=quality.astype(np.float32),
            weight_until=np.concatenate([[0.0], np.cumsum(weight)]),
            category_start=np.searchsorted(category, np.arange(len(CATEGORIES) + 1)),
            shown_category=np.where(rng.random(n) < 0.02, -1, _mislabelled(rng, category, len(CATEGORIES), 0.05)),
            style=_mislabelled(rng, style, len(STYLES), 0.1),
            number=np.round(np.exp(log_number), 2),
        )


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


def _write_domain(
    shape: DomainShape, config: SimulatorConfig, people: _People, centroids: _Centroids, directory: Path
) -> SimulatedDomain:
    directory.mkdir(parents=True, exist_ok=True)
    shelf = _Shelf.draw(shape, config, centroids)
    rng = _stream(config, f"{shape.name}/members")
    member = np.flatnonzero(rng.random(config.total_users) < shape.user_share)
    late = rng.random(len(member)) < shape.late_share
    weight = people.activity[member] * rng.lognormal(0, 0.3, size=len(member))
    here = _tastes_here(shape, config, people.taste)

    spec = _spec(shape, config)
    spec_path = directory / "spec.yaml"
    spec_path.write_text(spec.to_yaml(), encoding="utf-8")
    items, users = directory / "items.csv", directory / "users.csv"
    _write_csv(_item_table(shape, shelf), items)
    _write_csv(_user_table(people, member), users)

    interactions, truth = directory / f"interactions.{config.file_format}", directory / "truth.parquet"
    count = 0
    with _row_writer(interactions) as rows, pq.ParquetWriter(truth, _TRUTH_SCHEMA) as probabilities:
        for events in _events(shape, config, people, centroids, shelf, here, member, weight, late):
            user_id, item_id, ts = (
                people.id.take(pa.array(events.user)),
                shelf.id.take(pa.array(events.place)),
                events.time_us,
            )
            click, action = pa.array(events.clicked.astype(np.int8)), _named(ACTIONS, events.action)
            device = _named(DEVICES, events.device)
            rows.write_table(pa.table([user_id, item_id, pa.array(ts), click, action, device], schema=_ROW_SCHEMA))
            probabilities.write_table(
                pa.table([user_id, item_id, pa.array(ts), pa.array(events.probability)], schema=_TRUTH_SCHEMA)
            )
            count += len(ts)
    return SimulatedDomain(spec, directory, interactions, items, users, truth, count)


def _events(
    shape: DomainShape,
    config: SimulatorConfig,
    people: _People,
    centroids: _Centroids,
    shelf: _Shelf,
    here: np.ndarray,
    member: np.ndarray,
    weight: np.ndarray,
    late: np.ndarray,
) -> Iterator[_Events]:
    """Chunks of events in time order: first without the late users, then with everybody."""
    drawn_to = _category_draw(shape, here, centroids)
    total = round(config.total_events * shape.events_share)
    end = config.days * DAY_US
    opening, arrival = int(shape.opens_at * end), int(0.8 * end)
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
            rng = _stream(config, f"{shape.name}/events", chunk)
            start_us = begin + (until - begin) * done // events
            stop_us = begin + (until - begin) * (done + n) // events
            who = np.searchsorted(until_weight, rng.random(n) * until_weight[-1], side="right")
            yield _chunk(
                shape,
                config,
                people,
                shelf,
                here,
                drawn_to,
                user[np.minimum(who, len(user) - 1)],
                rng,
                start_us,
                stop_us,
            )
            done, chunk = done + n, chunk + 1


def _chunk(
    shape: DomainShape,
    config: SimulatorConfig,
    people: _People,
    shelf: _Shelf,
    here: np.ndarray,
    drawn_to: np.ndarray,
    user: np.ndarray,
    rng: np.random.Generator,
    start_us: int,
    stop_us: int,
) -> _Events:
    n = len(user)
    place = _browse(shape, shelf, drawn_to, user, rng)
    device = rng.choice(len(DEVICES), size=n, p=(0.6, 0.1, 0.3)).astype(np.int8)

    rest = people.bias[user] + shelf.quality[place] + np.array([0.1, 0.0, -0.2], dtype=np.float32)[device]
    rest += np.float32(shape.bias)
    taste = np.zeros(n, dtype=np.float32)
    for axis in range(config.latent):  # axis by axis: no (n, D) copies, and no BLAS whose sums depend on the machine
        taste += here[:, axis][user] * shelf.vector[:, axis][place]
    taste *= np.float32(config.taste_scale)
    probability = _sigmoid(rest + taste)

    labelled_by = probability
    if shape.lie_share:
        lying = rng.random(n) < shape.lie_share
        labelled_by = np.where(lying, _sigmoid(rest - taste), probability)
    clicked = rng.random(n, dtype=np.float32) < labelled_by
    bought = clicked & (rng.random(n) < 0.12)

    gaps = rng.standard_exponential(n + 1)  # spacings of uniform order statistics: sorted times with no sort
    time_us = config.start_us + start_us + (np.cumsum(gaps)[:n] / gaps.sum() * (stop_us - start_us)).astype(np.int64)
    return _Events(user, place, time_us, probability, clicked, clicked.astype(np.int8) + bought, device)


def _browse(
    shape: DomainShape, shelf: _Shelf, drawn_to: np.ndarray, user: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """What each user looks at: a category by taste (or any), then an item of it by popularity. (n,) shelf places."""
    n = len(user)
    by_taste = rng.random(n) < shape.browse_by_taste
    category = (drawn_to[user] < rng.random(n, dtype=np.float32)[:, None]).sum(axis=1)
    low = np.where(by_taste, shelf.weight_until[shelf.category_start[category]], 0.0)
    high = np.where(by_taste, shelf.weight_until[shelf.category_start[category + 1]], shelf.weight_until[-1])
    drawn = low + rng.random(n) * (high - low)
    return np.clip(np.searchsorted(shelf.weight_until, drawn, side="right") - 1, 0, len(shelf.id) - 1)


def _category_draw(shape: DomainShape, here: np.ndarray, centroids: _Centroids) -> np.ndarray:
    """(N, C - 1) cumulative chance of each user's taste-driven category; the last column, always 1, is left out."""
    pull = np.zeros((len(here), len(CATEGORIES)), dtype=np.float32)
    for axis in range(here.shape[1]):
        pull += here[:, axis, None] * centroids.category[None, :, axis].astype(np.float32)
    chance = np.exp(np.float32(1.2) * pull)
    cumulative = np.cumsum(chance, axis=1)
    return (cumulative / cumulative[:, -1:])[:, :-1]


def _tastes_here(shape: DomainShape, config: SimulatorConfig, taste: np.ndarray) -> np.ndarray:
    """(N, D) tastes as they show in this domain: turned in random planes, then shifted."""
    rng, d = _stream(config, f"{shape.name}/shift"), config.latent
    axes = rng.permutation(d)
    direction = rng.normal(size=d)
    shift = (shape.shift * np.sqrt(d) * direction / np.sqrt((direction**2).sum())).astype(np.float32)
    angle = np.radians(shape.turn_degrees) * rng.choice([-1.0, 1.0], size=d // 2)
    here = taste.copy()
    for a, b, turn in zip(axes[0::2], axes[1::2], angle, strict=True):
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        here[:, a], here[:, b] = c * taste[:, a] - s * taste[:, b], s * taste[:, a] + c * taste[:, b]
    return here + shift


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
        "domain_features": {"surface": shape.surface, "encoder": shape.encoder},
    }
    if shape.role == "target":
        declared["sources"] = [name for name in shape.sources if name in {d.name for d in config.domains}]
        declared["schedule"] = "0 3 * * *"
        declared["gate"] = {"baseline": "popularity", "metric": "auc", "minimum_cold_users": 30}
    return DomainSpec.model_validate(declared)


def _item_table(shape: DomainShape, shelf: _Shelf) -> pa.Table:
    columns = {
        "item_id": shelf.id,
        "category": _named(CATEGORIES, shelf.shown_category),
        "style": _named(STYLES, shelf.style),
        shape.number: pa.array(shelf.number),
    }
    return pa.table(columns).sort_by("item_id")


def _user_table(people: _People, member: np.ndarray) -> pa.Table:
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


def _row_writer(path: Path) -> pq.ParquetWriter | pyarrow.csv.CSVWriter:
    if path.suffix == ".csv":
        return pyarrow.csv.CSVWriter(path, _ROW_SCHEMA)
    return pq.ParquetWriter(path, _ROW_SCHEMA)


def _write_csv(table: pa.Table, path: Path) -> None:
    pyarrow.csv.write_csv(table, path)


def _named(names: tuple[str, ...], code: np.ndarray) -> pa.Array:
    """Codes as strings; -1 is a missing value."""
    return pa.array(names).take(pa.array(code, mask=code < 0))


def _zipf(rng: np.random.Generator, n: int, exponent: float) -> np.ndarray:
    """Popularity weights in random order: the r-th most popular has weight r ** -exponent."""
    return rng.permutation(np.arange(1, n + 1) ** -exponent)


def _mislabelled(rng: np.random.Generator, code: np.ndarray, count: int, share: float) -> np.ndarray:
    """The codes with ``share`` of them replaced by a random one, as catalogues are."""
    return np.where(rng.random(len(code)) < share, rng.integers(count, size=len(code)), code)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def _stream(config: SimulatorConfig, name: str, number: int = 0) -> np.random.Generator:
    """A random stream of its own for each named part: adding a domain changes no other domain's rows."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(zlib.crc32(name.encode()), number)))
