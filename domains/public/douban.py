"""Douban ratings as published with GA-DTCDR: one file per domain, tab-separated ``user item rating``, no time.

User ids are shared by the files, item ids are not. The full set is in the Data folder of the GA-DTCDR repository
(``douban_book/ratings.dat``, ``douban_music/ratings.dat``, ``douban_movie/ratings.dat``); a flat folder of
``book_ratings.dat``, ``music_ratings.dat``, ... is read as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from domains.errors import InvalidData
from domains.public.reading import Part, PreparedDomain, Role, Staging, Task, loader, rating_columns, roles


@loader("douban")
def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] = ("music",),
    task: Task = "rating",
    unfiltered: bool = False,
) -> list[PreparedDomain]:
    """Write the domains ``douban-book``, ``douban-music``, ... found in a folder.

    Args:
        sources, targets: "book", "music", "movie"; by default music is the target and all others are sources.
        task: "rating", or "ctr" for which a rating above 3 is a click.
        unfiltered: take ``<domain>_ratings_unfiltered.dat`` where there is one.

    Raises:
        InvalidData: no such files, an unknown domain, or a line that is not three numbers (file and line are named).
    """
    files = _files(Path(path), unfiltered=unfiltered)
    if not files:
        raise InvalidData(f"{path}: holds no <domain>_ratings.dat or douban_<domain>/ratings.dat", file=str(path))
    with Staging(out_dir) as staging:

        def part(medium: str, role: Role) -> Part:
            columns = {"user_id": "BIGINT", "item_id": "BIGINT", "rating": "DOUBLE"}
            staging.scan_text("ratings", files[medium], columns, separator="\t")
            return Part(
                name=f"douban-{medium}",
                role=role,
                task=task,
                interactions="SELECT text_of(user_id) AS user_id, text_of(item_id) AS item_id, rating FROM ratings",
                columns=rating_columns(task, timed=False),
                domain_features={"medium": medium},
            )

        return staging.write_parts(part(*one) for one in roles(files, sources=sources, targets=targets))


def _files(path: Path, *, unfiltered: bool) -> dict[str, Path]:
    found = {}
    for file in sorted([*path.glob("*_ratings.dat"), *path.glob("douban_*/ratings.dat")]):
        part = re.sub(
            r"^douban_", "", file.parent.name if file.name == "ratings.dat" else file.name.split("_ratings")[0]
        )
        whole = file.with_name(file.name.replace("ratings.dat", "ratings_unfiltered.dat"))
        found[part] = whole if unfiltered and whole.is_file() else file
    return found
