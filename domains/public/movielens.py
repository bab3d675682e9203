r"""MovieLens-1M in its original form, with genres as domains.

``ratings.dat`` (``UserID::MovieID::Rating::Timestamp``), ``users.dat`` (``UserID::Gender::Age::Occupation::Zip-code``)
and ``movies.dat`` (``MovieID::Title::Genres``, genres joined by ``|``), all latin-1. From GroupLens, ``ml-1m.zip``.
A movie belongs to the domain of its first genre (the file lists them in alphabetical order).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.ingestion.source_files import literal
from domains.public.reading import (
    Part,
    PreparedDomain,
    Staging,
    Task,
    find_required,
    loader,
    rating_columns,
    roles_by_size,
    slug,
)

AGES = {1: "under-18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56-plus"}


@loader("movielens")
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
    with Staging(out_dir) as staging:
        _stage(staging, Path(path))
        ((unplaced,),) = staging.execute("SELECT count(*) FROM rated WHERE genre IS NULL")
        sizes = staging.execute(
            "SELECT genre, count(*) FROM rated WHERE genre IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        chosen = roles_by_size(sizes, sources=sources, targets=targets, minimum_rows=minimum_ratings, largest=3)
        users = staging.out_dir / "users.parquet"
        ages = " ".join(f"WHEN {code} THEN '{band}'" for code, band in AGES.items())
        staging.write(
            f"SELECT text_of(user_id) AS user_id, gender, CASE age {ages} END AS age_band, occupation FROM users", users
        )
        return staging.write_parts(
            Part(
                name=f"movielens-{slug(genre)}",
                role=role,
                task=task,
                interactions="SELECT text_of(user_id) AS user_id, text_of(item_id) AS item_id, rating, ts FROM rated "
                f"WHERE genre = {literal(genre)}",
                columns=rating_columns(task, timed=True),
                items="SELECT text_of(item_id) AS item_id, title, genres, release_year FROM items "
                f"WHERE genre = {literal(genre)}",
                item_features={"genres": "category", "release_year": "number"},
                users=users,
                user_features={"gender": "category", "age_band": "category", "occupation": "category"},
                domain_features={"genre": genre},
                left_out={"movie not in movies.dat": unplaced},
            )
            for genre, role in chosen
        )


def _stage(staging: Staging, folder: Path) -> None:
    """Make ``users``, ``items`` with genre and year, and ``rated``: ratings with the genre of their movie."""
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
