"""KuaiRand logs (1K, 27K or Pure) in their original CSV form, with the app's tabs as domains.

``log_standard_*.csv`` hold one row per shown video (``log_random_*.csv``, shown at random, is not read):
``user_id,video_id,date,hourmin,time_ms,is_click,...,tab``. ``user_features_*.csv`` and ``video_features_basic_*.csv``
hold the features. From the KuaiRand authors (Zenodo record 10439422). A video shown in two tabs is an item of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domains.errors import InvalidData
from domains.public.reading import Part, PreparedDomain, Staging, loader, roles_by_size

LOG = {"user_id": "VARCHAR", "video_id": "VARCHAR", "time_ms": "BIGINT", "is_click": "INTEGER", "tab": "INTEGER"}
ACTIONS = ("is_like", "is_follow", "is_comment", "is_forward", "long_view", "is_click")
VIDEO = {"video_type": "category", "upload_type": "category", "music_type": "category", "tag": "category"}
COLUMNS = {
    "user": "user_id",
    "item": "item_id",
    "time": "time_ms",
    "time_unit": "ms",
    "label": "is_click",
    "action": "event_type",
}
USER = ("user_active_degree", "follow_user_num_range", "fans_user_num_range", "register_days_range")


@loader("kuairand")
def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    minimum_rows: int = 1_000,
) -> list[PreparedDomain]:
    """Write one click domain per tab: ``kuairand-tab-0``, ``kuairand-tab-1``, ...

    Args:
        sources, targets: tab codes as text. By default the tab with the most rows is the source, and each other tab
            with at least ``minimum_rows`` a target.

    Raises:
        InvalidData: no log, a missing column, an unknown tab, or a malformed row (file and line are named).
    """
    folder = Path(path)
    folder = folder / "data" if (folder / "data").is_dir() else folder
    logs = _files(folder, "log_standard")
    if not logs:
        raise InvalidData(f"{folder}: holds no log_standard_*.csv", file=str(folder))
    videos, people = _files(folder, "video_features_basic"), _files(folder, "user_features")
    with Staging(out_dir) as staging:
        staging.scan_text("log", logs, LOG | dict.fromkeys(ACTIONS, "INTEGER"), header=True, quote='"')
        strongest = " ".join(f"WHEN {action} = 1 THEN '{action.removeprefix('is_')}'" for action in ACTIONS)
        staging.execute(
            f"""
            CREATE TABLE shown AS
            SELECT user_id, video_id AS item_id, time_ms, is_click, tab, CASE {strongest} ELSE 'view' END AS event_type
            FROM log
            """
        )
        described = _describe(staging, videos, people)
        sizes = staging.execute("SELECT tab::VARCHAR, count(*) FROM shown GROUP BY tab ORDER BY 2 DESC, tab")
        chosen = roles_by_size(sizes, sources=sources, targets=targets, minimum_rows=minimum_rows)
        return staging.write_parts(
            Part(
                name=f"kuairand-tab-{tab}",
                role=role,
                interactions="SELECT user_id, item_id, time_ms, is_click, event_type FROM shown "
                f"WHERE tab = {int(tab)}",
                columns=COLUMNS,
                domain_features={"tab": f"tab-{tab}"},
                **described,
            )
            for tab, role in chosen
        )


def _describe(staging: Staging, videos: list[Path], people: list[Path]) -> dict[str, Any]:
    """What each domain says of its videos and users, as far as there are files of them."""
    described: dict[str, Any] = {}
    if videos:
        columns = dict.fromkeys(("video_id", *VIDEO), "VARCHAR") | {"video_duration": "DOUBLE"}
        staging.scan_text("videos", videos, columns, header=True, quote='"')
        described["items"] = (
            f"SELECT video_id AS item_id, {', '.join(VIDEO)}, video_duration FROM videos "
            "WHERE video_id IN (SELECT item_id FROM written)"
        )
        described["item_features"] = VIDEO | {"video_duration": "number"}
    if people:
        staging.scan_text("people", people, dict.fromkeys(("user_id", *USER), "VARCHAR"), header=True, quote='"')
        described |= {"users": staging.out_dir / "users.parquet", "user_features": dict.fromkeys(USER, "category")}
        staging.write(f"SELECT user_id, {', '.join(USER)} FROM people", described["users"])
    return described


def _files(folder: Path, prefix: str) -> list[Path]:
    return sorted([*folder.glob(f"{prefix}*.csv"), *folder.glob(f"{prefix}*.csv.gz")])
