"""What a launch would find in a target's rows: its own split, before anything is trained.

Readiness and launch draw the same cold users, cut at the same time and ask for the same rows, so that a domain which is
called ready is not turned away for its data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from domains.errors import NotEnoughData
from domains.events.splits import Split, launch_split
from domains.spec import DomainSpec

FEWEST_TRAINING_ROWS = 50
"""Rows to train on; with fewer no launch starts."""


@dataclass(frozen=True)
class Rehearsal:
    """How many cold users would judge, and what would stop a launch or leave it without a verdict, as sentences."""

    cold_users: int = 0
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rehearse(
    spec: DomainSpec, *, user: np.ndarray, time_us: np.ndarray, label: np.ndarray, first_source_us: np.ndarray
) -> Rehearsal:
    """Split a target's rows as its launch will.

    Shapes:
        user, time_us, label: (N,) the target's rows
        first_source_us:      (users,) time of each user's first event in the sources, the largest int64 where none
    """
    has_history = first_source_us[user] < time_us
    notes = []
    if spec.interactions.time is not None and len(user) and np.ptp(time_us) == 0:
        notes.append("all events have one time, so there are no later ones to judge on; users alone are held out")
    try:
        split = launch_split(spec, user=user, time_us=time_us, has_source_history=has_history)
    except NotEnoughData as fault:
        return Rehearsal(missing=[str(fault)], notes=notes)
    judging = np.unique(user[split.test])
    return Rehearsal(len(judging), [*_untaught(spec, label, split), *_unjudged(spec, user, label, split)], notes)


def too_little_to_learn(task: str, label: np.ndarray) -> bool:
    """Whether training rows with these labels, (N,), are too few, or of clicks all alike."""
    return len(label) < FEWEST_TRAINING_ROWS or (task == "ctr" and np.ptp(label) == 0)


def _untaught(spec: DomainSpec, label: np.ndarray, split: Split) -> Iterator[str]:
    train = label[split.train]
    if too_little_to_learn(spec.task, train):
        alike = f", all with label {train[0]:g}" if np.ptp(train) == 0 else ""
        yield (
            f"only {len(train):,} rows to learn from{alike}, before the last fifth of the time and of users who are "
            f"not held out; a launch needs {FEWEST_TRAINING_ROWS}, of clicks with both labels"
        )


def _unjudged(spec: DomainSpec, user: np.ndarray, label: np.ndarray, split: Split) -> Iterator[str]:
    gate, judging = spec.gate, len(np.unique(user[split.test]))
    if judging < gate.minimum_cold_users:
        times = math.ceil(10 * gate.minimum_cold_users / max(judging, 1)) / 10
        later = " and come back in the last fifth of the time" if split.cut_us is not None else ""
        yield (
            f"only {judging:,} cold users would judge, who have source history{later}; the gate asks for "
            f"{gate.minimum_cold_users}: about {times:g} times as many such users are needed, or a larger "
            f"gate.cold_share than {gate.cold_share:g}"
        )
    if spec.task == "ctr" and np.ptp(label[split.test]) == 0:
        yield f"all {len(split.test):,} rows of the cold users who would judge have label {label[split.test][0]:g}"
    elif gate.metric == "gauc" and not _both_labels_of_one(user[split.test], label[split.test]):
        yield "no cold user who would judge has both labels, so gauc is not defined; let the gate measure by auc"


def _both_labels_of_one(user: np.ndarray, label: np.ndarray) -> bool:
    code = np.unique(user, return_inverse=True)[1].ravel()
    rows, positives = np.bincount(code), np.bincount(code, label)
    return bool(((positives > 0) & (positives < rows)).any())
