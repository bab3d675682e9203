"""Small made-up networks, batches and files of public sets."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.batch import Batch, Events
from models.layers.pyramid import PyramidConfig
from models.ranker.network import DomainConfig, Ranker, RankerConfig

SOURCE_ITEMS = 60
OWN_ITEMS = 14
SECOND_US = 1_000_000


@pytest.fixture
def chance() -> torch.Generator:
    """The one source of randomness of a test."""
    return torch.Generator().manual_seed(7)


@pytest.fixture
def make_events(chance: torch.Generator) -> Callable[..., Events]:
    """Random events: U stored histories of L events, read by the rows ``row``."""

    def make(stored: int, length: int, row: torch.Tensor, items: int, *, stop: torch.Tensor | None = None) -> Events:
        def draw(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, high, shape, generator=chance)

        return Events(
            item=draw(items, stored, length),
            action=draw(3, stored, length),
            value=draw(11, stored, length).double() / 2,
            time=draw(10**6, stored, length).sort(1).values * SECOND_US,
            row=row,
            start=draw(2, len(row)),
            stop=draw(length + 1, len(row)) if stop is None else stop,
        )

    return make


@pytest.fixture
def make_batch(chance: torch.Generator, make_events: Callable[..., Events]) -> Callable[..., Batch]:
    """Random rows in float64; ``domain`` None mixes the three slots of `make_ranker`, ``users`` share histories."""

    def make(
        rows: int = 12, *, users: int = 5, length: int = 17, domain: int | None = None, full: bool = False
    ) -> Batch:
        def draw(high: int, *shape: int) -> torch.Tensor:
            return torch.randint(0, high, shape, generator=chance)

        row = draw(users, rows)
        slot = draw(3, rows) if domain is None else torch.full((rows,), domain)
        return Batch(
            domain=slot,
            user=draw(9, rows),
            item=draw(OWN_ITEMS, rows),
            item_features=draw(4, rows, 2),
            user_features=draw(3, rows, 2),
            context=draw(3, rows, 1),
            time=torch.full((rows,), 2 * 10**6 * SECOND_US) + draw(10**6, rows) * SECOND_US,
            label=draw(2, rows).double(),
            weight=torch.ones(rows, dtype=torch.float64),
            offset=torch.zeros(rows, dtype=torch.float64),
            lifelong=make_events(users, length, row, SOURCE_ITEMS, stop=torch.full((rows,), length) if full else None),
            short_source=make_events(users, 5, row, SOURCE_ITEMS),
            short_target=make_events(rows, 4, torch.arange(rows), OWN_ITEMS),
        )

    return make


@pytest.fixture
def make_ranker(chance: torch.Generator) -> Callable[..., Ranker]:
    """A small ranker in float64: two source slots, one target; ``trained`` moves what domains own off zero."""

    def make(*, trained: bool = True, **settings: object) -> Ranker:
        torch.manual_seed(3)
        config = RankerConfig(
            **{
                "source_items": SOURCE_ITEMS,
                "item_fields": (4, 4),
                "user_fields": (3, 3),
                "context_fields": (3,),
                "domain_fields": (3, 2),
                "actions": 3,
                "users": 9,
                "width": 8,
                "pyramid": PyramidConfig(k1=9, k2=4, heads=2),
                "encoder_hidden": 16,
                "head": (16, 8),
                **settings,
            }
        )
        ranker = Ranker(config, torch.randint(0, 4, (SOURCE_ITEMS, 2), generator=chance)).double()
        ranker.add_domain(DomainConfig(0, (1, 1)))
        ranker.add_domain(DomainConfig(0, (2, 0)))
        ranker.add_domain(DomainConfig(OWN_ITEMS, (2, 1)), torch.randint(0, 4, (OWN_ITEMS, 2), generator=chance))
        with torch.no_grad():
            for table in (ranker.embeddings.source_items, ranker.owned(2).items):
                assert table is not None
                table.means[1:] = 0.2 + 0.6 * torch.rand(len(table) - 1, generator=chance, dtype=torch.float64)
            ranker.wide.source_values.copy_(2 + torch.rand(SOURCE_ITEMS, generator=chance, dtype=torch.float64))
            # Larger than a real start, so that attention is far from uniform and a mistake shows.
            for parameter in ranker.parameters():
                parameter.mul_(4 if parameter.dim() > 1 and parameter.shape[-1] == config.width else 1)
            for slot in range(3 if trained else 0):
                for parameter in ranker.owned(slot).parameters():
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=chance, dtype=torch.float64))
        return ranker.eval()

    return make


@pytest.fixture(scope="session")
def amazon_reviews(tmp_path_factory) -> Path:
    """A folder whose ``amazon/`` holds movies and CDs as the 5-core review files have them, 90 users with 12 reviews.

    Eighty users are in both, and as generous in either.
    """
    folder = tmp_path_factory.mktemp("public")
    random, users, items = np.random.default_rng(0), 90, 40
    generous = random.normal(0, 0.8, users + 10)
    (folder / "amazon").mkdir()
    for category, first in (("Movies_and_TV", 0), ("CDs_and_Vinyl", 10)):
        quality = random.normal(0, 0.5, items)
        lines = []
        for user in range(first, first + users):
            for item in random.choice(items, 12, replace=False):
                rating = 3.5 + quality[item] + generous[user] + random.normal(0, 0.4)
                review = {
                    "reviewerID": f"A{user:013d}",
                    "asin": f"{category[0]}{item:09d}",
                    "overall": float(np.clip(round(rating), 1, 5)),
                    "unixReviewTime": int(1_300_000_000 + random.integers(0, 10**8)),
                }
                lines.append(json.dumps(review))
        (folder / "amazon" / f"reviews_{category}_5.json").write_text("\n".join(lines) + "\n")
    (folder / "amazon" / "meta_Books.json").write_text("")
    return folder
