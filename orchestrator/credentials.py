"""Secrets that Graft makes for its own processes, one file each for its owner's eyes alone; and who that owner is."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import tomllib
from pathlib import Path
from typing import Any

from domains.errors import LoginRefused


def make_home(home: Path) -> None:
    """Make the folder of everything that Graft writes, and let nobody but its owner in; one of before is closed too."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = home.stat()
    # Somebody else's folder is theirs to close: a volume of Kubernetes belongs to root.
    if status.st_uid == os.geteuid() and status.st_mode & 0o077:
        with contextlib.suppress(PermissionError):
            home.chmod(0o700)


def kept_secret(path: Path) -> str:
    """The secret in the file, which is made with 256 random bits if there is none; safe to race."""
    found = read_secret(path)
    if found:
        return found
    make_home(path.parent)
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


def provider_settings(home: Path) -> dict[str, Any] | None:
    """What ``.streamlit/secrets.toml`` in the home folder says of an identity provider, ``[auth]``; None without it.

    Raises:
        LoginRefused: others can read the file, or it is no TOML.
    """
    path = home / ".streamlit" / "secrets.toml"
    try:
        if path.stat().st_mode & 0o077:
            raise LoginRefused(f"{path}: others can read the client secret in it; chmod 600 closes it", file=str(path))
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("auth")
    except FileNotFoundError:
        return None
    except ValueError as fault:
        if isinstance(fault, LoginRefused):
            raise
        raise LoginRefused(f"{path}: is no TOML ({type(fault).__name__})", file=str(path)) from None
    return found if isinstance(found, dict) else None


def os_user() -> str:
    """Who runs this process, as the operating system says; what the environment claims does not count."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container may run under a number without a name
        return f"uid {os.geteuid()}"
