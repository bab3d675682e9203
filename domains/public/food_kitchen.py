"""Amazon Food and Kitchen sequences as ABXI preprocesses them: implicit feedback of users active in both.

``afk_50_preprocessed.txt`` has a line per user, ``user item|unix_seconds item|unix_seconds ...``; ``map_item_50.txt``
is JSON ``{ASIN: [item id from 1, 0 for Food or 1 for Kitchen]}``. Times are whole days, and the file lists one day's
items by ascending id, so the order within a day tells what an honest order would not: ties are shuffled here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from domains.public.reading import Part, PreparedDomain, Staging, fault_at, find_required, loader, open_text, roles

DOMAINS = ("food", "kitchen")


@loader("food-kitchen")
def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] = ("kitchen",),
    seed: int = 0,
) -> list[PreparedDomain]:
    """Write the domains ``amazon-food`` and ``amazon-kitchen``; each row is a positive.

    Args:
        sources, targets: "food", "kitchen"; by default food is the source and kitchen the target.
        seed: of the order of a user's items within one day.

    Raises:
        InvalidData: a file is missing, or a line or an item is not as the format says (file and line are named).
    """
    folder = Path(path)
    sequences, mapping = find_required(folder, "afk_50_preprocessed.txt"), find_required(folder, "map_item_50.txt")
    domain_of = _domain_of(mapping)
    chosen = roles(DOMAINS, sources=sources, targets=targets)
    user, item, ts = _events(sequences, len(domain_of))
    # Equal days stay together and take a random order; the row order is what breaks ties downstream.
    order = np.lexsort((np.random.default_rng(seed).random(len(ts)), ts, user))
    with Staging(out_dir) as staging:
        staging.table("events", pa.table({"user": user[order], "item": item[order], "ts": ts[order]}))
        staging.table(
            "items", pa.table({"item": np.arange(1, len(domain_of)), "domain": domain_of[1:].astype(np.int64)})
        )
        return staging.write_parts(
            Part(
                name=f"amazon-{department}",
                role=role,
                interactions="SELECT user::VARCHAR AS user_id, item::VARCHAR AS item_id, ts FROM events "
                f"WHERE item IN (SELECT item FROM items WHERE domain = {DOMAINS.index(department)})",
                columns={"user": "user_id", "item": "item_id", "time": "ts", "time_unit": "s"},
                items=f"SELECT item::VARCHAR AS item_id FROM items WHERE domain = {DOMAINS.index(department)}",
                domain_features={"department": department},
            )
            for department, role in chosen
        )


def _domain_of(path: Path) -> np.ndarray:
    """Domain number by item id; row 0 is no item (-1)."""
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
        numbers = {int(item): int(domain) for item, domain in mapping.values()}
    except json.JSONDecodeError as fault:
        raise fault_at(path, fault.lineno, f"not JSON: {fault.msg}") from None
    except (TypeError, ValueError, AttributeError):
        raise fault_at(path, 1, "must be JSON of the form {ASIN: [item id, domain]}") from None
    domain_of = np.full(max(numbers, default=0) + 1, -1, dtype=np.int8)
    domain_of[list(numbers)] = list(numbers.values())
    return domain_of


def _events(path: Path, items: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    user, item, ts = [], [], []
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            person, *pairs = line.split()
            for pair in pairs:
                try:
                    what, when = map(int, pair.split("|"))
                except ValueError:
                    raise fault_at(path, number, f"{pair!r} is not item|unix_seconds") from None
                if not 0 < what < items:
                    raise fault_at(path, number, f"item {what} is not in map_item_50.txt")
                item.append(what)
                ts.append(when)
            try:
                user.extend([int(person)] * len(pairs))
            except ValueError:
                raise fault_at(path, number, f"{person!r} is not a user number") from None
    return np.array(user, dtype=np.int64), np.array(item, dtype=np.int64), np.array(ts, dtype=np.int64)
