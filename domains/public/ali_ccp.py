r"""Ali-CCP (Alibaba click and conversion prediction, Tianchi data set 408) in its original files, scenes as domains.

``sample_skeleton_{train,test}.csv``: ``sample_id,click,buy,common_feature_index,feature_num,features``, 84 million
impressions. ``common_features_{train,test}.csv``: ``common_feature_index,feature_num,features``, what many impressions
have in common: the user. Neither has a header. Features are ``field\x02feature\x03value``, with ``\x01`` between them.
Field 101 is the user, 121 to 129 his profile; 205 the item, 206 its category, 207 its shop, 216 its brand; 301 the
scene in which it was shown.

The files know no times: train comes before test as a whole. What users did before is told by category, shop and brand
alone (fields 109_14 to 150_14), which is no event of any item, and is not read. For want of times an item shown to a
user again with the same outcome is one row to ingest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.errors import InvalidData
from domains.public.reading import PreparedDomain, Staging, declare, find, find_required, finish, literal, roles, slug

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
        sources, targets: codes of scenes. By default the scene with the most rows lends, and each other scene with at
            least ``minimum_rows`` borrows.
        user_share: share of the users to keep, chosen by a hash of the id, for a smaller run.

    Raises:
        InvalidData: a file is missing, a scene is unknown, or a line is malformed (file and line are named).
    """
    folder, out = Path(path), Path(out_dir)
    parts = [
        (skeleton, find_required(folder, f"common_features_{part}.csv"))
        for part in ("train", "test")
        if (skeleton := find(folder, f"sample_skeleton_{part}.csv", required=False))
    ]
    if not parts:
        raise InvalidData(f"{folder}: holds no sample_skeleton_train.csv", file=str(folder))
    with Staging(out) as staging:
        left_out: dict[str, int] = {}
        for number, (skeleton, common) in enumerate(parts):
            _stage(staging, number, skeleton, common, user_share, left_out)
        numbers = range(len(parts))
        staging.execute(f"CREATE VIEW shown AS {' UNION ALL '.join(f'FROM shown_{number}' for number in numbers)}")
        users = out / "users.parquet"
        staging.write(
            f"SELECT user_id, {_first_known(PROFILE)} FROM ({' UNION ALL '.join(f'FROM people_{n}' for n in numbers)}) "
            "GROUP BY user_id",
            users,
        )
        by_size = staging.execute("SELECT scene, count(*) FROM shown GROUP BY scene ORDER BY 2 DESC, scene")
        scenes = [scene for scene, _ in by_size]
        lending = list(sources) if sources is not None else [one for one in scenes[:1] if one not in (targets or ())]
        borrowing = targets
        if borrowing is None:
            borrowing = [scene for scene, count in by_size if scene not in lending and count >= minimum_rows]
        prepared = []
        for scene, role in roles(scenes, sources=lending, targets=borrowing):
            name = f"ali-ccp-{slug(scene)}"
            interactions, items = out / name / "interactions.parquet", out / name / "items.parquet"
            of_scene = f"scene = {literal(scene)}"
            rows = staging.write(
                f"SELECT user_id, item_id, click, CASE WHEN buy = 1 THEN 'buy' WHEN click = 1 THEN 'click' ELSE 'view' "
                f"END AS event_type FROM shown WHERE {of_scene}",
                interactions,
            )
            staging.write(
                f"SELECT item_id, {_first_known(ITEM)} FROM shown WHERE {of_scene} GROUP BY item_id",
                items,
            )
            spec = declare(
                name,
                role,
                "ctr",
                {"user": "user_id", "item": "item_id", "label": "click", "action": "event_type"},
                sources=[f"ali-ccp-{slug(one)}" for one in lending],
                items=dict.fromkeys(ITEM.values(), "category"),
                users=dict.fromkeys(PROFILE.values(), "category"),
                domain_features={"scene": scene},
            )
            prepared.append(finish(spec, interactions, items, users, rows, left_out))
            left_out = {}  # rows without a place of their own are counted once, with the first domain
    return prepared


def _stage(
    staging: Staging, number: int, skeleton: Path, common: Path, user_share: float, left_out: dict[str, int]
) -> None:
    """Tables ``people_N``, of users, and ``shown_N``, of impressions, of one part of the files."""
    staging.scan_text("common", common, COMMON)
    staging.execute(
        f"CREATE TABLE people_{number} AS SELECT * FROM (SELECT common, {_field('101')} AS user_id, "
        f"{', '.join(f'{_field(code)} AS {name}' for code, name in PROFILE.items())} FROM common) "
        f"WHERE user_id IS NULL OR hash(user_id) % 10000 < {round(user_share * 10_000)}"
    )
    staging.scan_text("skeleton", skeleton, SKELETON)
    staging.execute(
        f"CREATE TABLE placed_{number} AS SELECT click, buy, common, {_field('205')} AS item_id, {_field('301')} AS "
        f"scene, {', '.join(f'{_field(code)} AS {name}' for code, name in ITEM.items())} FROM skeleton"
    )
    whole = "item_id IS NOT NULL AND scene IS NOT NULL"
    for reason, where in (
        ("no item or no scene", f"NOT ({whole})"),
        ("bought without a click", f"{whole} AND click = 0 AND buy = 1"),
    ):
        ((count,),) = staging.execute(f"SELECT count(*) FROM placed_{number} WHERE {where}")
        if count:
            left_out[reason] = left_out.get(reason, 0) + count
    if user_share == 1.0:
        ((count,),) = staging.execute(
            f"SELECT count(*) FROM placed_{number} ANTI JOIN (FROM people_{number} WHERE user_id IS NOT NULL) "
            f"USING (common) WHERE {whole} AND NOT (click = 0 AND buy = 1)"
        )
        if count:
            left_out["no user"] = left_out.get("no user", 0) + count
    staging.execute(
        f"CREATE TABLE shown_{number} AS SELECT placed.*, user_id FROM placed_{number} AS placed "
        f"JOIN people_{number} USING (common) WHERE {whole} AND user_id IS NOT NULL AND NOT (click = 0 AND buy = 1)"
    )
    staging.execute(f"DROP TABLE placed_{number}")


def _field(code: str) -> str:
    """SQL for the feature of a field, NULL where the row has none; the first where it has several."""
    return rf"nullif(regexp_extract(features, '(?:^|\x01){code}\x02([^\x01\x03]+)', 1), '')"


def _first_known(columns: dict[str, str]) -> str:
    """SQL for one value of each column among rows of one id, the least that is known, so that runs agree."""
    return ", ".join(f"min({name}) AS {name}" for name in columns.values())
