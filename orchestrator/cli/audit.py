"""The command that shows who changed what."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from orchestrator import use_cases
from orchestrator.changes import change_in_words
from orchestrator.console import terminal
from orchestrator.settings import Settings

UNITS_S = {"m": 60, "h": 3600, "d": 86_400}


def audit(
    *,
    domain: Annotated[str | None, typer.Option("--domain", "-d", help="Only of this domain.")] = None,
    since: Annotated[
        str | None, typer.Option(help="From then on: 30m, 12h, 7d, or a date such as 2026-05-01T12:00 (UTC).")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="The latest so many; 0 for all.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with all details.")] = False,
) -> None:
    """Show who changed what and why, newest first, with what was before and after."""
    registry = use_cases.open_registry(Settings())
    if domain is not None:
        registry.domain(domain)
    entries = registry.audit(domain, limit or None, since=None if since is None else _moment(since))
    if as_json:
        for entry in entries:
            typer.echo(json.dumps({**entry, "at": entry["at"].isoformat()}, ensure_ascii=False, default=str))
        return
    terminal.table(
        "audit log, newest first (UTC)",
        ["when", "who", "what", "domain", "why", "change"],
        (
            [
                *(f"{entry['at']:%Y-%m-%d %H:%M:%S}", entry["who"], entry["what"].replace("_", " ")),
                *(entry["domain"], entry["why"], change_in_words(entry["details"])),
            ]
            for entry in entries
        ),
    )


def _moment(text: str) -> datetime:
    span = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if span:
        return datetime.now(UTC) - timedelta(seconds=int(span[1]) * UNITS_S[span[2]])
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither 12h nor a date such as 2026-05-01", param_hint="--since"
        ) from None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found
