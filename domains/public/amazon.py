"""Amazon reviews of 2014 and 2018 in their original files, one domain per product category.

Read from a folder that holds any of (each gzipped or not)
    ``ratings_Books.csv``       2014, no header: ``user,item,rating,unix_seconds``
    ``Books.csv``               2018, no header: ``item,user,rating,unix_seconds``
    ``reviews_Books_5.json``    2014 5-core, a JSON object per line
    ``Books_5.json``            2018 5-core, a JSON object per line
    ``meta_Books.json``         2018: JSON per line; 2014: a Python literal per line. Category, brand and price.
From J. McAuley's pages at UC San Diego.
"""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from domains.errors import InvalidData
from domains.public.reading import (
    Part,
    PreparedDomain,
    Role,
    Staging,
    Task,
    fault_at,
    loader,
    open_text,
    rating_columns,
    roles,
    slug,
)

NAMES = (
    re.compile(r"reviews_(?P<category>.+?)(_5)?\.json(\.gz)?"),
    re.compile(r"ratings_(?P<category>.+?)\.csv(\.gz)?"),
    re.compile(r"(?P<category>[A-Z].*?)(_5)?\.(json|csv)(\.gz)?"),
)
RATINGS = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("rating", pa.float64()), ("ts", pa.int64())])
ITEMS = pa.schema(
    [("item_id", pa.string()), ("category", pa.string()), ("brand", pa.string()), ("price", pa.float64())]
)


@loader("amazon")
def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    task: Task = "rating",
) -> list[PreparedDomain]:
    """Write one domain per category: ``amazon-books``, ``amazon-movies-and-tv``, ...

    Args:
        sources, targets: categories as the files name them ("Movies_and_TV"). By default the category with the
            smallest file is the target and all others are sources.
        task: "rating", or "ctr" for which a rating above 3 is a click.

    Raises:
        InvalidData: no such files, an unknown category, or a malformed line (file and line are named).
    """
    folder = Path(path)
    files = _files(folder)
    if len(files) < 2:
        raise InvalidData(
            f"{folder}: needs the review files of at least two categories, found {', '.join(files) or 'none'}",
            file=str(folder),
        )
    if targets is None:
        targets = [min((c for c in files if c not in (sources or ())), key=lambda c: files[c].stat().st_size)]
    with Staging(out_dir) as staging:

        def part(category: str, role: Role) -> Part:
            _stage_ratings(staging, files[category])
            described = _metadata_file(folder, category)
            if described:
                rated = {item for (item,) in staging.execute("SELECT DISTINCT item_id FROM ratings")}
                staging.stage_rows("described", _metadata(described, rated), ITEMS)
            return Part(
                name=f"amazon-{slug(category)}",
                role=role,
                task=task,
                interactions="SELECT user_id, item_id, rating, ts FROM ratings",
                columns=rating_columns(task, timed=True),
                items="SELECT * FROM described" if described else None,
                item_features={"category": "category", "brand": "category", "price": "number"},
                domain_features={"department": category},
            )

        return staging.write_parts(part(*one) for one in roles(files, sources=sources, targets=targets))


def _files(folder: Path) -> dict[str, Path]:
    """Review file by category; 5-core before full, JSON before CSV where there are several."""
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir() if folder.is_dir() else [], key=lambda f: ("_5.json" not in f.name, f.name)):
        if file.name.startswith("meta_"):
            continue
        match = next((m for pattern in NAMES if (m := pattern.fullmatch(file.name))), None)
        if match:
            found.setdefault(match["category"], file)
    return found


def _metadata_file(folder: Path, category: str) -> Path | None:
    return next(
        (f for f in (folder / f"meta_{category}.json", folder / f"meta_{category}.json.gz") if f.is_file()), None
    )


def _stage_ratings(staging: Staging, file: Path) -> None:
    """Make the view ``ratings`` of a review file: user_id, item_id, rating, ts."""
    if ".csv" not in file.name:
        staging.stage_rows("ratings", _reviews(file), RATINGS)
        return
    with open_text(file) as lines:
        first = lines.readline().strip().split(",")
    if len(first) != 4:
        raise fault_at(file, 1, f"expected four columns, found {len(first)}")
    # 2014 writes the user first, 2018 the item. A product id has 10 characters, a reviewer id has 12 or more.
    user_first = len(first[0]) > len(first[1]) if len(first[0]) != len(first[1]) else file.name.startswith("ratings_")
    names = ("user_id", "item_id") if user_first else ("item_id", "user_id")
    staging.scan_text("ratings", file, dict.fromkeys(names, "VARCHAR") | {"rating": "DOUBLE", "ts": "BIGINT"})


def _reviews(file: Path) -> Iterator[tuple]:
    with open_text(file) as lines:
        for number, line in _lines(lines, file):
            try:
                review = orjson.loads(line)
            except orjson.JSONDecodeError as fault:
                raise fault_at(file, number, f"not JSON: {fault}") from None
            try:
                yield (
                    str(review["reviewerID"]),
                    str(review["asin"]),
                    float(review["overall"]),
                    int(review["unixReviewTime"]),
                )
            except KeyError as fault:
                raise fault_at(file, number, f"the review lacks {fault}") from None
            except (TypeError, ValueError) as fault:
                raise fault_at(file, number, f"the review has a value of the wrong type: {fault}") from None


def _metadata(file: Path, rated: set[str]) -> Iterator[tuple]:
    """Category, brand and price of the rated items; parses only their lines, for 2014's literals parse slowly."""
    asin = re.compile(r"""["']asin["']\s*:\s*["']([^"']+)["']""")
    seen = set()
    with open_text(file) as lines:
        for number, line in _lines(lines, file):
            found = asin.search(line)
            if not found:
                raise fault_at(file, number, "the item lacks 'asin'")
            item = found.group(1)
            if item not in rated or item in seen:
                continue
            seen.add(item)
            try:
                described = orjson.loads(line)
            except orjson.JSONDecodeError:
                try:
                    described = ast.literal_eval(line)
                except (ValueError, SyntaxError, MemoryError, RecursionError):
                    raise fault_at(file, number, "neither JSON nor a Python literal") from None
            if not isinstance(described, dict):
                raise fault_at(file, number, "the item is not an object")
            yield item, _category(described), _text(described.get("brand")), _price(described.get("price"))


def _lines(lines: Any, file: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line
    except (EOFError, OSError) as fault:
        raise fault_at(file, number + 1, f"the file is cut off or not gzip: {fault}") from None


def _category(described: dict) -> str | None:
    """The first level below the root: 2018 has one path, 2014 a list of paths."""
    path = described.get("category") or (described.get("categories") or [[]])[0]
    if not isinstance(path, list) or not path:
        return _text(path)
    return _text(path[1] if len(path) > 1 else path[0])


def _text(value: Any) -> str | None:
    text = html.unescape(value).strip() if isinstance(value, str) else ""
    return text[:200] or None


def _price(value: Any) -> float | None:
    """A number, or text such as "$1,299.00"; price ranges and stray markup count as unknown."""
    if isinstance(value, int | float):
        return float(value)
    match = re.fullmatch(r"\$?([\d,]+(\.\d+)?)", value.strip()) if isinstance(value, str) else None
    return float(match.group(1).replace(",", "")) if match else None
