"""Commands on the API keys of the prediction service's callers."""

from __future__ import annotations

from typing import Annotated

import typer

from domains.registry.key_verbs import VERBS
from orchestrator import use_cases
from orchestrator.cli.options import Why
from orchestrator.console import terminal
from orchestrator.console.terminal import say
from orchestrator.credentials import os_user
from orchestrator.settings import Settings

Key = Annotated[str, typer.Argument(help="The key's name or id.")]


def add(
    name: Annotated[str, typer.Argument(help="Whose key it is, such as checkout-page.")],
    *,
    domain: Annotated[
        list[str] | None, typer.Option("--domain", "-d", help="Domain where it counts; may be repeated; default all.")
    ] = None,
    verb: Annotated[
        list[str] | None, typer.Option("--verb", help=f"{', '.join(VERBS)}; may be repeated; default rank, feedback.")
    ] = None,
    per_minute: Annotated[int, typer.Option(min=0, help="Requests a minute; 0 for no bound.")] = 0,
) -> None:
    """Make a key and show its token, this once. From the first key on, the service asks everybody for one."""
    key, token = use_cases.open_registry(Settings()).add_key(
        name, domains=domain or (), verbs=verb or ("rank", "feedback"), per_minute=per_minute, by=os_user()
    )
    say(f"key {key.name} ({key.id}); its token, which is shown only now:")
    say(token)


def list_keys() -> None:
    """List all keys, revoked ones too; never their tokens."""
    terminal.table(
        "API keys",
        ["id", "name", "domains", "verbs", "a minute", "made", "state"],
        (
            [
                *(key.id, key.name, ", ".join(key.domains) or "all", ", ".join(key.verbs), key.per_minute or "–"),
                f"{key.created_at:%Y-%m-%d %H:%M} by {key.created_by}",
                "revoked" if key.revoked_at else "rotated" if key.rotated_at else "counts",
            ]
            for key in use_cases.open_registry(Settings()).api_keys()
        ),
    )


def revoke(key: Key, *, why: Why = "") -> None:
    """End a key: within a second no service accepts it."""
    say(f"key {use_cases.open_registry(Settings()).revoke_key(key, by=os_user(), why=why).name} is revoked")


def rotate(key: Key) -> None:
    """Give a key another token and show it, this once; the one before counts no more."""
    held, token = use_cases.open_registry(Settings()).rotate_key(key, by=os_user())
    say(f"key {held.name} ({held.id}); its new token, which is shown only now:")
    say(token)
