"""Commands on the prediction service and its log."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator import use_cases
from orchestrator.cli.options import Name
from orchestrator.console import terminal
from orchestrator.console.terminal import say
from orchestrator.jobs import retention
from orchestrator.settings import Settings


def rank(
    name: Name,
    *,
    user: Annotated[str, typer.Option("--user", "-u", help="The user's id.")],
    items: Annotated[str, typer.Option("--items", help="Item ids, separated by commas.")] = "",
    item: Annotated[
        list[str] | None, typer.Option("--item", help="One item id, commas and all; may be repeated.")
    ] = None,
    top: Annotated[
        int | None, typer.Option("--top", min=1, help="How many of the best to return; by default all.")
    ] = None,
) -> None:
    """Ask the running service for a ranking."""
    item_ids = [*(part.strip() for part in items.split(",") if part.strip()), *(item or [])]
    if not item_ids:
        raise typer.BadParameter("name the items to rank", param_hint="--items or --item")
    terminal.ranking(use_cases.rank(name, user_id=user, item_ids=item_ids, settings=Settings(), top_k=top))


def prune(
    *,
    days: Annotated[
        float | None, typer.Option(min=0, max=36_500, help="Days to keep; by default GRAFT_KEEP_PREDICTIONS_DAYS.")
    ] = None,
) -> None:
    """Delete old answers and feedback now; `graft up` and `graft upkeep` do so every hour."""
    settings = Settings()
    deleted = retention.prune(registry=use_cases.open_registry(settings), settings=settings, days=days)
    say(f"{deleted:,} old rows of answers and feedback deleted")
