"""Every user's events in time order, memory-mapped: "the last N events before t" is two numbers, not a copy.

The events of user ``u`` lie at positions ``offsets[u] .. offsets[u + 1]`` of one array per column (CSR), oldest first:

    user       0 |      1       |  2  |
    time_us      | 3  5  5  9   | 4   |      offsets = [0, 0, 4, 5]
    window(user 1, before 9, length 2) -> [1, 3): the two events at time 5, never the one at 9 itself

"Before" is strict, so events at one time never see each other. Their order among themselves is a hash of their
contents: it does not depend on the order of arrival, and unlike an order by item id it tells nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from domains.events.domain_data import DomainData
from domains.events.publishing import flush_folder, flush_tree, only_writer, point_at, pointed_at
from domains.spec import DomainSpec

COLUMNS: dict[str, type[np.generic]] = {
    "item": np.int32,
    "domain": np.int16,
    "action": np.int16,
    "value": np.float32,
    "time_us": np.int64,
}
ACTIONS = (
    "unknown", "view", "click", "like", "dislike", "favourite", "cart", "buy", "rate", "share", "follow", "comment",
    "play", "finish", "search", "hide",
)  # fmt: skip
"""Kinds of event, by code. New ones are appended: a code is stored in histories and learnt by networks."""
_ALSO_CALLED = {
    "pv": "view", "impression": "view", "show": "view", "exposure": "view", "clk": "click", "fav": "favourite",
    "favorite": "favourite", "addtocart": "cart", "add_to_cart": "cart", "purchase": "buy", "order": "buy",
    "transaction": "buy", "rating": "rate", "review": "rate", "forward": "share", "watch": "play",
    "long_view": "finish", "complete": "finish", "query": "search", "skip": "hide",
}  # fmt: skip
SORTED_AT_ONCE = 4_000_000
"""Events that building holds in memory beside the arrays on disk."""

Columns = dict[str, np.ndarray]


def action_code(name: str | None) -> int:
    """The code of a kind of event in ``ACTIONS``, by its name or a common synonym; 0 for any other."""
    plain = (name or "").strip().lower()
    plain = _ALSO_CALLED.get(plain, plain)
    return ACTIONS.index(plain) if plain in ACTIONS else 0


class LeakedFuture(ValueError):
    """A window holds an event that is not strictly before its row's time."""


@dataclass(frozen=True)
class HistorySlice:
    """One user's visible events, oldest first; views into the store, each (N,)."""

    item: np.ndarray
    domain: np.ndarray
    action: np.ndarray
    value: np.ndarray
    time_us: np.ndarray

    def __len__(self) -> int:
        return len(self.item)


class HistoryStore:
    """Events of all users in one immutable folder, memory-mapped; opening reads no events.

    Shapes (E events, U users): ``item`` (E,) int32 local index in its domain; ``domain`` (E,) int16 domain number;
    ``action`` (E,) int16 code; ``value`` (E,) float32 label; ``time_us`` (E,) int64; ``offsets`` (U + 1,) int64.
    """

    item: np.ndarray
    domain: np.ndarray
    action: np.ndarray
    value: np.ndarray
    time_us: np.ndarray
    offsets: np.ndarray

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in (*COLUMNS, "offsets"):
            setattr(self, name, _mapped(path / f"{name}.npy"))

    @classmethod
    def open(cls, path: str | Path) -> HistoryStore:
        """Map a built store.

        Raises:
            FileNotFoundError: nothing was built there.
        """
        return cls(Path(path))

    @classmethod
    def build(
        cls,
        path: str | Path,
        *,
        user: np.ndarray,
        domain_number: np.ndarray | int,
        item: np.ndarray,
        action: np.ndarray,
        value: np.ndarray,
        time_us: np.ndarray,
    ) -> HistoryStore:
        """Write a store of events that come in any order, each array (E,); ``path`` must not exist yet."""
        columns: Columns = {
            "user": np.asarray(user, np.int64),
            "domain": np.broadcast_to(np.asarray(domain_number, np.int16), np.shape(user)),
            "item": np.asarray(item, np.int32),
            "action": np.asarray(action, np.int16),
            "value": np.asarray(value, np.float32),
            "time_us": np.asarray(time_us, np.int64),
        }
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("user, domain_number, item, action, value and time_us differ in length")
        return cls.build_from_batches(path, lambda: iter([columns]))

    @classmethod
    def build_from_batches(cls, path: str | Path, batches: Callable[[], Iterator[Columns]]) -> HistoryStore:
        """Write a store of more events than fit in memory; ``batches`` gives the same arrays on each of two calls.

        The first pass counts the events of each user; the second puts each event into its user's range on disk; then
        the ranges are sorted a few million events at a time. Memory: one counter a user, one batch, one such piece.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"{path} holds a store already; a store never changes")
        counts = np.zeros(1, np.int64)
        for batch in batches():
            user = batch["user"]
            if len(user) and user.min() < 1:
                raise ValueError("every event needs a known user (index 1 or higher)")
            found = np.bincount(user, minlength=len(counts))
            found[: len(counts)] += counts
            counts = found
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        written = path.with_name(f".{path.name}.writing")
        shutil.rmtree(written, ignore_errors=True)
        written.mkdir(parents=True)
        np.save(written / "offsets.npy", offsets)
        events = int(offsets[-1])
        if events == 0:
            arrays = {name: np.zeros(0, kind) for name, kind in COLUMNS.items()}
            for name, array in arrays.items():
                np.save(written / f"{name}.npy", array)
        else:
            arrays = {
                name: open_memmap(written / f"{name}.npy", "w+", kind, (events,)) for name, kind in COLUMNS.items()
            }
            _place(batches(), offsets, arrays)
            _sort_each_user(offsets, arrays)
        del arrays
        flush_tree(written)
        written.rename(path)
        flush_folder(path.parent)
        return cls(path)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.time_us)

    @property
    def users(self) -> int:
        """One more than the highest user index that has events."""
        return len(self.offsets) - 1

    def ranges(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All events of each user: positions [start, stop), each (N,) int64; empty for users that the store lacks."""
        users = np.asarray(users, np.int64)
        known = (users >= 0) & (users < self.users)
        place = np.where(known, users, 0)
        start, stop = self.offsets[place], self.offsets[place + 1] if self.users else self.offsets[place]
        return np.where(known, start, 0), np.where(known, stop, 0)

    def window(self, users: np.ndarray, before_us: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The last ``length`` events of each user strictly before a time.

        Shapes:
            users:     (N,) int, index of the user; unknown users have an empty window
            before_us: (N,) int64 or one time for all
            returns:   start, stop (N,) int64, positions in the store's arrays

        All rows search their user's range by halves at once: about log2(longest history) passes over N rows.
        """
        first, last = self.ranges(users)
        before = np.broadcast_to(np.asarray(before_us, np.int64), first.shape)
        low, high = first.copy(), last.copy()
        if len(self):
            while (searching := low < high).any():
                middle = (low + high) >> 1
                earlier = (self.time_us[np.where(searching, middle, 0)] < before) & searching
                low = np.where(earlier, middle + 1, low)
                high = np.where(searching & ~earlier, middle, high)
        return np.maximum(first, low - length), low

    def history(self, user: int, before_us: int, length: int) -> HistorySlice:
        """The last ``length`` events of one user strictly before ``before_us``: views, nothing is copied."""
        first, last = 0, 0
        if 0 <= user < self.users:
            first, last = int(self.offsets[user]), int(self.offsets[user + 1])
        stop = first + int(np.searchsorted(self.time_us[first:last], before_us, side="left"))
        start = max(first, stop - length)
        return HistorySlice(**{name: getattr(self, name)[start:stop] for name in COLUMNS})

    def check_windows(self, start: np.ndarray, stop: np.ndarray, before_us: np.ndarray) -> None:
        """Look at every event of the windows, whatever their order.

        Raises:
            LeakedFuture: an event is at or after its row's time; names the first such row and counts all.
        """
        filled = np.flatnonzero(stop > start)
        if not len(filled):
            return
        edges = np.stack([start[filled], stop[filled]], axis=1).ravel()
        # reduceat has no empty last piece: an event past the end stands for it and is skipped by the stride.
        times = np.append(self.time_us[edges.min() : edges.max()], 0)
        latest = np.maximum.reduceat(times, edges - edges.min())[::2]
        before = np.broadcast_to(np.asarray(before_us, np.int64), np.shape(start))[filled]
        leaked = filled[latest >= before]
        if len(leaked):
            raise LeakedFuture(f"{len(leaked)} of {len(start)} windows hold the future; the first is row {leaked[0]}")


@dataclass(frozen=True)
class Histories:
    """The published stores: one over all source domains together, one for each target domain.

    >>> histories = Histories.build(data_dir, [(video_spec, 1), (live_spec, 2)])
    >>> start, stop = histories.source.window(users, times, 500)
    """

    source: HistoryStore
    target: dict[str, HistoryStore]
    version: str

    @classmethod
    def open(cls, data_dir: str | Path) -> Histories:
        """Map what was last published; reads no events.

        Raises:
            FileNotFoundError: histories were never built.
        """
        root = Path(data_dir) / "histories"
        published = pointed_at(root / "current.json")
        if published is None:
            raise FileNotFoundError(f"no histories under {root}; build them first")
        folder = root / published["folder"]
        stores = {name: HistoryStore.open(folder / f"target-{name}") for name in published["targets"]}
        return cls(HistoryStore.open(folder / "source"), stores, published["version"])

    @classmethod
    def build(cls, data_dir: str | Path, domains: Sequence[tuple[DomainSpec, int]]) -> Histories:
        """Write the stores of these domains (spec, number) and publish them in one step; readers keep what they opened.

        An event's item is its index in its own domain's vocabulary, its value the label as the file had it, its action
        the code of the action column; without one it is inferred from the task and label. Building again from the same
        data returns what is published.
        """
        root = Path(data_dir) / "histories"
        with only_writer(root):
            read = [(spec, number, DomainData(Path(data_dir), spec.name)) for spec, number in domains]
            version = ";".join(
                sorted(f"{spec.role}:{spec.name}:{number}:{data.version}" for spec, number, data in read)
            )
            published = pointed_at(root / "current.json")
            if published is not None and published["version"] == version:
                return cls.open(data_dir)
            turn = 1 + (published["turn"] if published else 0)
            folder = root / f"{turn:06d}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            sources = [entry for entry in read if entry[0].role == "source"]
            targets = [entry for entry in read if entry[0].role == "target"]
            HistoryStore.build_from_batches(folder / "source", lambda: _events_of(sources))
            for entry in targets:
                HistoryStore.build_from_batches(folder / f"target-{entry[0].name}", partial(_events_of, [entry]))
            names = sorted(spec.name for spec, _, _ in targets)
            pointer = {"folder": folder.name, "turn": turn, "targets": names, "version": version}
            flush_tree(root)
            point_at(root / "current.json", pointer)
            # The one before stays for readers that have read the old pointer and not yet opened its files.
            for old in root.glob("[0-9]*"):
                if int(old.name) < turn - 1:
                    shutil.rmtree(old, ignore_errors=True)
        return cls.open(data_dir)


def _events_of(domains: list[tuple[DomainSpec, int, DomainData]]) -> Iterator[Columns]:
    for spec, number, data in domains:
        for batch in data.event_batches(["user", "item", "time_us", "raw_label", "label", "action"]):
            names = batch.column("action").dictionary_encode()
            codes = np.array([action_code(name) for name in names.dictionary.to_pylist()] or [0], np.int16)
            action = codes[names.indices.to_numpy()]
            if spec.interactions.action is None:
                if spec.task == "rating" or spec.interactions.positive_above is not None:
                    action = np.full(len(action), action_code("rate"), np.int16)
                else:
                    clicked = batch.column("label").to_numpy() > 0
                    action = np.where(clicked, action_code("click"), action_code("view")).astype(np.int16)
            yield {
                "user": batch.column("user").to_numpy(),
                "domain": np.full(batch.num_rows, number, np.int16),
                "item": batch.column("item").to_numpy().astype(np.int32),
                "action": action,
                "value": batch.column("raw_label").to_numpy(),
                "time_us": batch.column("time_us").to_numpy(),
            }


def _place(batches: Iterator[Columns], offsets: np.ndarray, arrays: Columns) -> None:
    """Put each event somewhere into its user's range."""
    filled = offsets[:-1].copy()
    for batch in batches:
        user = batch["user"]
        if not len(user):
            continue
        order = np.argsort(user, kind="stable")
        ordered = user[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sizes = np.diff(np.append(starts, len(ordered)))
        within = np.arange(len(ordered)) - np.repeat(starts, sizes)
        place = filled[ordered] + within
        filled[ordered[starts]] += sizes
        for name, array in arrays.items():
            array[place] = batch[name][order]


def _sort_each_user(offsets: np.ndarray, arrays: Columns) -> None:
    """Sort every range by time and the hash of ties, whole users at a time."""
    first = 0
    while first < len(offsets) - 1:
        # As many users as hold a few million events, and at least one.
        last = int(np.searchsorted(offsets, offsets[first] + SORTED_AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        begin, end = int(offsets[first]), int(offsets[last])
        if end > begin:
            part = {name: np.array(array[begin:end]) for name, array in arrays.items()}
            user = np.repeat(np.arange(first, last), np.diff(offsets[first : last + 1]))
            order = np.lexsort((_tie_order(part), part["time_us"], user))
            for name, array in arrays.items():
                array[begin:end] = part[name][order]
        first = last


def splitmix64(state: np.ndarray) -> np.ndarray:
    """The next number of splitmix64 for each state, uint64: a hash that is the same everywhere."""
    mixed = state + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _tie_order(events: Columns) -> np.ndarray:
    """A number that scrambles an event's contents (E,) uint64."""
    mixed = np.zeros(len(events["item"]), np.uint64)
    value = events["value"].astype(np.float32).view(np.uint32)
    for part in (events["domain"], events["item"], events["action"], value):
        mixed = splitmix64(mixed ^ part.astype(np.uint64))
    return mixed


def _mapped(path: Path) -> np.ndarray:
    """The array in a .npy file, memory-mapped; an empty one cannot be. Half the time of ``numpy.load``: where there are
    many domains, their stores are opened by the hundred."""
    with open(path, "rb") as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        if shape == (0,):
            return np.zeros(0, dtype)
        # A plain array over the mapping: slicing the memmap subclass costs ten times as much.
        return np.memmap(stream, dtype, "r", stream.tell(), shape).view(np.ndarray)
