"""Commands that save a home and bring it back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.console.terminal import say
from orchestrator.jobs import backup as backups
from orchestrator.settings import Settings


def backup(
    target: Annotated[Path, typer.Argument(help="A new folder, or a file that ends in .tar, .tar.gz or .tgz.")],
) -> None:
    """Save registry, events, features and artifacts, also while servers run and runs are under way."""
    manifest = backups.back_up(target, settings=Settings())
    say(f"{target} holds {manifest.in_words}")
    if manifest.registry == "postgresql":
        say("the registry is in PostgreSQL: save it with pg_dump --format=custom, and BEFORE making such a backup")


def restore(
    source: Annotated[Path, typer.Argument(help="A folder or file that `graft backup` made.")],
    *,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite the registry that the home holds.")] = False,
) -> None:
    """Make GRAFT_HOME what it was when a backup was made; servers that run go on with it."""
    settings = Settings()
    manifest = backups.restore(source, settings=settings, replace=replace)
    say(f"{settings.home.absolute()} holds {manifest.in_words}")
    if manifest.registry == "postgresql":
        say("the registry is in PostgreSQL: bring it back with pg_restore --clean, after these files")
