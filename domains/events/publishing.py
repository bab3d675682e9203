"""How anything on disk becomes visible: write the immutable thing, then replace one small file that points at it.

A process killed at any moment leaves the old pointer in place, and nothing points at what it half wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def flush_folder(folder: Path) -> None:
    """Bring a folder's own entries (new and renamed files) to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_tree(folder: Path) -> None:
    """Bring every file and folder under ``folder`` to the disk, so that a later pointer never outlives its target."""
    for parent, _, files in os.walk(folder):
        for name in files:
            with open(Path(parent) / name, "rb") as stream:
                os.fsync(stream.fileno())
        flush_folder(Path(parent))


def point_at(pointer: Path, value: dict[str, Any]) -> None:
    """Replace the JSON file ``pointer`` in one step: a reader sees the old value or the new one, whole."""
    written = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    with open(written, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(written, pointer)
    flush_folder(pointer.parent)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that a reader sees the old one or the new one, whole; makes the folder."""
    target.parent.mkdir(parents=True, exist_ok=True)
    written = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, written)
    with open(written, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(written, target)
    flush_folder(target.parent)


def pointed_at(pointer: Path) -> dict[str, Any] | None:
    """The value last published, or None when nothing was."""
    try:
        return json.loads(pointer.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Wait until no other process writes in ``folder``, and keep others out; the lock dies with its holder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "writer.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
