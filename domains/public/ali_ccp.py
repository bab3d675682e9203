r"""Ali-CCP (Alibaba click and conversion prediction, Tianchi data set 408) in its original files, scenes as domains.

``sample_skeleton_{train,test}.csv``: ``sample_id,click,buy,common_feature_index,feature_num,features``, 84 million
impressions. ``common_features_{train,test}.csv``: ``common_feature_index,feature_num,features``, what many impressions
have in common: the user. Neither has a header. Features are ``field\x02feature\x03value``, with ``\x01`` between them.
Field 101 is the user, 121 to 129 their profile; 205 the item, 206 its category, 207 its shop, 216 its brand; 301 the
scene in which it was shown.

The files know no times: train comes before test as a whole. What users did before is told by category, shop and brand
alone (fields 109_14 to 150_14), which is no event of any item, and is not read. For want of times an item shown to a
user again with the same outcome is one row to ingest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from domains.errors import InvalidData
from domains.ingestion.source_files import literal
from domains.public.reading import (
    Part,
    PreparedDomain,
    Staging,
    find,
    find_required,
    loader,
    roles_by_size,
    sampled,
    slug,
)

PROFILE = {
    "121": "profile_1",
    "122": "profile_2",
    "124": "gender",
    "125": "age",
    "126": "consumption_1",
    "127": "consumption_2",
    "128": "working",
    "129": "geography",
}
ITEM = {"206": "category", "207": "shop", "216": "brand"}
SKELETON = {
    "sample_id": "BIGINT",
    "click": "INTEGER",
    "buy": "INTEGER",
    "common": "VARCHAR",
    "feature_num": "INTEGER",
    "features": "VARCHAR",
}
COMMON = {"common": "VARCHAR", "feature_num": "INTEGER", "features": "VARCHAR"}


@loader("ali-ccp")
def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    user_share: float = 1.0,
    minimum_rows: int = 1_000,
) -> list[PreparedDomain]:
    """Write one click domain per scene: ``ali-ccp-`` and the scene's code of field 301.

    Args:
        sources, targets: codes of scenes. By default the scene with the most rows is the source, and each other scene
            with at least ``minimum_rows`` a target.
        user_share: share of the users to keep, chosen by a hash of the id, for a smaller run.

    Raises:
        InvalidData: a file is missing, a scene is unknown, or a line is malformed (file and line are named).
    """
    folder = Path(path)
    files = [
        (skeleton, find_required(folder, f"common_features_{part}.csv"))
        for part in ("train", "test")
        if (skeleton := find(folder, f"sample_skeleton_{part}.csv", required=False))
    ]
    if not files:
        raise InvalidData(f"{folder}: holds no sample_skeleton_train.csv", file=str(folder))
    with Staging(out_dir) as staging:
        left_out: Counter[str] = Counter()
        for number, (skeleton, common) in enumerate(files):
            left_out += _stage(staging, number, skeleton, common, user_share=user_share)
        for view in ("shown", "people"):
            every = " UNION ALL ".join(f"FROM {view}_{number}" for number in range(len(files)))
            staging.execute(f"CREATE VIEW {view} AS {every}")
        users = staging.out_dir / "users.parquet"
        staging.write(f"SELECT user_id, {_first_known(PROFILE)} FROM people GROUP BY user_id", users)
        sizes = staging.execute("SELECT scene, count(*) FROM shown GROUP BY scene ORDER BY 2 DESC, scene")
        chosen = roles_by_size(sizes, sources=sources, targets=targets, minimum_rows=minimum_rows)
        return staging.write_parts(
            Part(
                name=f"ali-ccp-{slug(scene)}",
                role=role,
                interactions="SELECT user_id, item_id, click, CASE WHEN buy = 1 THEN 'buy' WHEN click = 1 THEN 'click' "
                f"ELSE 'view' END AS event_type FROM shown WHERE scene = {literal(scene)}",
                columns={"user": "user_id", "item": "item_id", "label": "click", "action": "event_type"},
                items=f"SELECT item_id, {_first_known(ITEM)} FROM shown WHERE scene = {literal(scene)} "
                "GROUP BY item_id",
                item_features=dict.fromkeys(ITEM.values(), "category"),
                users=users,
                user_features=dict.fromkeys(PROFILE.values(), "category"),
                domain_features={"scene": scene},
                # Rows of no scene are counted once, with the first domain.
                left_out={} if position else left_out,
            )
            for position, (scene, role) in enumerate(chosen)
        )


def _stage(staging: Staging, number: int, skeleton: Path, common: Path, *, user_share: float) -> Counter[str]:
    """Make the tables ``shown_N``, of impressions, and ``people_N``, of users, of one part of the files.

    Returns how many impressions were left out, by reason.
    """
    staging.scan_text("common", common, COMMON)
    staging.execute(
        f"CREATE TABLE people_{number} AS SELECT * FROM (SELECT common, {_field('101')} AS user_id, "
        f"{', '.join(f'{_field(code)} AS {name}' for code, name in PROFILE.items())} FROM common) "
        f"WHERE user_id IS NULL OR {sampled('user_id', user_share)}"
    )
    staging.scan_text("skeleton", skeleton, SKELETON)
    staging.execute(
        f"CREATE TABLE placed_{number} AS SELECT click, buy, common, {_field('205')} AS item_id, {_field('301')} AS "
        f"scene, {', '.join(f'{_field(code)} AS {name}' for code, name in ITEM.items())} FROM skeleton"
    )
    whole = "item_id IS NOT NULL AND scene IS NOT NULL"
    usable = f"{whole} AND NOT (click = 0 AND buy = 1)"
    counts = {
        "no item or no scene": f"WHERE NOT ({whole})",
        "bought without a click": f"WHERE {whole} AND click = 0 AND buy = 1",
    }
    if user_share == 1.0:
        known = f"(FROM people_{number} WHERE user_id IS NOT NULL)"
        counts["no user"] = f"ANTI JOIN {known} USING (common) WHERE {usable}"
    left_out: Counter[str] = Counter()
    for reason, where in counts.items():
        ((left_out[reason],),) = staging.execute(f"SELECT count(*) FROM placed_{number} {where}")
    staging.execute(
        f"CREATE TABLE shown_{number} AS SELECT placed.*, user_id FROM placed_{number} AS placed "
        f"JOIN people_{number} USING (common) WHERE {usable} AND user_id IS NOT NULL"
    )
    staging.execute(f"DROP TABLE placed_{number}")
    return left_out


def _field(code: str) -> str:
    """SQL for the feature of a field, NULL where the row has none; the first where it has several."""
    return rf"nullif(regexp_extract(features, '(?:^|\x01){code}\x02([^\x01\x03]+)', 1), '')"


def _first_known(columns: dict[str, str]) -> str:
    """SQL for one value of each column among rows of one id, the least that is known, so that runs agree."""
    return ", ".join(f"min({name}) AS {name}" for name in columns.values())
