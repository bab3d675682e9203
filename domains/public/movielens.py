r"""MovieLens-1M in its original form, with genres as domains.

``ratings.dat`` (``UserID::MovieID::Rating::Timestamp``), ``users.dat`` (``UserID::Gender::Age::Occupation::Zip-code``)
and ``movies.dat`` (``MovieID::Title::Genres``, genres joined by ``|``), all latin-1. From GroupLens, ``ml-1m.zip``.
A movie belongs to the domain of its first genre (the file lists them in alphabetical order).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.public.reading import (
    PreparedDomain,
    Staging,
    Task,
    declare,
    find_required,
    finish,
    literal,
    rating_columns,
    roles,
    slug,
)

AGES = {1: "under-18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56-plus"}


def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    task: Task = "rating",
    minimum_ratings: int = 1_000,
) -> list[PreparedDomain]:
    """Write one domain per genre: ``movielens-drama``, ``movielens-comedy``, ...

    Args:
        sources, targets: genres as the file writes them ("Drama"). By default the three genres with the most ratings
            are sources, and each other genre with at least ``minimum_ratings`` is a target.
        task: "rating", or "ctr" for which a rating above 3 is a click.

    Raises:
        InvalidData: a file is missing, a genre is unknown, or a line is malformed (file and line are named).
    """
    folder, out = Path(path), Path(out_dir)
    with Staging(out) as staging:
        for view, columns in (
            ("ratings", {"user_id": "BIGINT", "item_id": "BIGINT", "rating": "DOUBLE", "ts": "BIGINT"}),
            ("users", dict.fromkeys(("user_id", "gender", "age", "occupation", "zip"), "VARCHAR") | {"age": "INTEGER"}),
            ("movies", {"item_id": "BIGINT", "title": "VARCHAR", "genres": "VARCHAR"}),
        ):
            file = find_required(folder, f"{view}.dat", f"ml-1m/{view}.dat")
            staging.scan_text(view, file, columns, separator="::", encoding="latin-1")
        staging.execute(
            """
            CREATE TABLE items AS
            SELECT item_id, title, genres, split_part(genres, '|', 1) AS genre,
                   try_cast(regexp_extract(title, '\\((\\d{4})\\)\\s*$', 1) AS INTEGER) AS release_year
            FROM movies
            """
        )
        staging.execute("CREATE TABLE rated AS SELECT ratings.*, genre FROM ratings LEFT JOIN items USING (item_id)")
        (unplaced,) = staging.execute("SELECT count(*) FROM rated WHERE genre IS NULL")[0]
        by_size = staging.execute(
            "SELECT genre, count(*) FROM rated WHERE genre IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        genres = [genre for genre, _ in by_size]
        lending = list(sources) if sources is not None else [g for g in genres[:3] if g not in (targets or ())]
        borrowing = targets
        if borrowing is None:
            borrowing = [genre for genre, count in by_size if genre not in lending and count >= minimum_ratings]
        chosen = list(roles(genres, sources=lending, targets=borrowing))
        users = out / "users.parquet"
        ages = " ".join(f"WHEN {code} THEN '{band}'" for code, band in AGES.items())
        staging.write(
            f"SELECT text_of(user_id) AS user_id, gender, CASE age {ages} END AS age_band, occupation FROM users", users
        )
        prepared = []
        for genre, role in chosen:
            name = f"movielens-{slug(genre)}"
            interactions, items = out / name / "interactions.parquet", out / name / "items.parquet"
            of_genre = f"genre = {literal(genre)}"
            rows = staging.write(
                "SELECT text_of(user_id) AS user_id, text_of(item_id) AS item_id, rating, ts FROM rated "
                f"WHERE {of_genre}",
                interactions,
            )
            staging.write(
                f"SELECT text_of(item_id) AS item_id, title, genres, release_year FROM items WHERE {of_genre}", items
            )
            spec = declare(
                name,
                role,
                task,
                rating_columns(task, timed=True),
                sources=[f"movielens-{slug(g)}" for g in lending],
                items={"genres": "category", "release_year": "number"},
                users={"gender": "category", "age_band": "category", "occupation": "category"},
                domain_features={"genre": genre},
            )
            left_out = {"movie not in movies.dat": unplaced} if unplaced else {}
            prepared.append(finish(spec, interactions, items, users, rows, left_out))
    return prepared
