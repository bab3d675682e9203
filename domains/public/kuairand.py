"""KuaiRand logs (1K, 27K or Pure) in their original CSV form, with the app's tabs as domains.

``log_standard_*.csv`` (and ``log_random_*.csv``, whose videos were shown at random) hold one row per shown video:
``user_id,video_id,date,hourmin,time_ms,is_click,...,tab``. ``user_features_*.csv`` and ``video_features_basic_*.csv``
hold the features. From the KuaiRand authors (Zenodo record 10439422). A video shown in two tabs is an item of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.errors import InvalidData
from domains.public.reading import PreparedDomain, Staging, declare, finish, roles

LOG = {"user_id": "VARCHAR", "video_id": "VARCHAR", "time_ms": "BIGINT", "is_click": "INTEGER", "tab": "INTEGER"}
ACTIONS = ("is_like", "is_follow", "is_comment", "is_forward", "long_view", "is_click")
VIDEO = {"video_type": "category", "upload_type": "category", "music_type": "category", "tag": "category"}
USER = ("user_active_degree", "follow_user_num_range", "fans_user_num_range", "register_days_range")


def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    minimum_rows: int = 1_000,
    include_random: bool = False,
) -> list[PreparedDomain]:
    """Write one click domain per tab: ``kuairand-tab-0``, ``kuairand-tab-1``, ...

    Args:
        sources, targets: tab codes as text. By default the tab with the most rows lends, and each other tab with at
            least ``minimum_rows`` borrows.
        include_random: read the randomly exposed log too.

    Raises:
        InvalidData: no log, a missing column, an unknown tab, or a malformed row (file and line are named).
    """
    folder, out = Path(path), Path(out_dir)
    folder = folder / "data" if (folder / "data").is_dir() else folder
    logs = _files(folder, "log_standard") + (_files(folder, "log_random") if include_random else [])
    if not logs:
        raise InvalidData(f"{folder}: holds no log_standard_*.csv", file=str(folder))
    videos, people = _files(folder, "video_features_basic"), _files(folder, "user_features")
    with Staging(out) as staging:
        staging.scan_text("log", logs, LOG | dict.fromkeys(ACTIONS, "INTEGER"), header=True, quote='"')
        strongest = " ".join(f"WHEN {action} = 1 THEN '{action.removeprefix('is_')}'" for action in ACTIONS)
        staging.execute(
            f"""
            CREATE TABLE shown AS
            SELECT user_id, video_id AS item_id, time_ms, is_click, tab, CASE {strongest} ELSE 'view' END AS event_type
            FROM log
            """
        )
        if videos:
            columns = dict.fromkeys(("video_id", *VIDEO), "VARCHAR") | {"video_duration": "DOUBLE"}
            staging.scan_text("videos", videos, columns, header=True, quote='"')
        if people:
            staging.scan_text("people", people, dict.fromkeys(("user_id", *USER), "VARCHAR"), header=True, quote='"')
            staging.write(f"SELECT user_id, {', '.join(USER)} FROM people", out / "users.parquet")
        by_size = staging.execute("SELECT tab::VARCHAR, count(*) FROM shown GROUP BY tab ORDER BY 2 DESC, tab")
        tabs = [tab for tab, _ in by_size]
        lending = list(sources) if sources is not None else [tab for tab in tabs[:1] if tab not in (targets or ())]
        borrowing = targets
        if borrowing is None:
            borrowing = [tab for tab, count in by_size if tab not in lending and count >= minimum_rows]
        prepared = []
        for tab, role in roles(tabs, sources=lending, targets=borrowing):
            name = f"kuairand-tab-{tab}"
            interactions, items = out / name / "interactions.parquet", out / name / "items.parquet"
            rows = staging.write(
                f"SELECT user_id, item_id, time_ms, is_click, event_type FROM shown WHERE tab = {int(tab)}",
                interactions,
            )
            if videos:
                staging.write(
                    f"SELECT video_id AS item_id, {', '.join(VIDEO)}, video_duration FROM videos "
                    f"WHERE video_id IN (SELECT item_id FROM shown WHERE tab = {int(tab)})",
                    items,
                )
            spec = declare(
                name,
                role,
                "ctr",
                {
                    "user": "user_id",
                    "item": "item_id",
                    "time": "time_ms",
                    "time_unit": "ms",
                    "label": "is_click",
                    "action": "event_type",
                },
                sources=[f"kuairand-tab-{t}" for t in lending],
                items=VIDEO | {"video_duration": "number"} if videos else None,
                users=dict.fromkeys(USER, "category") if people else None,
                domain_features={"tab": f"tab-{tab}"},
            )
            users = out / "users.parquet" if people else None
            prepared.append(finish(spec, interactions, items if videos else None, users, rows, {}))
    return prepared


def _files(folder: Path, prefix: str) -> list[Path]:
    return sorted([*folder.glob(f"{prefix}*.csv"), *folder.glob(f"{prefix}*.csv.gz")])
