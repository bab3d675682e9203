"""Taobao display advertising (Ali_Display_Ad_Click, Tianchi data set 56) in its original CSV files, as LCN cuts it.

``raw_sample.csv``: ``user,time_stamp,adgroup_id,pid,nonclk,clk``, the ad impressions of eight days.
``ad_feature.csv``: ``adgroup_id,cate_id,campaign_id,customer,brand,price`` (``NULL`` where unknown).
``user_profile.csv``: ``userid,cms_segid,...``. ``behavior_log.csv``: ``user,time_stamp,btag,cate,brand``, 700 million
rows of browsing, favourites, carts and purchases.

An item is a pair of category and brand, for that is all that the log tells of it. Categories below ``boundary`` make
the target domain, whose rows are the impressions; the log of the other categories is the source domain.
"""

from __future__ import annotations

from pathlib import Path

from domains.public.reading import Part, PreparedDomain, Staging, find, find_required, loader, sampled

PROFILE = {
    "cms_segid": "category",
    "cms_group_id": "category",
    "final_gender_code": "category",
    "age_level": "category",
    "pvalue_level": "category",
    "shopping_level": "category",
    "occupation": "category",
}
FILES = {
    "samples": (
        "raw_sample.csv",
        {"user": "BIGINT", "time_stamp": "BIGINT", "adgroup_id": "BIGINT", "pid": "VARCHAR", "clk": "INTEGER"},
        "",
    ),
    "ads": (
        "ad_feature.csv",
        {"adgroup_id": "BIGINT", "cate_id": "BIGINT", "brand": "VARCHAR", "price": "DOUBLE"},
        "NULL",
    ),
    "log": (
        "behavior_log.csv",
        {"user": "BIGINT", "time_stamp": "BIGINT", "btag": "VARCHAR", "cate": "BIGINT", "brand": "VARCHAR"},
        "",
    ),
}
"""View of each file: its name, its columns, and how it writes an unknown value."""
TIMED = {"user": "user_id", "item": "item_id", "time": "ts", "time_unit": "s"}
ITEM_ID = "cate || '/' || coalesce(brand, 'none')"


@loader("taobao-ads")
def load(path: Path, out_dir: Path, *, boundary: int = 2_000, user_share: float = 1.0) -> list[PreparedDomain]:
    """Write ``taobao-log`` (source, each row a positive) and ``taobao-ads`` (target, clicks on impressions).

    Args:
        boundary: first category that belongs to the source.
        user_share: share of the users to keep, chosen by a hash of the id, for a smaller run.

    Raises:
        InvalidData: a file or column is missing, or a row is malformed (file and line are named).
    """
    folder = Path(path)
    kept = sampled("text_of(user)", user_share)
    with Staging(out_dir) as staging:
        for view, (file, columns, null) in FILES.items():
            staging.scan_text(view, find_required(folder, file), columns, header=True, null=null)
        staging.execute(
            f"""
            CREATE TABLE goods AS SELECT adgroup_id, cate_id AS cate, brand, price, {ITEM_ID} AS item_id
            FROM (SELECT *, cate_id AS cate FROM ads)
            """
        )
        users = _write_profiles(staging, folder)
        return staging.write_parts([_log(boundary, kept, users), _ads(staging, boundary, kept, users)])


def _ads(staging: Staging, boundary: int, kept: str, users: Path | None) -> Part:
    """The impressions of ads below the boundary."""
    ((unknown, of_source),) = staging.execute(
        f"""
        SELECT count(*) FILTER (goods.cate IS NULL), count(*) FILTER (goods.cate >= {int(boundary)})
        FROM samples LEFT JOIN goods USING (adgroup_id) WHERE {kept}
        """
    )
    return Part(
        name="taobao-ads",
        role="target",
        interactions=f"""
        SELECT text_of(user) AS user_id, item_id, time_stamp AS ts, clk AS click, pid
        FROM samples JOIN goods USING (adgroup_id) WHERE cate < {int(boundary)} AND {kept}
        """,
        columns=TIMED | {"label": "click", "context": {"pid": "category"}},
        items=f"""
        SELECT item_id, any_value(cate)::VARCHAR AS cate, any_value(brand) AS brand, median(price) AS price
        FROM goods WHERE cate < {int(boundary)} GROUP BY item_id
        """,
        item_features={"cate": "category", "brand": "category", "price": "number"},
        users=users,
        user_features=PROFILE,
        domain_features={"surface": "ads"},
        left_out={"ad not in ad_feature.csv": unknown, "category of the source": of_source},
    )


def _log(boundary: int, kept: str, users: Path | None) -> Part:
    """The behaviour log of the categories from the boundary on.

    That of the lower ones reaches close to the impressions and may know the same session, so it is no source.
    """
    rows = f"cate >= {int(boundary)} AND {kept}"
    return Part(
        name="taobao-log",
        role="source",
        interactions=f"SELECT text_of(user) AS user_id, {ITEM_ID} AS item_id, time_stamp AS ts, btag FROM log "
        f"WHERE {rows}",
        columns=TIMED | {"action": "btag"},
        items=f"""
        SELECT {ITEM_ID} AS item_id, any_value(cate)::VARCHAR AS cate, any_value(brand) AS brand
        FROM log WHERE {rows} GROUP BY 1
        """,
        item_features={"cate": "category", "brand": "category"},
        users=users,
        user_features=PROFILE,
        domain_features={"surface": "shop"},
    )


def _write_profiles(staging: Staging, folder: Path) -> Path | None:
    file = find(folder, "user_profile.csv", required=False)
    if file is None:
        return None
    staging.scan_text("profiles", file, {"userid": "BIGINT"} | dict.fromkeys(PROFILE, "VARCHAR"), header=True)
    users = staging.out_dir / "users.parquet"
    staging.write(f"SELECT text_of(userid) AS user_id, {', '.join(PROFILE)} FROM profiles", users)
    return users
