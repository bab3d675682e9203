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

from domains.public.reading import PreparedDomain, Staging, declare, find, find_required, finish

PROFILE = {
    "cms_segid": "category",
    "cms_group_id": "category",
    "final_gender_code": "category",
    "age_level": "category",
    "pvalue_level": "category",
    "shopping_level": "category",
    "occupation": "category",
}
ITEM_ID = "cate || '/' || coalesce(brand, 'none')"


def load(
    path: Path,
    out_dir: Path,
    *,
    boundary: int = 2_000,
    user_share: float = 1.0,
    keep_log_of_target_categories: bool = False,
) -> list[PreparedDomain]:
    """Write ``taobao-ads`` (target, clicks on impressions) and ``taobao-log`` (source, each row a positive).

    Args:
        boundary: first category that belongs to the source.
        user_share: share of the users to keep, chosen by a hash of the id, for a smaller run.
        keep_log_of_target_categories: also write ``taobao-log-near``, the log below the boundary, as a second source.
            Its behaviours reach close to the impressions, so it may know the same session.

    Raises:
        InvalidData: a file or column is missing, or a row is malformed (file and line are named).
    """
    folder, out = Path(path), Path(out_dir)
    kept = f"hash(text_of(user)) % 10000 < {round(user_share * 10_000)}"
    with Staging(out) as staging:
        staging.scan_text(
            "samples",
            find_required(folder, "raw_sample.csv"),
            {"user": "BIGINT", "time_stamp": "BIGINT", "adgroup_id": "BIGINT", "pid": "VARCHAR", "clk": "INTEGER"},
            header=True,
        )
        staging.scan_text(
            "ads",
            find_required(folder, "ad_feature.csv"),
            {"adgroup_id": "BIGINT", "cate_id": "BIGINT", "brand": "VARCHAR", "price": "DOUBLE"},
            header=True,
            null="NULL",
        )
        staging.scan_text(
            "log",
            find_required(folder, "behavior_log.csv"),
            {"user": "BIGINT", "time_stamp": "BIGINT", "btag": "VARCHAR", "cate": "BIGINT", "brand": "VARCHAR"},
            header=True,
        )
        staging.execute(
            f"""
            CREATE TABLE goods AS SELECT adgroup_id, cate_id AS cate, brand, price, {ITEM_ID} AS item_id
            FROM (SELECT *, cate_id AS cate FROM ads)
            """
        )
        users = _write_profiles(staging, folder, out)

        shown = out / "taobao-ads" / "interactions.parquet"
        rows = staging.write(
            f"""
            SELECT text_of(user) AS user_id, item_id, time_stamp AS ts, clk AS click, pid
            FROM samples JOIN goods USING (adgroup_id) WHERE cate < {int(boundary)} AND {kept}
            """,
            shown,
        )
        ((impressions, known),) = staging.execute(
            f"SELECT count(*), count(goods.cate) FROM samples LEFT JOIN goods USING (adgroup_id) WHERE {kept}"
        )
        left_out = {"ad not in ad_feature.csv": impressions - known, "category of the source": known - rows}
        catalogue = out / "taobao-ads" / "items.parquet"
        staging.write(
            f"""
            SELECT item_id, any_value(cate)::VARCHAR AS cate, any_value(brand) AS brand, median(price) AS price
            FROM goods WHERE cate < {int(boundary)} GROUP BY item_id
            """,
            catalogue,
        )
        prepared = []
        logs = {"taobao-log": f"cate >= {int(boundary)}"}
        if keep_log_of_target_categories:
            logs["taobao-log-near"] = f"cate < {int(boundary)}"
        for name, belongs in logs.items():
            prepared.append(_write_log(staging, out, name, f"{belongs} AND {kept}", users))
        spec = declare(
            "taobao-ads",
            "target",
            "ctr",
            {
                "user": "user_id",
                "item": "item_id",
                "time": "ts",
                "time_unit": "s",
                "label": "click",
                "context": {"pid": "category"},
            },
            sources=list(logs),
            items={"cate": "category", "brand": "category", "price": "number"},
            users=PROFILE if users else None,
            domain_features={"surface": "ads"},
        )
        prepared.append(finish(spec, shown, catalogue, users, rows, {k: n for k, n in left_out.items() if n}))
    return prepared


def _write_profiles(staging: Staging, folder: Path, out: Path) -> Path | None:
    file = find(folder, "user_profile.csv", required=False)
    if file is None:
        return None
    staging.scan_text("profiles", file, {"userid": "BIGINT"} | dict.fromkeys(PROFILE, "VARCHAR"), header=True)
    users = out / "users.parquet"
    staging.write(f"SELECT text_of(userid) AS user_id, {', '.join(PROFILE)} FROM profiles", users)
    return users


def _write_log(staging: Staging, out: Path, name: str, belongs: str, users: Path | None) -> PreparedDomain:
    interactions, items = out / name / "interactions.parquet", out / name / "items.parquet"
    rows = staging.write(
        f"SELECT text_of(user) AS user_id, {ITEM_ID} AS item_id, time_stamp AS ts, btag FROM log WHERE {belongs}",
        interactions,
    )
    staging.write(
        f"""
        SELECT {ITEM_ID} AS item_id, any_value(cate)::VARCHAR AS cate, any_value(brand) AS brand
        FROM log WHERE {belongs} GROUP BY 1
        """,
        items,
    )
    columns = {"user": "user_id", "item": "item_id", "time": "ts", "time_unit": "s", "action": "btag"}
    spec = declare(
        name,
        "source",
        "ctr",
        columns,
        items={"cate": "category", "brand": "category"},
        users=PROFILE if users else None,
        domain_features={"surface": "shop"},
    )
    return finish(spec, interactions, items, users, rows, {})
