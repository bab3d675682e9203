"""Ekstra Bladet news (EB-NeRD): impressions with clicks, and what each user had read before.

``behaviors.parquet`` has a row per impression with the lists ``article_ids_inview`` and ``article_ids_clicked``;
``history.parquet`` a row per user with lists of articles read and when. An impression is exploded to one row per shown
article, clicked or not. The full set holds both files in ``train`` and in ``validation``: give one of these folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domains.public.reading import Part, PreparedDomain, Staging, find, find_required, loader

PROFILE = ("gender", "age", "postcode", "is_subscriber")
ARTICLES = "articles.parquet"
ARTICLE = ("category_str", "article_type", "premium")


@loader("ebnerd")
def load(path: Path, out_dir: Path) -> list[PreparedDomain]:
    """Write ``ebnerd-reading`` (source: articles read, each row a positive) and ``ebnerd-front`` (target: exposures).

    With ``articles.parquet`` beside the folder's files or one level up, articles get their category and type.

    Raises:
        InvalidData: a file is missing or is not such a Parquet file.
    """
    folder = Path(path)
    with Staging(out_dir) as staging:
        staging.scan_parquet("behaviors", find_required(folder, "behaviors.parquet"))
        staging.scan_parquet("history", find_required(folder, "history.parquet"))
        articles = next((file for at in (folder, folder.parent) if (file := find(at, ARTICLES, required=False))), None)
        if articles:
            staging.scan_parquet("articles", articles)
        users = staging.out_dir / "users.parquet"
        profile = ", ".join(f"any_value({column})::VARCHAR AS {column}" for column in PROFILE)
        staging.write(f"SELECT user_id::VARCHAR AS user_id, {profile} FROM behaviors GROUP BY 1 ORDER BY 1", users)
        timed = {"user": "user_id", "item": "item_id", "time": "ts", "time_unit": "us"}
        described: dict[str, Any] = {"users": users, "user_features": dict.fromkeys(PROFILE, "category")}
        if articles:
            columns = ", ".join(f"{column}::VARCHAR AS {column}" for column in ARTICLE)
            described["items"] = (
                f"SELECT article_id::VARCHAR AS item_id, {columns} FROM articles "
                "WHERE article_id::VARCHAR IN (SELECT item_id FROM written)"
            )
            described["item_features"] = dict.fromkeys(ARTICLE, "category")
        reading = Part(
            name="ebnerd-reading",
            role="source",
            interactions="""
            SELECT user_id::VARCHAR AS user_id, unnest(article_id_fixed)::VARCHAR AS item_id,
                   epoch_us(unnest(impression_time_fixed)) AS ts, unnest(read_time_fixed) AS read_time
            FROM history
            """,
            columns=timed,
            domain_features={"surface": "article"},
            **described,
        )
        front = Part(
            name="ebnerd-front",
            role="target",
            interactions="""
            SELECT user_id::VARCHAR AS user_id, article::VARCHAR AS item_id, epoch_us(impression_time) AS ts,
                   list_contains(article_ids_clicked, article)::TINYINT AS click,
                   device_type::VARCHAR AS device_type, impression_id
            FROM (SELECT *, unnest(article_ids_inview) AS article FROM behaviors)
            """,
            columns=timed | {"label": "click", "context": {"device_type": "category"}},
            domain_features={"surface": "front-page"},
            **described,
        )
        return staging.write_parts([reading, front])
