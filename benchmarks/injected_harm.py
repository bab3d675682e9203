"""Sources with known harm: some of the feeds that fill them tell the opposite of what users did, some tell nothing.

Sources are filled by 16 feeds; a seed draws which of them lie. What a feed says is said to everybody: the rows to learn
from, the items' means and the events in users' histories. What a feed is, ``by`` says:

    event   a log that events arrive through (a collector, a partner's export). Which one, the bookkeeping knows, and
            with it whoever weighs rows; no network has it as a feature, nor could it be told from the user or the item
    item    a partner whose catalogue is taken in: it stands beside the item as a feature, for the ranker too
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from domains.events.histories import COLUMNS, Histories
from domains.events.splits import Split, time_forward
from domains.public import LOADERS
from domains.registry.registry import Domain, Registry
from domains.simulation.marketplace import MARKETPLACE
from domains.simulation.simulator import SimulatorConfig, simulate
from orchestrator import use_cases
from orchestrator.data.batches import EventSource, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.settings import Settings

FEEDS = 16
GOOD, RANDOM, REVERSED = 0, 1, 2
KINDS = ("good", "random", "reversed")
SIMULATED_EVENTS = 120_000


def feed_of(item_id: str) -> int:
    """The feed that brings an item, from its id."""
    return zlib.crc32(item_id.encode()) % FEEDS


def drawn_kinds(seed: int, share: float) -> np.ndarray:
    """Which feeds are good, random or reversed, (FEEDS,): ``share`` of them random and as many reversed."""
    harmed = round(share * FEEDS)
    order = np.random.default_rng([seed, 71]).permutation(FEEDS)
    kinds = np.full(FEEDS, GOOD)
    kinds[order[:harmed]], kinds[order[harmed : 2 * harmed]] = RANDOM, REVERSED
    return kinds


@dataclass(frozen=True)
class HarmedWorkspace(Workspace):
    """A workspace whose source feeds are of ``kinds``, (FEEDS,); what is tested comes last in time.

    Source rows from the moment of the first test row on are left out: no model has them.
    """

    kinds: tuple[int, ...] = (GOOD,) * FEEDS
    by: Literal["event", "item"] = "event"
    liars: tuple[str, ...] = ()
    """Sources all of whose feeds are reversed."""
    refused: frozenset[tuple[str, int]] = frozenset()
    """Sources and their feeds that nothing is taken of: no row, no share in a mean, no event of a history."""
    until_us: int | None = None
    target_rows: int | None = None
    memory: dict[str, Any] = field(default_factory=dict, compare=False)

    def kinds_of(self, rows: Examples) -> np.ndarray:
        """Kind of the feed of each row, (N,); rows of targets are good."""
        if self.domain(rows.domain).role == "target":
            return np.full(len(rows), GOOD)
        return self._kinds(rows.domain, rows.user, rows.item, rows.time_us)

    def kind_of_feed(self, name: str, feed: int) -> int:
        """Kind of a feed in the source that it fills."""
        return REVERSED if name in self.liars else self.kinds[feed]

    def _kinds(self, name: str, user: np.ndarray, item: np.ndarray, time_us: np.ndarray) -> np.ndarray:
        if name in self.liars:
            return np.full(len(item), REVERSED)
        return np.asarray(self.kinds)[self.feeds(name, user, item, time_us)]

    def feeds(self, name: str, user: np.ndarray, item: np.ndarray, time_us: np.ndarray) -> np.ndarray:
        """Feed of events of a source, (N,), by user and item (local index) and time."""
        if self.by == "event":
            return (_mixed(user, item, time_us) % np.uint64(FEEDS)).astype(np.int64)
        if name not in self.memory:
            ids = self.data(name).item_vocabulary
            self.memory[name] = np.array([0, *(feed_of(ids.name(index)) for index in range(1, len(ids)))])
        return self.memory[name][item]

    def examples(self, encoder: Any, name: str) -> Examples:
        rows = super().examples(encoder, name)
        if self.domain(name).role == "target":
            return rows
        value, flipped = self._told(name, rows.user, rows.item, rows.time_us, rows.value)
        threshold = self.domain(name).spec.interactions.positive_above
        label = np.where(flipped, 1 - rows.label, (value > (0.5 if threshold is None else threshold)))
        told = replace(rows, value=value, label=label.astype(np.float32))
        return told.take(self._taken(name, rows.user, rows.item, rows.time_us)) if self.refused else told

    def _taken(self, name: str, user: np.ndarray, item: np.ndarray, time_us: np.ndarray) -> np.ndarray:
        """Whether anything is taken of events of a source, (N,) bool."""
        refused = [feed for source, feed in self.refused if source == name]
        return ~np.isin(self.feeds(name, user, item, time_us), refused)

    @cached_property
    def histories(self) -> Any:
        held = Histories.open(self.settings.data_dir)
        arrays = {name: getattr(held.source, name) for name in COLUMNS}
        value = arrays["value"].copy()
        user = np.repeat(np.arange(len(held.source.offsets) - 1), np.diff(held.source.offsets))
        taken = np.ones(len(value), bool)
        for domain in self.domains:
            if domain.role == "source":
                mine = np.flatnonzero(arrays["domain"] == domain.number)
                event = (user[mine], arrays["item"][mine], arrays["time_us"][mine])
                value[mine] = self._told(domain.name, *event, value[mine])[0]
                taken[mine] = self._taken(domain.name, *event)
        store: Any = SimpleNamespace(**{**arrays, "value": value}, window=held.source.window)
        told = EventSource(store).where(taken)
        return SimpleNamespace(source=SimpleNamespace(**told.arrays, window=told.window), target=held.target)

    def _told(
        self, name: str, user: np.ndarray, item: np.ndarray, time_us: np.ndarray, value: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the feeds say of true values, and which are reversed. A random feed draws from the domain's values.

        The draw hangs on the event alone, so rows and histories tell the same.
        """
        kind = self._kinds(name, user, item, time_us)
        reversed_ = kind == REVERSED
        told = np.where(reversed_, value.min() + value.max() - value, value) if len(value) else value
        random = np.flatnonzero(kind == RANDOM)
        mixed = _mixed(user[random], item[random], time_us[random])
        place = ((mixed >> np.uint64(32)) * np.uint64(len(value)) >> np.uint64(32)).astype(np.int64)
        told[random] = np.sort(value)[place]
        return told.astype(np.float32), reversed_

    def split(self, rows: Examples) -> Split:
        """Targets: the last three tenths in time are tested, a tenth before chooses. Sources teach until then."""
        if self.domain(rows.domain).role == "target":
            found = time_forward(rows.time_us, validation_share=0.1, test_share=0.3)
            if self.target_rows is None:
                return found
            drawn = np.random.default_rng([self.split_seed, 5]).permutation(found.train)[: self.target_rows]
            return replace(found, train=np.sort(drawn))
        before = np.ones(len(rows), bool) if self.until_us is None else rows.time_us < self.until_us
        none = np.zeros(0, np.int64)
        return Split(np.flatnonzero(before), none, none, none, self.until_us)


def _mixed(user: np.ndarray, item: np.ndarray, time_us: np.ndarray) -> np.ndarray:
    """A number that hangs on an event alone and that nothing else of it could be told from, (N,) uint64."""
    mixed = user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = mixed ^ (item.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9))
    mixed = (mixed ^ time_us.astype(np.uint64)) * np.uint64(0x94D049BB133111EB)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(32))


def prepare(
    name: str, data: Path | None, folder: Path, *, with_feeds: bool = False
) -> tuple[Settings, tuple[Domain, ...]]:
    """Register and ingest the domains of ``simulator`` or ``amazon`` under ``folder``; what is there already stays.

    Args:
        with_feeds: whether the feed of an item stands beside it as a feature.
    """
    home = folder / "homes" / (f"{name}-feeds" if with_feeds else name)
    settings = Settings(home=home)
    if not (home / "prepared").is_file():
        home.mkdir(parents=True, exist_ok=True)
        registry = Registry(settings.registry_url)
        registry.migrate()
        for declared, interactions, found_items, users in _found(name, data, home / "raw"):
            plain = declared.interactions.model_copy(update={"action": None})
            spec, items = declared.model_copy(update={"interactions": plain}), found_items
            if with_feeds:
                features = {**spec.items.features, "feed": "category"}
                spec = spec.model_copy(update={"items": spec.items.model_copy(update={"features": features})})
                items = _with_feeds(found_items, spec.items.id, source=spec.role == "source")
            use_cases.register(spec, registry=registry, by="benchmark")
            use_cases.ingest_data(
                spec.name,
                interactions=[interactions],
                items=items,
                users=users,
                registry=registry,
                settings=settings,
                by="benchmark",
            )
        Histories.build(settings.data_dir, [(domain.spec, domain.number) for domain in registry.domains()])
        (home / "prepared").touch()
    return settings, tuple(Registry(settings.registry_url).domains())


def _found(name: str, data: Path | None, raw: Path) -> list[tuple[Any, Path, Any, Path | None]]:
    if name == "amazon":
        if data is None:
            raise ValueError("the amazon settings read a folder of data: give --data")
        prepared = LOADERS["amazon-heterogeneous"](Path(data) / "amazon_movie_tv", raw, task="ctr")
        return [(one.spec, one.interactions, one.items, one.users) for one in prepared]
    shares = {"video": 0.5, "shop": 0.38, "live": 0.12}
    shapes = tuple(replace(shape, events_share=shares[shape.name]) for shape in MARKETPLACE if shape.name in shares)
    written = simulate(SimulatorConfig(events=SIMULATED_EVENTS, domains=shapes), raw)
    return [(one.spec, one.interactions, one.items, one.users) for one in written]


def _with_feeds(items: Path, id_column: str, *, source: bool) -> Path:
    """The item table with its feed as one more column, beside the original; targets have no feed."""
    table = pq.read_table(items) if items.suffix == ".parquet" else pa.csv.read_csv(items)
    feeds = [f"feed-{feed_of(str(one)):02d}" if source else None for one in table[id_column].to_pylist()]
    out = items.with_name("items-with-feeds.parquet")
    pq.write_table(table.append_column("feed", pa.array(feeds, pa.string())), out)
    return out
