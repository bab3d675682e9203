"""Ekstra Bladet news (EB-NeRD): impressions with clicks, and what each user had read before.

``behaviors.parquet`` has a row per impression with the lists ``article_ids_inview`` and ``article_ids_clicked``;
``history.parquet`` a row per user with lists of articles read and when. An impression is exploded to one row per shown
article, clicked or not. The full set holds both files in ``train`` and in ``validation``: give one of these folders.
"""

from __future__ import annotations

from pathlib import Path

from domains.public.reading import PreparedDomain, Staging, declare, find, find_required, finish, literal

PROFILE = ("gender", "age", "postcode", "is_subscriber")
ARTICLE = ("category_str", "article_type", "premium")


def load(path: Path, out_dir: Path) -> list[PreparedDomain]:
    """Write ``ebnerd-reading`` (source: articles read, each row a positive) and ``ebnerd-front`` (target: exposures).

    With ``articles.parquet`` beside the folder's files or one level up, articles get their category and type.

    Raises:
        InvalidData: a file is missing or is not such a Parquet file.
    """
    folder, out = Path(path), Path(out_dir)
    with Staging(out) as staging:
        staging.scan_parquet("behaviors", find_required(folder, "behaviors.parquet"))
        staging.scan_parquet("history", find_required(folder, "history.parquet"))
        articles = find(folder, "articles.parquet", required=False) or find(
            folder.parent, "articles.parquet", required=False
        )
        if articles:
            staging.scan_parquet("articles", articles)
        users, read, shown = out / "users.parquet", out / "ebnerd-reading", out / "ebnerd-front"
        profile = ", ".join(f"any_value({column})::VARCHAR AS {column}" for column in PROFILE)
        staging.write(f"SELECT user_id::VARCHAR AS user_id, {profile} FROM behaviors GROUP BY 1 ORDER BY 1", users)
        read_rows = staging.write(
            """
            SELECT user_id::VARCHAR AS user_id, unnest(article_id_fixed)::VARCHAR AS item_id,
                   epoch_us(unnest(impression_time_fixed)) AS ts, unnest(read_time_fixed) AS read_time
            FROM history
            """,
            read / "interactions.parquet",
        )
        shown_rows = staging.write(
            """
            SELECT user_id::VARCHAR AS user_id, article::VARCHAR AS item_id, epoch_us(impression_time) AS ts,
                   list_contains(article_ids_clicked, article)::TINYINT AS click,
                   device_type::VARCHAR AS device_type, impression_id
            FROM (SELECT *, unnest(article_ids_inview) AS article FROM behaviors)
            """,
            shown / "interactions.parquet",
        )
        prepared = []
        timed = {"user": "user_id", "item": "item_id", "time": "ts", "time_unit": "us"}
        for directory, role, columns, rows in (
            (read, "source", timed, read_rows),
            (shown, "target", timed | {"label": "click", "context": {"device_type": "category"}}, shown_rows),
        ):
            items = directory / "items.parquet" if articles else None
            if items:
                staging.write(
                    f"""
                    SELECT article_id::VARCHAR AS item_id, {", ".join(f"{c}::VARCHAR AS {c}" for c in ARTICLE)}
                    FROM articles WHERE article_id::VARCHAR IN
                        (SELECT item_id FROM read_parquet({literal(str(directory / "interactions.parquet"))}))
                    """,
                    items,
                )
            spec = declare(
                directory.name,
                role,
                "ctr",
                columns,
                sources=["ebnerd-reading"],
                items=dict.fromkeys(ARTICLE, "category") if items else None,
                users=dict.fromkeys(PROFILE, "category"),
                domain_features={"surface": "article" if role == "source" else "front-page"},
            )
            prepared.append(finish(spec, directory / "interactions.parquet", items, users, rows, {}))
    return prepared
