"""KuaiRand-1K behaviour as long sequences (AutoCDSR's cut): 5,101 users, 800 steps each, in one ``sequences.npz``.

Arrays ``{training,evaluation,testing}_item`` (users, 800) int32, -1 for an unknown item, and ``..._tab`` int8, an
opaque code of which every item has exactly one: the codes serve as domains. There are no times: the step number stands
for seconds since the data set's first day, so only the order means anything. Steps of unknown items are left out and
counted; a user is named after its array and row, such as ``testing-17``.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from domains.errors import InvalidData
from domains.public.reading import Part, PreparedDomain, Role, Staging, find_required, loader, roles

FIRST_SECOND = 1_649_376_000  # 2022-04-08
PARTS = ("training", "evaluation", "testing")


@loader("kuairand-sequences")
def load(
    path: Path,
    out_dir: Path,
    *,
    sources: Sequence[str] | None = ("9",),
    targets: Sequence[str] = ("4",),
) -> list[PreparedDomain]:
    """Write the domains ``kuairand-code-9``, ``kuairand-code-4``, ...; each step is a positive.

    Args:
        sources, targets: codes as text; by default the largest is the source and the second largest the target.

    Raises:
        InvalidData: not such an archive, arrays of unequal shape, or an unknown code.
    """
    file = find_required(Path(path), "sequences.npz")
    user, item, tab, step = _steps(file)
    known = item >= 0
    names = " ".join(f"WHEN user < {end} THEN '{part}-' || (user - {start})" for part, start, end in _spans(file))
    with Staging(out_dir) as staging:

        def part(code: str, role: Role) -> Part:
            here = tab == int(code)
            kept = here & known
            staging.table("steps", pa.table({"user": user[kept], "item": item[kept], "step": step[kept]}))
            return Part(
                name=f"kuairand-code-{code}",
                role=role,
                interactions=f"SELECT CASE {names} END AS user_id, item::VARCHAR AS item_id, "
                f"{FIRST_SECOND} + step AS ts FROM steps",
                columns={"user": "user_id", "item": "item_id", "time": "ts", "time_unit": "s"},
                domain_features={"code": f"code-{code}"},
                left_out={"unknown item": int((here & ~known).sum())},
            )

        codes = [str(code) for code in np.unique(tab)]
        return staging.write_parts(part(*one) for one in roles(codes, sources=sources, targets=targets))


def _spans(file: Path) -> list[tuple[str, int, int]]:
    with np.load(file, allow_pickle=False) as arrays:
        ends = np.cumsum([len(arrays[f"{part}_item"]) for part in PARTS])
    return [
        (part, int(end - length), int(end))
        for part, end, length in zip(PARTS, ends, np.diff(ends, prepend=0), strict=True)
    ]


def _steps(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """User row over all three arrays, item, code and step of every step, users one after the other."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            item = np.concatenate([arrays[f"{part}_item"] for part in PARTS])
            tab = np.concatenate([arrays[f"{part}_tab"] for part in PARTS])
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as fault:
        raise InvalidData(f"{file}: not an archive of sequences: {fault}", file=str(file)) from None
    if item.shape != tab.shape or item.ndim != 2:
        raise InvalidData(f"{file}: items have shape {item.shape}, codes {tab.shape}", file=str(file))
    user, step = np.divmod(np.arange(item.size, dtype=np.int64), item.shape[1])
    return user, item.ravel(), tab.ravel(), step
