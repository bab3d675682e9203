"""Commands on the versions of a domain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domains.registry.registry import Registry
from orchestrator import use_cases
from orchestrator.cli.options import Name, Version, Why
from orchestrator.console.terminal import say
from orchestrator.credentials import os_user
from orchestrator.settings import Settings


def report(
    name: Name,
    version: Version = None,
    *,
    out: Annotated[Path | None, typer.Option(help="The file to write; by default NAME-VERSION.html.")] = None,
) -> None:
    """Write a version's cold-start report as one self-contained HTML file."""
    registry = use_cases.open_registry(Settings())
    found, page = use_cases.report_page(name, _whole_id(registry, name, version), registry=registry)
    path = out or Path(f"{name}-{found.id[:12]}.html")
    path.write_text(page, encoding="utf-8")
    say(f"{path}: the cold-start report of {name}, version {found.id[:12]}")


def promote(
    name: Name,
    version: Version = None,
    *,
    why: Why,
    force: Annotated[
        bool, typer.Option("--force", help="Also what the gate refused or nothing judged; marked for good.")
    ] = False,
) -> None:
    """Set a version live that its gate let pass."""
    settings = Settings()
    registry = use_cases.open_registry(settings)
    chosen = _whole_id(registry, name, version)
    move = use_cases.promote(name, chosen, registry=registry, settings=settings, who=os_user(), why=why, force=force)
    against = ", against the gate" if move.kind == "force" else ""
    say(f"{name}: version {str(move.to_version)[:12]} is live{against}{_while_paused(registry, name)}")


def rollback(name: Name, *, why: Why) -> None:
    """Go back to the version that was live before."""
    settings = Settings()
    registry = use_cases.open_registry(settings)
    move = use_cases.roll_back(name, registry=registry, settings=settings, who=os_user(), why=why)
    say(f"{name}: version {str(move.to_version)[:12]} is live again{_while_paused(registry, name)}")


def _while_paused(registry: Registry, name: str) -> str:
    """What a person should know who moves the pointer of a paused domain."""
    paused = registry.domain(name).state == "paused"
    return f"; the domain is paused, and popularity answers until `graft domains resume {name}`" if paused else ""


def _whole_id(registry: Registry, name: str, start: str | None) -> str | None:
    """A version's whole id from its first characters, as the tables print them."""
    if start is None:
        return None
    found = [version.id for version in registry.versions(name) if version.id.startswith(start)]
    return found[0] if len(found) == 1 else start
