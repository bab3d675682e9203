"""Commands on the users of the pages."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from domains.registry.user_verbs import ROLES, Role
from orchestrator import use_cases
from orchestrator.cli.options import Why
from orchestrator.console import terminal
from orchestrator.console.terminal import say
from orchestrator.credentials import os_user
from orchestrator.settings import Settings

Name = Annotated[str, typer.Argument(help="The user's name; of one whom a provider vouches for, the e-mail address.")]
RoleOption = Annotated[
    str | None,
    typer.Option("--role", help="viewer sees; owner also changes its own domains; admin changes everything."),
]
Domains = Annotated[
    list[str] | None,
    typer.Option("--domain", "-d", help="Domain that an owner may change, besides its own; may be repeated."),
]


def add(
    name: Name,
    *,
    role: RoleOption = "viewer",
    domain: Domains = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Only an identity provider can vouch for the name.")
    ] = False,
) -> None:
    """Let somebody sign in to the pages; from the first user on, nobody gets in without."""
    registry = use_cases.open_registry(Settings())
    password = None if no_password else _password(name)
    user = registry.add_user(name, role=_role(role), password=password, domains=domain or (), by=os_user())
    say(f"{user.name} may sign in as {user.role}")


def change(name: Name, *, role: RoleOption = None, domain: Domains = None) -> None:
    """Give somebody another role, or other domains in place of those of before."""
    registry = use_cases.open_registry(Settings())
    user = registry.change_user(name, role=None if role is None else _role(role), domains=domain, by=os_user())
    say(f"{user.name} is {user.role}" + (f" of {', '.join(user.domains)}" if user.domains else ""))


def list_users() -> None:
    """List everybody who may sign in, and who once might."""
    terminal.table(
        "users of the pages",
        ["name", "role", "domains", "signs in by", "added", "state"],
        (
            [
                *(user.name, user.role, ", ".join(user.domains), "password" if user.has_password else "provider"),
                f"{user.created_at:%Y-%m-%d %H:%M} by {user.created_by}",
                "removed" if user.removed_at else "counts",
            ]
            for user in use_cases.open_registry(Settings()).users()
        ),
    )


def remove(name: Name, *, why: Why = "") -> None:
    """Let somebody in no more; their open pages stop answering within a second."""
    say(f"{use_cases.open_registry(Settings()).remove_user(name, by=os_user(), why=why).name} is removed")


def password(name: Name) -> None:
    """Give somebody another password, which ends their sessions."""
    registry = use_cases.open_registry(Settings())
    registry.user(name)
    registry.set_password(name, _password(name), by=os_user())
    say(f"{name} has another password; sessions of before have ended")


def _password(name: str) -> str:
    """Asked for at a terminal, else the first line of standard input: no argument, which every process could read."""
    if sys.stdin.isatty():
        return str(typer.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\r\n")


def _role(role: str | None) -> Role:
    for known in ROLES:
        if role == known:
            return known
    raise typer.BadParameter(f"{role!r} is none of {', '.join(ROLES)}", param_hint="--role")
