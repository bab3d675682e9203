"""Taobao user behaviour (UserBehavior.csv, Tianchi data set 649): 100 million rows, no header.

Columns ``user_id,item_id,category_id,behavior_type,unix_seconds`` with behaviours pv, buy, cart and fav of
25 November to 3 December 2017. Each row is a positive: negatives have to be drawn. Categories below ``boundary`` make
the target domain, the others the source.
"""

from __future__ import annotations

from pathlib import Path

from domains.public.reading import Part, PreparedDomain, Role, Staging, find_required, loader, sampled

FIRST_SECOND, END_SECOND = 1_511_539_200, 1_512_316_800  # 2017-11-25 to 2017-12-04, midnight in China


@loader("taobao-behaviour")
def load(path: Path, out_dir: Path, *, boundary: int = 1_000_000, user_share: float = 1.0) -> list[PreparedDomain]:
    """Write ``taobao-behaviour-far`` (source) and ``taobao-behaviour-near`` (target, categories below ``boundary``).

    The file holds some rows dated outside of its nine days; they are left out and counted.

    Args:
        path: the file or its folder.
        boundary: first category id that belongs to the source; a fifth of the ids lie below the default.
        user_share: share of the users to keep, chosen by a hash of the id.

    Raises:
        InvalidData: the file is missing or a row is malformed (file and line are named).
    """
    kept = sampled("user_id", user_share)
    dated = f"ts >= {FIRST_SECOND} AND ts < {END_SECOND}"
    columns = dict.fromkeys(("user_id", "item_id"), "VARCHAR")
    columns |= {"category_id": "BIGINT", "behavior_type": "VARCHAR", "ts": "BIGINT"}
    with Staging(out_dir) as staging:
        staging.scan_text("log", find_required(Path(path), "UserBehavior.csv"), columns)

        def part(name: str, role: Role, belongs: str) -> Part:
            ((undated,),) = staging.execute(
                f"SELECT count(*) FROM log WHERE {belongs} AND {kept} AND (NOT ({dated}) OR ts IS NULL)"
            )
            rows = f"FROM log WHERE {belongs} AND {kept} AND {dated}"
            return Part(
                name=name,
                role=role,
                interactions=f"SELECT user_id, item_id, ts, behavior_type {rows}",
                columns={
                    "user": "user_id",
                    "item": "item_id",
                    "time": "ts",
                    "time_unit": "s",
                    "action": "behavior_type",
                },
                items=f"SELECT item_id, any_value(category_id)::VARCHAR AS category {rows} GROUP BY item_id",
                item_features={"category": "category"},
                domain_features={"surface": role},
                left_out={"dated outside of the nine days": undated},
            )

        return staging.write_parts(
            [
                part("taobao-behaviour-far", "source", f"category_id >= {int(boundary)}"),
                part("taobao-behaviour-near", "target", f"category_id < {int(boundary)}"),
            ]
        )
