"""The people, tastes and items of a simulated marketplace, drawn from streams of their own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from domains.simulation.marketplace import AGE_BANDS, CATEGORIES, REGIONS, STYLES, DomainShape, SimulatorConfig


@dataclass(frozen=True)
class People:
    """Users of the whole marketplace: latent tastes (N, D) and what the profile shows of them."""

    id: pa.Array
    taste: np.ndarray
    bias: np.ndarray
    activity: np.ndarray
    age_band: np.ndarray
    region: np.ndarray
    tenure_days: np.ndarray

    @classmethod
    def draw(cls, config: SimulatorConfig) -> People:
        rng, n, d = stream(config, "people"), config.total_users, config.latent
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
class Centroids:
    """Centroids of categories (C, D) and the styles within them (C, S, D); "sport" means the same in every domain."""

    category: np.ndarray
    style: np.ndarray

    @classmethod
    def draw(cls, config: SimulatorConfig) -> Centroids:
        rng, d = stream(config, "centroids"), config.latent
        return cls(
            category=rng.normal(size=(len(CATEGORIES), d)) / np.sqrt(d),
            style=rng.normal(size=(len(CATEGORIES), len(STYLES), d)) / np.sqrt(d),
        )


@dataclass(frozen=True)
class Shelf:
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
    def draw(cls, shape: DomainShape, config: SimulatorConfig, centroids: Centroids) -> Shelf:
        rng, d = stream(config, f"{shape.name}/items"), config.latent
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


def tastes_here(shape: DomainShape, config: SimulatorConfig, taste: np.ndarray) -> np.ndarray:
    """(N, D) tastes as they show in this domain: turned in random planes, then shifted."""
    rng, d = stream(config, f"{shape.name}/shift"), config.latent
    axes = rng.permutation(d)
    direction = rng.normal(size=d)
    shift = (shape.shift * np.sqrt(d) * direction / np.sqrt((direction**2).sum())).astype(np.float32)
    angle = np.radians(shape.turn_degrees) * rng.choice([-1.0, 1.0], size=d // 2)
    here = taste.copy()
    for a, b, turn in zip(axes[0::2], axes[1::2], angle, strict=True):
        c, s = np.float32(np.cos(turn)), np.float32(np.sin(turn))
        here[:, a], here[:, b] = c * taste[:, a] - s * taste[:, b], s * taste[:, a] + c * taste[:, b]
    return here + shift


def category_draw(here: np.ndarray, centroids: Centroids) -> np.ndarray:
    """(N, C - 1) cumulative chance of each user's taste-driven category; the last column, always 1, is left out."""
    pull = np.zeros((len(here), len(CATEGORIES)), dtype=np.float32)
    for axis in range(here.shape[1]):
        pull += here[:, axis, None] * centroids.category[None, :, axis].astype(np.float32)
    chance = np.exp(np.float32(1.2) * pull)
    cumulative = np.cumsum(chance, axis=1)
    return (cumulative / cumulative[:, -1:])[:, :-1]


def stream(config: SimulatorConfig, name: str, number: int = 0) -> np.random.Generator:
    """A random stream of its own for each named part: adding a domain changes no other domain's rows."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(zlib.crc32(name.encode()), number)))


def _zipf(rng: np.random.Generator, n: int, exponent: float) -> np.ndarray:
    """Popularity weights in random order: the r-th most popular has weight r ** -exponent."""
    return rng.permutation(np.arange(1, n + 1) ** -exponent)


def _mislabelled(rng: np.random.Generator, code: np.ndarray, count: int, share: float) -> np.ndarray:
    """The codes with ``share`` of them replaced by a random one, as catalogues are."""
    return np.where(rng.random(len(code)) < share, rng.integers(count, size=len(code)), code)
