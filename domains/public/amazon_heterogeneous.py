"""Amazon ratings of the HIN collection: ratings with time, each item's category codes and brand.

``user_item.dat`` is tab-separated ``user item rating unix_seconds``; ``item_category.dat`` is ``item,code`` with 0 for
the root, and an item belongs to the domain of its first code that is not 0; ``item_brand.dat`` is ``item,brand``.
The files name no category: codes 1 and 2 are read as movies and TV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.public.reading import (
    Part,
    PreparedDomain,
    Staging,
    Task,
    find,
    find_required,
    loader,
    rating_columns,
    roles,
)


@loader("amazon-heterogeneous")
def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = ("1",),
    targets: Sequence[str] = ("2",),
    task: Task = "rating",
) -> list[PreparedDomain]:
    """Write the domains ``amazon-category-1``, ``amazon-category-2``, ... named by code.

    Args:
        sources, targets: category codes; by default 1 is the source and 2 the target, and the few ratings of other
            codes stay out.
        task: "rating", or "ctr" for which a rating above 3 is a click.

    Raises:
        InvalidData: a file is missing, a code is unknown, or a line is malformed (file and line are named).
    """
    folder = Path(path)
    with Staging(out_dir) as staging:
        ratings_columns = {"user_id": "BIGINT", "item_id": "BIGINT", "rating": "DOUBLE", "ts": "BIGINT"}
        staging.scan_text("ratings", find_required(folder, "user_item.dat"), ratings_columns, separator="\t")
        staging.scan_text("codes", find_required(folder, "item_category.dat"), {"item_id": "BIGINT", "code": "BIGINT"})
        brands = find(folder, "item_brand.dat", required=False)
        if brands:
            staging.scan_text("brands", brands, {"item_id": "BIGINT", "brand": "VARCHAR"})
        else:
            staging.execute("CREATE TABLE brands (item_id BIGINT, brand VARCHAR)")
        staging.execute(
            # The file's own order says which code is an item's first.
            """
            CREATE TABLE items AS
            WITH numbered AS (SELECT *, row_number() OVER () AS place FROM codes)
            SELECT item_id, arg_min(code, place) AS code, any_value(brand) AS brand
            FROM numbered LEFT JOIN brands USING (item_id) WHERE code <> 0 GROUP BY item_id
            """
        )
        codes = [str(code) for (code,) in staging.execute("SELECT DISTINCT code FROM items ORDER BY code")]
        return staging.write_parts(
            Part(
                name=f"amazon-category-{code}",
                role=role,
                task=task,
                interactions="SELECT text_of(user_id) AS user_id, text_of(item_id) AS item_id, rating, ts FROM ratings "
                f"WHERE item_id IN (SELECT item_id FROM items WHERE code = {int(code)})",
                columns=rating_columns(task, timed=True),
                items="SELECT text_of(item_id) AS item_id, brand FROM items "
                f"WHERE code = {int(code)} ORDER BY items.item_id",
                item_features={"brand": "category"},
                domain_features={"department": f"category-{code}"},
            )
            for code, role in roles(codes, sources=sources, targets=targets)
        )
