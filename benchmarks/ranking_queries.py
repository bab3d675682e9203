"""Which item comes next, as queries over public sets of two domains: events, who may see them, and candidates.

Items of both domains share one index from 1 on; an event's place in its user's life is ``time_us``, which no two events
of one user share. A query has one right item and others of the same domain that the user never met.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np

DAY_US = 86_400_000_000
TRAIN, VALIDATION, TEST = 0, 1, 2
_SECONDS = 2**33


@dataclass(frozen=True)
class Log:
    """Events sorted by user and time, arrays (E,). ``domain`` is 0 or 1, ``role`` what an event is held back for."""

    user: np.ndarray
    item: np.ndarray
    time_us: np.ndarray
    domain: np.ndarray
    role: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Self:
        return replace(self, **{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class Market:
    """A set of two domains: all its events, the domain of each item (V,) with -1 for row 0, and titles where known.

    ``timed`` says whether times mean anything beside their order; ``cold`` that test users have no event in the domain
    they are asked in.
    """

    log: Log
    domain_of: np.ndarray
    names: tuple[str, str]
    titles: tuple[str, ...] = ()
    timed: bool = True
    cold: bool = False

    def items(self, domain: int) -> np.ndarray:
        return np.flatnonzero(self.domain_of == domain)


@dataclass(frozen=True)
class Queries:
    """Q queries with C candidates each, and what each may see: events [start, stop) of ``seen``.

    In training the right candidate stands first; where models are judged, `shuffled` hides it.

    Shapes: user, domain, now_us, start, stop (Q,); candidates (Q, C)
    """

    seen: Log
    user: np.ndarray
    domain: np.ndarray
    now_us: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    candidates: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Self:
        names = [f.name for f in fields(self) if f.name != "seen"]
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def shuffled(self, random: np.random.Generator) -> tuple[Self, np.ndarray]:
        """The same queries with candidates in any order, and where the right one went, (Q,)."""
        order = random.permuted(np.tile(np.arange(self.candidates.shape[1]), (len(self), 1)), axis=1)
        hidden = replace(self, candidates=np.take_along_axis(self.candidates, order, 1))
        return hidden, np.argmin(order, 1)


def ask(market: Market, seen: Log, about: Log, *, negatives: int, random: np.random.Generator, known: Log) -> Queries:
    """Queries whose right items are those of the events ``about``, from what ``seen`` holds before each.

    In a cold market that is all of the other domain and nothing of the asked one. Wrong candidates are drawn uniformly
    from the right one's domain, among items that the user does not have in ``known``.
    """
    if market.cold:
        key, other = seen.user * 2 + seen.domain, about.user * 2 + 1 - about.domain
        start, stop = np.searchsorted(key, other), np.searchsorted(key, other, side="right")
    else:
        key = seen.user * _SECONDS + seen.time_us // 1_000_000
        start = np.searchsorted(key, about.user * _SECONDS)
        stop = np.searchsorted(key, about.user * _SECONDS + about.time_us // 1_000_000)
    candidates = np.empty((len(about), negatives + 1), np.int64)
    candidates[:, 0] = about.item
    has = np.unique(known.user * len(market.domain_of) + known.item)
    for domain in (0, 1):
        rows = np.flatnonzero(about.domain == domain)
        pool = market.items(domain)
        candidates[rows, 1:] = _drawn(
            pool, about.user[rows], negatives, has=has, items=len(market.domain_of), random=random
        )
    return Queries(seen, about.user, about.domain, about.time_us, start, stop, candidates)


def _drawn(
    pool: np.ndarray, user: np.ndarray, count: int, *, has: np.ndarray, items: int, random: np.random.Generator
) -> np.ndarray:
    """``count`` distinct items of the pool for each user, none that they have, (Q, count)."""
    drawn = np.empty((len(user), count), np.int64)
    for row, person in enumerate(user):
        own = has[np.searchsorted(has, person * items) : np.searchsorted(has, (person + 1) * items)] - person * items
        most = min(len(pool), count + len(own))
        found = random.choice(pool, most, replace=False)
        left = found[~np.isin(found, own)]
        if len(left) < count:
            raise ValueError(f"the domain has too few items for {count} negatives that user {person} never met")
        drawn[row] = left[:count]
    return drawn


def food_kitchen(folder: Path, random: np.random.Generator) -> Market:
    """Amazon Food and Kitchen as ABXI prepared it: each user's last event in each domain asks, the one before chooses.

    Times are days, and events of a day stand by item number, which would tell: their order is drawn here.
    """
    named = json.loads((folder / "map_item_50.txt").read_text())
    domain_of = np.full(max(index for index, _ in named.values()) + 1, -1)
    titles = [""] * len(domain_of)
    for index, domain in named.values():
        domain_of[index] = domain
    for file in sorted(folder.glob("*_titles_*.tsv")):
        for line in file.read_text().splitlines():
            code, _, title = line.partition("\t")
            if code in named:
                titles[named[code][0]] = title
    rows = []
    for line in (folder / "afk_50_preprocessed.txt").read_text().splitlines():
        user, *events = line.split()
        rows += [(int(user), *map(int, event.split("|"))) for event in events]
    user, item, second = np.array(rows, np.int64).T
    order = np.lexsort((random.random(len(user)), second, user))
    user, item, second = user[order], item[order], second[order]
    # A second a place: events of one day keep an order of their own and stay within the day.
    place = np.arange(len(user)) - _first_of_run(user * 100_000 + second // 86_400)
    domain = domain_of[item]
    log = Log(user, item, (second + place) * 1_000_000, domain, _roles(user, domain))
    return Market(log, domain_of, ("Food", "Kitchen"), tuple(titles))


def game_video(folder: Path, random: np.random.Generator) -> Market:
    """Amazon Game and Video as CDRIB split them: users who are cold in one of the two are asked in it.

    Only user numbers below 2,179 are one person in both. There are no times: whatever a user has in the other domain
    comes before their query.
    """
    both = 2179
    parts: list[tuple[np.ndarray, ...]] = []
    first_item, sizes = 1, []
    for domain, name in enumerate(("game_video", "video_game")):
        read = [
            np.loadtxt(folder / name / f"{kind}.txt", dtype=np.int64, ndmin=2)[:, :2].T
            for kind in ("train", "valid", "test")
        ]
        users, items = np.concatenate(read, 1)
        role = np.repeat([TRAIN, VALIDATION, TEST], [part.shape[1] for part in read])
        users = np.where(users < both, users, users + domain * 1_000_000)
        parts.append((users, items + first_item, np.full(len(users), domain), role))
        sizes.append(int(items.max()) + 1)
        first_item += sizes[-1]
    users, item, asked_in, role = (np.concatenate(part) for part in zip(*parts, strict=True))
    _, user = np.unique(users, return_inverse=True)
    order = np.lexsort((random.random(len(user)), asked_in, user))
    domain_of = np.r_[-1, np.zeros(sizes[0], np.int64), np.ones(sizes[1], np.int64)]
    log = Log(user[order], item[order], np.ones(len(user), np.int64), asked_in[order], role[order])
    return Market(log, domain_of, ("Game", "Video"), timed=False, cold=True)


def _first_of_run(key: np.ndarray) -> np.ndarray:
    """For each entry the position at which its run of equal keys begins."""
    new = np.r_[True, key[1:] != key[:-1]]
    return np.maximum.accumulate(np.where(new, np.arange(len(key)), 0))


def _roles(user: np.ndarray, domain: np.ndarray) -> np.ndarray:
    """TEST for each user's last event in each domain, VALIDATION for the one before, of events in time order."""
    order = np.lexsort((np.arange(len(user)), domain, user))
    key = (user * 2 + domain)[order]
    stop = np.searchsorted(key, key, side="right")
    left = stop - 1 - np.arange(len(key))
    role = np.empty(len(user), np.int64)
    role[order] = np.where(left == 0, TEST, np.where(left == 1, VALIDATION, TRAIN))
    return role
