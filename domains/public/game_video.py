"""Amazon Game and Video implicit feedback with CDRIB's cold-start split.

``game_video/{train,valid,test}.txt`` holds Game and ``video_game/...`` holds Video: tab-separated ``user item``. The
same number is the same person in both only below ``SHARED_USERS``; valid and test rows are of cold users, who have no
training row in that domain. The split is kept in the column ``split`` of the interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from domains.public.reading import Part, PreparedDomain, Role, Staging, find_required, loader, roles

SHARED_USERS = 2_179
FOLDERS = {"game": "game_video", "video": "video_game"}
SPLITS = ("train", "valid", "test")


@loader("game-video")
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
        sources, targets: "game", "video"; by default game is the source and video the target.
        shared_users: user numbers below it are the same person in both domains.

    Raises:
        InvalidData: a file is missing or a line is not two numbers (file and line are named).
    """
    with Staging(out_dir) as staging:

        def part(department: str, role: Role) -> Part:
            for split in SPLITS:
                file = find_required(Path(path) / FOLDERS[department], f"{split}.txt")
                staging.scan_text(f"{split}_rows", file, {"user": "BIGINT", "item": "BIGINT"}, separator="\t")
            rows = " UNION ALL ".join(f"SELECT *, '{split}' AS split FROM {split}_rows" for split in SPLITS)
            prefix = f"CASE WHEN user < {int(shared_users)} THEN '' ELSE '{department}-' END"
            return Part(
                name=f"amazon-{department}",
                role=role,
                interactions=f"SELECT {prefix} || text_of(user) AS user_id, text_of(item) AS item_id, split "
                f"FROM ({rows})",
                columns={"user": "user_id", "item": "item_id"},
                domain_features={"department": department},
            )

        return staging.write_parts(part(*one) for one in roles(FOLDERS, sources=sources, targets=targets))
