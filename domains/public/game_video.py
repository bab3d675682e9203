"""Amazon Game and Video implicit feedback with CDRIB's cold-start split.

``game_video/{train,valid,test}.txt`` holds Game and ``video_game/...`` holds Video: tab-separated ``user item``. The
same number is the same person in both only below ``SHARED_USERS``; valid and test rows are of cold users, who have no
training row in that domain. The split is kept in the column ``split`` of the interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.public.reading import PreparedDomain, Staging, declare, find_required, finish, roles

SHARED_USERS = 2_179
FOLDERS = {"game": "game_video", "video": "video_game"}


def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = None,
    targets: Sequence[str] = ("video",),
    shared_users: int = SHARED_USERS,
) -> list[PreparedDomain]:
    """Write the domains ``amazon-game`` and ``amazon-video``; each row is a positive, and there is no time.

    Args:
        sources, targets: "game", "video"; by default video borrows from game.
        shared_users: user numbers below it are the same person in both domains.

    Raises:
        InvalidData: a file is missing or a line is not two numbers (file and line are named).
    """
    out = Path(out_dir)
    chosen = list(roles(FOLDERS, sources=sources, targets=targets))
    prepared = []
    with Staging(out) as staging:
        for part, role in chosen:
            splits = []
            for split in ("train", "valid", "test"):
                file = find_required(Path(path) / FOLDERS[part], f"{split}.txt")
                staging.scan_text(f"{split}_rows", file, {"user": "BIGINT", "item": "BIGINT"}, separator="\t")
                splits.append(f"SELECT *, '{split}' AS split FROM {split}_rows")
            interactions = out / f"amazon-{part}" / "interactions.parquet"
            rows = staging.write(
                f"""
                SELECT CASE WHEN user < {int(shared_users)} THEN '' ELSE '{part}-' END || text_of(user) AS user_id,
                       text_of(item) AS item_id, split
                FROM ({" UNION ALL ".join(splits)})
                """,
                interactions,
            )
            spec = declare(
                f"amazon-{part}",
                role,
                "ctr",
                {"user": "user_id", "item": "item_id"},
                sources=[f"amazon-{p}" for p, r in chosen if r == "source"],
                domain_features={"department": part},
            )
            prepared.append(finish(spec, interactions, None, None, rows, {}))
    return prepared
