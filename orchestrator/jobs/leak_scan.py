"""The leak scan of a launch: could a test row be known in training?"""

from __future__ import annotations

import time

import numpy as np

from domains.events.histories import HistoryStore
from domains.events.splits import scan_for_leaks
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.jobs.launch_state import LaunchState

HistoryWindows = tuple[HistoryStore, np.ndarray, np.ndarray]


def leak_scan(
    launch: LaunchState, encoder: FeatureEncoder, rows: Examples, *, new_items: np.ndarray
) -> tuple[list[str], list[str]]:
    """Ways in which a test row could be known in training, and what was asked to find them, each as a sentence.

    Args:
        rows: all rows of the domain.
        new_items: items of which the report says that training never saw them.
    """
    split, new_items = launch.split, np.unique(new_items)
    features = _features(launch.workspace, encoder, rows)
    asked = [
        f"{len(rows):,} rows: is one, or its event, on two sides of the split?",
        f"{len(split.cold_users):,} cold users: has one a row in training or validation?",
        f"{len(new_items):,} items that are called new: has one a row in training or validation?",
        f"features ({', '.join(features) or 'there are none'}): does one alone tell the label?",
    ]
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
        label=rows.label,
        features=features,
        now_us=int(time.time() * 1e6) if launch.timed else None,
        histories=windows,
        new_items=new_items,
    )
    return found, asked


def _features(workspace: Workspace, encoder: FeatureEncoder, rows: Examples) -> dict[str, np.ndarray]:
    """Codes of every feature that varies, (N,) each, by what it is of and its name."""
    item_codes = workspace.item_codes(encoder, rows.domain)[rows.item]
    user_codes = workspace.user_codes(encoder)[rows.user]
    return {
        f"{what} {field.name}": codes[:, at]
        for what, fields, codes in (
            ("item", encoder.item_fields, item_codes),
            ("user", encoder.user_fields, user_codes),
            ("context", encoder.context_fields, rows.context),
        )
        for at, field in enumerate(fields)
        if np.ptp(codes[:, at])
    }


def _windows(workspace: Workspace, encoder: FeatureEncoder, rows: Examples) -> dict[str, HistoryWindows]:
    """The windows of stored events that each row reads: start and stop, (N,) each."""
    stores, own = workspace.histories, workspace.histories.target.get(rows.domain)
    windows = {"sources": (stores.source, *stores.source.window(rows.user, rows.time_us, encoder.lifelong))}
    if own is not None:
        windows["this domain"] = (own, *own.window(rows.user, rows.time_us, encoder.short))
    return windows
