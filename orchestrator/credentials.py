"""Secrets that Graft makes for its own processes: one file each in the home folder, readable by its owner alone."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def kept_secret(path: Path) -> str:
    """The secret in the file, which is made with 256 random bits if there is none; safe to race."""
    found = read_secret(path)
    if found:
        return found
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    write_private(draft, secrets.token_urlsafe(32))
    # A link, unlike a rename, fails where another process was first: both then read that one's secret.
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    return read_secret(path)


def read_secret(path: Path) -> str:
    """The secret in the file; empty without the file."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return ""


def write_private(path: Path, text: str) -> None:
    """Write a file that nobody but its owner can read at any moment, whatever the umask."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
