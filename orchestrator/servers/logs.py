"""The logs of the servers: appended to, and bounded in size and number.

A server writes to a file that it was given open, so a full log cannot be renamed away: the server would go on writing
into the old one. Its content is copied aside and the file is cut to nothing; what is written next lands at its start,
as every log is opened for appending. A line that falls between the end of the copy and the cut is lost.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

_HEADING = "=== "


def open_log(log: Path, name: str) -> IO[bytes] | None:
    """A log open for appending, with a line that says when and what started; None where the disk takes no file."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        sink = log.open("ab", buffering=0)
    except OSError:
        return None
    with contextlib.suppress(OSError):  # a full disk: what the server writes is lost, the server is not
        sink.write(f"{_HEADING}{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC: {name} starts\n".encode())
    return sink


def tail(log: str | Path, lines: int = 1) -> str:
    """The last lines of a log since what it is of was last started."""
    try:
        text = Path(log).read_text(errors="replace")
    except OSError as fault:
        return f"its log cannot be read: {fault.strerror}"
    _, heading, since = f"\n{text}".rpartition(f"\n{_HEADING}")
    if heading:
        text = since.partition("\n")[2]
    written = [line.strip() for line in text.splitlines() if line.strip()]
    return " / ".join(written[-lines:]) or "its log is empty"


def rotate(log: Path, *, most_bytes: int, kept: int) -> bool:
    """Move what a log holds aside once it is over ``most_bytes``; ``LOG.1`` is the newest of ``kept`` older ones.

    On a full disk the oldest go first, and where even the copy has no room, the content is dropped: a log never takes
    the room that answers need.
    """
    try:
        if log.stat().st_size <= most_bytes:
            return False
    except OSError:
        return False
    older = [log.with_name(f"{log.name}.{number}") for number in range(1, kept + 1)]
    with contextlib.suppress(OSError):
        if older:
            older[-1].unlink(missing_ok=True)
    for newer, place in zip(reversed(older[:-1]), reversed(older[1:]), strict=True):
        with contextlib.suppress(OSError):
            newer.replace(place)
    with log.open("r+b") as held:
        if older:
            try:
                with older[0].open("wb") as aside:
                    shutil.copyfileobj(held, aside)  # to its end, lines written meanwhile included
            except OSError:
                older[0].unlink(missing_ok=True)
        os.ftruncate(held.fileno(), 0)
    return True
