"""What a domain still lacks before it can launch, and what its sources would bring; before any training.

``assess`` reads the ingested data in bounded memory into one ``Observed`` per domain; ``judge`` is the rule, pure
numpy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from domains.events.domain_data import DomainData
from domains.events.rehearsal import Rehearsal, rehearse
from domains.spec import DomainSpec

DAY_US = 86_400_000_000
MINIMUM_OF_EACH_LABEL = 50
"""Fewer clicks (or non-clicks) than this teach an adapter nothing that outlives the next day."""
MINIMUM_RATINGS = 100
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
MODERATE_SHIFT, STRONG_SHIFT = 0.1, 0.25
"""The usual reading of a population stability index."""
BINS = 10


@dataclass(frozen=True)
class Observed:
    """What readiness looks at in one domain; user and item positions are vocabulary indexes, 0 is unknown.

    Shapes (N users, I items, K distinct labels):
        events_of_user: (N,) events of each user
        prior_events:   (N,) for a source: events of each user before that user's first event in the target
        events_of_item: (I,) events of each item
        label, label_events: (K,) the labels that occur, ascending, and how often
        item_features, user_features: name -> (I,) or (N,) values; object (text, None if missing) or float (NaN)
    """

    events_of_user: np.ndarray
    prior_events: np.ndarray
    events_of_item: np.ndarray
    label: np.ndarray
    label_events: np.ndarray
    first_us: int | None = None
    last_us: int | None = None
    item_features: Mapping[str, np.ndarray] | None = None
    user_features: Mapping[str, np.ndarray] | None = None

    @property
    def events(self) -> int:
        return int(self.label_events.sum())

    @property
    def label_mean(self) -> float | None:
        return float((self.label * self.label_events).sum() / self.events) if self.events else None


@dataclass(frozen=True)
class SourceReadiness:
    """What one source would bring.

    ``shared_users`` have events here and in the target; ``shared_share`` is their part of the target's users.
    ``source_events`` are the shared users' events before their first in the target. ``label_shift`` is the target's
    mean label less the source's. ``feature_shift`` holds the population stability index of each feature that both
    declare, weighted by events: below 0.1 alike, above 0.25 strongly shifted.
    """

    name: str
    events: int
    users: int
    shared_users: int
    shared_share: float
    source_events: int
    label_mean: float | None
    label_shift: float | None
    feature_shift: dict[str, float]


@dataclass(frozen=True)
class Readiness:
    """The verdict: ready when nothing is missing.

    ``missing`` says what blocks a launch and ``notes`` what a person should know, each a sentence.
    ``users_with_history`` are the target's users with source events before their first in the target: those that can
    be held out as cold; ``judging_users`` are those whom the launch's own split will judge on. ``waiting_users`` have
    source events and none in the target: they are cold today.
    ``history_quantiles`` is how many source events all of these bring, keyed "10%" to "90%".
    """

    domain: str
    missing: list[str]
    notes: list[str]
    events: int
    users: int
    items: int
    label_mean: float | None
    users_with_history: int
    waiting_users: int
    history_quantiles: dict[str, float]
    sources: list[SourceReadiness] = field(default_factory=list)
    judging_users: int | None = None

    @property
    def ready(self) -> bool:
        return not self.missing

    def as_dict(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return {**asdict(self), "ready": self.ready}


def assess(spec: DomainSpec, data_dir: Path, *, sources: Sequence[str] | None = None) -> Readiness:
    """Read a domain and its sources and judge whether it can launch.

    ``sources`` names the source domains there are, which matters to a spec that names none and so takes all of them;
    by default the sources that the spec names.
    """
    chosen = [name for name in (sources if sources is not None else spec.sources) if name != spec.name]
    if spec.sources:
        chosen = [name for name in spec.sources if name in chosen]
    own, others = DomainData(data_dir, spec.name), {name: DomainData(data_dir, name) for name in chosen}
    users = len(own.user_vocabulary)  # read after the data is pinned, so that it knows every user of it
    first_us = np.full(users, np.iinfo(np.int64).max)
    target = _observe(own, users, first_us, keep_first=True)
    observed = {name: _observe(data, users, first_us) for name, data in others.items()}
    if spec.role == "source" or not any(source.events for source in observed.values()):
        return judge(spec, target, observed)
    return judge(spec, target, observed, rehearsal=_rehearsed(spec, own, list(others.values()), users))


def judge(
    spec: DomainSpec, target: Observed, sources: Mapping[str, Observed], *, rehearsal: Rehearsal | None = None
) -> Readiness:
    """The rule, on what was observed; every user array must have the same length.

    Args:
        rehearsal: what a launch would find in the target's rows; without it the users with history are counted.
    """
    filled = {name: source for name, source in sources.items() if source.events}
    prior = sum((source.prior_events for source in filled.values()), np.zeros_like(target.events_of_user))
    here, has_history = target.events_of_user > 0, prior > 0
    here[:1] = has_history[:1] = False
    brought = prior[has_history]
    with_history, waiting = int((here & has_history).sum()), int((has_history & ~here).sum())
    assessed = [_source(name, source, target, here) for name, source in sources.items()]

    missing = [*_missing_labels(spec, target), *_missing_items(spec, target)]
    if spec.role == "target" and rehearsal is None:
        missing += _missing_history(spec, filled, int(here.sum()), with_history)
    # What holds of all rows is not said again of a part of them.
    elif rehearsal is not None and rehearsal.missing and not missing:
        missing += _missing_history(spec, filled, int(here.sum()), with_history) or rehearsal.missing
    notes = [
        *(rehearsal.notes if rehearsal else ()),
        *_data_notes(spec, target, int(here.sum())),
        *_history_notes(brought, waiting),
    ]
    for source in assessed:
        notes += _source_notes(spec, source, target, sources[source.name])
    return Readiness(
        domain=spec.name,
        missing=missing,
        notes=notes,
        events=target.events,
        users=int(here.sum()),
        items=int((target.events_of_item[1:] > 0).sum()),
        label_mean=target.label_mean,
        users_with_history=with_history,
        waiting_users=waiting,
        history_quantiles={
            f"{share:.0%}": float(value)
            for share, value in zip(QUANTILES, np.quantile(brought, QUANTILES), strict=True)
        }
        if len(brought)
        else {},
        sources=assessed,
        judging_users=None if rehearsal is None else rehearsal.cold_users,
    )


def stability_index(expected: np.ndarray, actual: np.ndarray) -> float:
    """Population stability index of two histograms over the same bins: sum of (a - e) ln(a / e) over their shares.

    Half an event is added to each bin, so that a bin that is empty on one side counts without being infinite.
    """
    e, a = expected + 0.5, actual + 0.5
    e, a = e / e.sum(), a / a.sum()
    return float(((a - e) * np.log(a / e)).sum())


def _missing_labels(spec: DomainSpec, target: Observed) -> list[str]:
    if not target.events:
        return ["there are no interactions yet; ingest some"]
    if spec.interactions.label is None and spec.role == "target":
        return [
            "each event is a positive, and a launch needs both labels; add rows of what was not chosen, and a label"
        ]
    if spec.interactions.label is not None and np.count_nonzero(target.label_events) < 2:
        what = "ratings are the same" if spec.task == "rating" else "events have the same label"
        return [f"all {target.events:,} {what}, so there is nothing to tell apart"]
    counts = {"events": target.events}
    if spec.task == "rating":
        counts = {"ratings": target.events}
    elif spec.interactions.label is not None:
        clicks = int(target.label_events[target.label > 0].sum())
        counts = {"clicks": clicks, "events without a click": target.events - clicks}
    needed = MINIMUM_RATINGS if spec.task == "rating" else MINIMUM_OF_EACH_LABEL
    return [f"only {count:,} {what}; at least {needed} are needed" for what, count in counts.items() if count < needed]


def _missing_items(spec: DomainSpec, target: Observed) -> list[str]:
    if not target.events or spec.items is None or not spec.items.features or target.item_features is not None:
        return []
    return [f"the spec declares item features ({', '.join(spec.items.features)}) but no items file was given"]


def _missing_history(spec: DomainSpec, filled: Mapping[str, Observed], users: int, with_history: int) -> list[str]:
    if not filled:
        named = f" ({', '.join(spec.sources)})" if spec.sources else ""
        return [f"none of its source domains{named} has data yet"]
    if not users:
        return []
    needed = math.ceil(spec.gate.minimum_cold_users / spec.gate.cold_share)
    if with_history >= needed:
        return []
    return [
        f"only {with_history:,} of its {users:,} users have source history before their first event here; "
        f"{needed:,} are "
        f"needed to hold out {spec.gate.minimum_cold_users} cold users at a share of {spec.gate.cold_share:g}"
    ]


def _source(name: str, source: Observed, target: Observed, here: np.ndarray) -> SourceReadiness:
    active = source.events_of_user > 0
    active[:1] = False
    shared = here & active
    shift, feature_shift = None, {}
    if source.label_mean is not None and target.label_mean is not None:
        shift = target.label_mean - source.label_mean
        feature_shift = {
            **_feature_shift(source.item_features, target.item_features, source.events_of_item, target.events_of_item),
            **_feature_shift(source.user_features, target.user_features, source.events_of_user, target.events_of_user),
        }
    return SourceReadiness(
        name=name,
        events=source.events,
        users=int(active.sum()),
        shared_users=int(shared.sum()),
        shared_share=float(shared.sum() / here.sum()) if here.any() else 0.0,
        source_events=int(source.prior_events[here].sum()),
        label_mean=source.label_mean,
        label_shift=shift,
        feature_shift=feature_shift,
    )


def _feature_shift(
    source: Mapping[str, np.ndarray] | None,
    target: Mapping[str, np.ndarray] | None,
    source_weight: np.ndarray,
    target_weight: np.ndarray,
) -> dict[str, float]:
    source, target = source or {}, target or {}
    return {
        name: stability_index(*_histograms(source[name], source_weight, target[name], target_weight))
        for name in sorted(source.keys() & target.keys())
    }


def _histograms(
    source: np.ndarray, source_weight: np.ndarray, target: np.ndarray, target_weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Events per bin in both: a bin per category and one for what is missing; numbers by the source's deciles."""
    if object in (source.dtype, target.dtype):
        both = np.concatenate([source, target]).tolist()
        codes = {value: code for code, value in enumerate(dict.fromkeys(both))}
        code = np.array([codes[value] for value in both])
    else:
        seen = np.repeat(source, np.minimum(source_weight, 1_000))
        seen = seen[np.isfinite(seen)]
        edges = np.unique(np.quantile(seen, np.linspace(0, 1, BINS + 1)[1:-1])) if len(seen) else np.empty(0)
        both = np.concatenate([source, target])
        code = np.where(np.isnan(both), len(edges) + 1, np.searchsorted(edges, both, side="right"))
    bins = int(code.max()) + 1 if len(code) else 1
    return (
        np.bincount(code[: len(source)], weights=source_weight, minlength=bins),
        np.bincount(code[len(source) :], weights=target_weight, minlength=bins),
    )


def _data_notes(spec: DomainSpec, target: Observed, users: int) -> Iterator[str]:
    if target.events:
        yield (
            f"{target.events:,} events of {users:,} users on {int((target.events_of_item[1:] > 0).sum()):,} "
            f"items, mean label {target.label_mean:.3f}"
        )
        if spec.interactions.label is None:
            yield "each event is a positive"
    if spec.users is not None and spec.users.features and target.user_features is None:
        yield f"no users file was given, so the profile ({', '.join(spec.users.features)}) stays unknown"
    if spec.items is None:
        yield "without an items file, new items are ranked by the domain's mean alone"


def _history_notes(brought: np.ndarray, waiting: int) -> Iterator[str]:
    if len(brought):
        low, middle, high = np.quantile(brought, (0.1, 0.5, 0.9))
        yield (
            f"users bring {middle:,.0f} source events in the median (10%: {low:,.0f}, 90%: {high:,.0f}); "
            f"{waiting:,} users with source history have not come here yet"
        )


def _source_notes(spec: DomainSpec, source: SourceReadiness, target: Observed, observed: Observed) -> list[str]:
    if not source.events:
        return [f"{source.name}: has no data yet"]
    summary = f"{source.name}: {source.shared_users:,} shared users ({source.shared_share:.0%} of this domain's)"
    if source.label_shift is not None and target.events:
        summary += f", mean label {source.label_mean:.3f}"
    notes = [summary]
    for name, index in source.feature_shift.items():
        if index > MODERATE_SHIFT:
            strength = "strongly" if index > STRONG_SHIFT else "somewhat"
            notes.append(f"{source.name}: {name} is {strength} shifted (stability index {index:.2f})")
    if (
        spec.interactions.time
        and observed.last_us
        and target.first_us
        and target.first_us - observed.last_us > 30 * DAY_US
    ):
        days = (target.first_us - observed.last_us) // DAY_US
        notes.append(f"{source.name}: its last event is {days} days older than this domain's first")
    return notes


def _rehearsed(spec: DomainSpec, own: DomainData, sources: Sequence[DomainData], users: int) -> Rehearsal:
    """The target's rows are read whole, as its launch does; of the sources only each user's first time is kept."""
    first_source_us = np.full(users, np.iinfo(np.int64).max)
    for data in sources:
        for batch in data.event_batches(["user", "time_us"]):
            user, time_us = batch.column("user").to_numpy(), batch.column("time_us").to_numpy()
            seen = user < users
            np.minimum.at(first_source_us, user[seen], time_us[seen])
    if not own.event_files():
        return Rehearsal()
    rows = own.interactions(["user", "time_us", "label"])
    user, time_us, label = (rows[name].to_numpy() for name in ("user", "time_us", "label"))
    return rehearse(spec, user=user, time_us=time_us, label=label, first_source_us=first_source_us)


def _observe(data: DomainData, users: int, first_us: np.ndarray, *, keep_first: bool = False) -> Observed:
    """Count a domain's events batch by batch. With ``keep_first`` the first event of each user goes into ``first_us``;
    else events before it count as prior."""
    items = len(data.item_vocabulary)
    of_user, prior, of_item = (np.zeros(n, dtype=np.int64) for n in (users, users, items))
    labels: dict[float, int] = {}
    for batch in data.event_batches(["user", "item", "time_us", "label"]):
        user, item, time_us, label = (batch.column(i).to_numpy(zero_copy_only=False) for i in range(4))
        of_user += np.bincount(user, minlength=users)
        of_item += np.bincount(item, minlength=items)
        for value, count in zip(*np.unique(label, return_counts=True), strict=True):
            labels[float(value)] = labels.get(float(value), 0) + int(count)
        if keep_first:
            np.minimum.at(first_us, user, time_us)
        else:
            prior += np.bincount(user[time_us < first_us[user]], minlength=users)
    counts = data.counts()
    value = np.array(sorted(labels))
    return Observed(
        events_of_user=of_user,
        prior_events=prior,
        events_of_item=of_item,
        label=value,
        label_events=np.array([labels[v] for v in value.tolist()], dtype=np.int64),
        first_us=counts["first_us"],
        last_us=counts["last_us"],
        item_features=_features(data.items(), "item", items),
        user_features=_features(data.users(), "user", users),
    )


def _features(table: pa.Table | None, index: str, length: int) -> dict[str, np.ndarray] | None:
    """Feature columns laid out by vocabulary index."""
    if table is None:
        return None
    place = table[index].to_numpy()
    features = {}
    for name in table.column_names:
        if name in (index, f"{index}_id"):
            continue
        number = pa.types.is_floating(table[name].type) or pa.types.is_integer(table[name].type)
        values = np.full(length, np.nan) if number else np.full(length, None, dtype=object)
        values[place] = table[name].to_numpy(zero_copy_only=False)
        features[name] = values
    return features
