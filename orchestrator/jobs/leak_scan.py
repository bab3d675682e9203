"""The leak scan of a launch: could a test row be known in training, or its label by a feature?"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from domains.errors import InvalidData
from domains.events.histories import HistoryStore
from domains.events.splits import Split, scan_for_leaks
from domains.spec_features import HISTORIES
from orchestrator.data.batches import EventSource, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.evaluation.report import Suspect
from orchestrator.evaluation.telling import Feature, JudgedRows, suspicions
from orchestrator.jobs.across_versions import crossings, earlier_draws
from orchestrator.jobs.launch_state import LaunchState
from orchestrator.values import Value

HOUR_US = 3_600_000_000
HistoryWindows = tuple[HistoryStore, np.ndarray, np.ndarray]


class LeakScan(Value):
    """Ways in which a test row could be known in training, features that tell too much, and what was asked."""

    leaks: list[str]
    suspects: list[Suspect]
    asked: list[str]


def leak_scan(launch: LaunchState, encoder: FeatureEncoder, rows: Examples, *, new_items: np.ndarray) -> LeakScan:
    """Look at the rows, users, items, times, histories and features of a launch.

    Args:
        rows: all rows of the domain.
        new_items: items of which the report says that training never saw them.
    """
    split, new_items = launch.split, np.unique(new_items)
    features = list(declared_features(launch.workspace, encoder, rows))
    named = ", ".join(dict.fromkeys(f"{feature.of} {feature.name}" for feature in features))
    asked = [
        f"{len(rows):,} rows: is one, or its event, on two sides of the split?",
        f"{len(split.cold_users):,} cold users: has one a row in training or validation?",
        f"{len(new_items):,} items that are called new: has one a row in training or validation?",
        f"features ({named or 'there are none'}): does one tell the label beyond what is plausible, by its change "
        "since the row before, or as an aggregate that holds the rows it is judged on?",
    ]
    earlier = earlier_draws(launch.context.registry, launch.name)
    asked.append(f"{len(earlier)} earlier versions: is a user on whom one was judged trained on now?")
    windows = {}
    if launch.timed:
        windows = _windows(launch.workspace, encoder, rows)
        asked += [
            "times: is a training row at or after the cut, a test row before it, any row in the future?",
            f"histories that rows read ({', '.join(windows)}): does one hold its row's own event, or a later one?",
        ]
    found = scan_for_leaks(
        split,
        user=rows.user,
        item=rows.item,
        time_us=rows.time_us if launch.timed else None,
        now_us=int(time.time() * 1e6) if launch.timed else None,
        histories=windows,
        new_items=new_items,
    )
    found += crossings(launch.workspace, rows, split, earlier)
    return LeakScan(leaks=found, suspects=suspects(launch.workspace, rows, split, features), asked=asked)


def suspects(workspace: Workspace, rows: Examples, split: Split, features: list[Feature]) -> list[Suspect]:
    """Features by which a row's label could be known that nobody could know when the request came."""
    domain = workspace.domain(rows.domain)
    timed = domain.spec.interactions.time is not None
    judged = JudgedRows(
        task=domain.spec.task,
        user=rows.user,
        item=rows.item,
        label=rows.label.astype(np.float64),
        time_us=rows.time_us if timed and split.cut_us is not None else None,
        train=np.sort(np.r_[split.train, split.validation]),
        held=split.test if split.cut_us is None else np.flatnonzero(rows.time_us >= split.cut_us),
    )
    return [Suspect(feature=feature.name, why=why) for feature, why in suspicions(judged, features)]


def declared_features(workspace: Workspace, encoder: FeatureEncoder, rows: Examples) -> Iterator[Feature]:
    """Every column that reaches a model, as its file had it, and what rows read of histories; a value for each row.

    A users file of another domain counts where the shared model reads its columns: profiles are one for all domains.

    Raises:
        InvalidData: the domain's rows are no longer those given.
    """
    own = workspace.data(rows.domain)
    for name, column in _columns(own.items(), "item", len(own.item_vocabulary)):
        yield Feature(name, "item", column[rows.item])
    read, users = {field.name for field in encoder.user_fields}, len(own.user_vocabulary)
    for domain in workspace.domains:
        mine = domain.name == rows.domain
        for name, column in _columns(workspace.data(domain.name).users(), "user", users):
            if mine or name in read:
                yield Feature(name if mine else f"{domain.name}.{name}", "user", column[rows.user])
    context = workspace.domain(rows.domain).spec.interactions.context
    if context:
        table = own.interactions(["time_us", "user", "item", *context])
        order = np.lexsort([table[key].to_numpy() for key in ("item", "user", "time_us")])
        if not np.array_equal(table["item"].to_numpy()[order], rows.item):
            raise InvalidData(f"data of {rows.domain!r} changed while this launch ran; start a new one")
        for name in context:
            if name in table.column_names:
                yield Feature(name, "context", table[name].to_numpy()[order])
    if workspace.domain(rows.domain).spec.interactions.time is not None:
        yield from _read_of_histories(workspace, rows)


def _read_of_histories(workspace: Workspace, rows: Examples) -> Iterator[Feature]:
    """The last event before each row, in the sources and in the domain itself: what it was worth, and how long ago."""
    stores, numbers = workspace.histories, workspace.sources_of(rows.domain)
    source = EventSource(stores.source)
    read = {HISTORIES[0]: source if numbers is None else source.only(numbers)}
    if rows.domain in stores.target:
        read[HISTORIES[1]] = EventSource(stores.target[rows.domain])
    for name, events in read.items():
        start, stop = events.window(rows.user, rows.time_us, 1)
        if not len(events.arrays["value"]):
            continue
        some, last = stop > start, np.maximum(stop - 1, 0)
        since = rows.time_us - events.arrays["time_us"][last].astype(np.float64)
        _, an_hour_ago = events.window(rows.user, rows.time_us - HOUR_US, 1)
        for what, values in (
            ("the value of the last event there", events.arrays["value"][last].astype(np.float64)),
            ("the time since the last event there", since),
            ("the number of events there within the hour", (stop - an_hour_ago).astype(np.float64)),
        ):
            yield Feature(name, "history", np.where(some, values, np.nan), what)


def _columns(table: pa.Table | None, index: str, length: int) -> Iterator[tuple[str, np.ndarray]]:
    """Feature columns laid out by vocabulary index: numbers with NaN, or texts with None, where nothing is given."""
    if table is None:
        return
    place = table[index].to_numpy()
    for name in table.column_names:
        if name not in (index, f"{index}_id"):
            given = table[name].to_numpy()
            values = np.full(length, np.nan) if given.dtype.kind != "O" else np.full(length, None, dtype=object)
            values[place] = given
            yield name, values


def _windows(workspace: Workspace, encoder: FeatureEncoder, rows: Examples) -> dict[str, HistoryWindows]:
    """The windows of stored events that each row reads: start and stop, (N,) each."""
    stores, own = workspace.histories, workspace.histories.target.get(rows.domain)
    windows = {"sources": (stores.source, *stores.source.window(rows.user, rows.time_us, encoder.lifelong))}
    if own is not None:
        windows["this domain"] = (own, *own.window(rows.user, rows.time_us, encoder.short))
    return windows
