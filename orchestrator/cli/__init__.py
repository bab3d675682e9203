"""``graft ...``: every command, wired to its function here and nowhere else.

The commands are thin: they parse words, call a use case and print its result. An error is answered with one line that
names the field, the file and the line, and exit status 1; ``--traceback`` shows where it was raised.
"""

# ruff: noqa: E402
from __future__ import annotations

from orchestrator.cli import interruption

interruption.end_at_once_while_loading()

import io
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError
from typer.core import TyperGroup

from orchestrator.cli import audit, backups, data, domain, keys, runs, servers, service, users, versions
from orchestrator.console import terminal
from orchestrator.errors import as_line, http_status
from orchestrator.settings import Settings


class OneLineErrors(TyperGroup):
    """Prints an error that a user can correct as one line; a bug in Graft keeps its traceback."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except Exception as error:
            _exit_if_misused(error)
            raise

    def invoke(self, ctx: Any) -> Any:
        with interruption.heeded():
            try:
                return super().invoke(ctx)
            except BaseException as error:
                _exit_if_misused(error)
                if (number := interruption.met()) is not None:
                    terminal.errors.print(interruption.LINE[number])
                    raise typer.Exit(interruption.STATUS[number]) from None
                # `graft ... | head` has read enough
                if isinstance(error, BrokenPipeError) or not isinstance(error, Exception):
                    raise
                correctable = http_status(error) != 500 or isinstance(error, (OSError, DBAPIError))
                if not correctable or ctx.obj == SHOW_TRACEBACK:
                    raise
                terminal.errors.print(f"[bold red]error:[/bold red] {escape(_line(error))}", soft_wrap=True)
                raise typer.Exit(1) from None


def _exit_if_misused(error: BaseException) -> None:
    """Say in one line which option or argument of a command is wrong, and how to see what it takes."""
    message = error.format_message() if hasattr(error, "format_message") else "\n"
    if not message or "\n" in message:  # the help that a command without arguments shows
        return
    command = context.command_path if (context := getattr(error, "ctx", None)) else "graft"
    line = escape(" ".join(message.split()).rstrip("."))
    terminal.errors.print(f"[bold red]error:[/bold red] {line}; see {command} --help", soft_wrap=True)
    raise typer.Exit(2) from None


def _line(error: Exception) -> str:
    """The error, and the setting that names the place where it was met."""
    if isinstance(error, DBAPIError):
        return _database_line(error)
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):
        home, place = Settings().home.absolute(), Path(os.fsdecode(error.filename)).absolute()
        if place.is_relative_to(home) or home.is_relative_to(place):
            return f"GRAFT_HOME: {as_line(error)}"
    return as_line(error)


def _database_line(error: DBAPIError) -> str:
    """Which database, without its password, and what its driver said first."""
    url = make_url(Settings().registry_url)
    place = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    said = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
    return f"GRAFT_DATABASE_URL, GRAFT_HOME: the registry's database {place}: {said}"


SHOW_TRACEBACK = "traceback"

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, pretty_exceptions_show_locals=False)
domains_app = typer.Typer(no_args_is_help=True, help="Register, list and show domains; pause, resume and retire them.")


@app.callback()
def graft(
    ctx: typer.Context,
    *,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of what happens.")] = False,
) -> None:
    """Launch a new recommendation domain in minutes."""
    ctx.obj = SHOW_TRACEBACK if traceback else None
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of few characters shows the others escaped; the work must not end on a name that it lacks.
            stream.reconfigure(errors="backslashreplace")
    # BentoML reads ignore files with a pattern that its own dependency has deprecated: nothing a user can act on.
    warnings.filterwarnings("ignore", "GitWildMatchPattern", DeprecationWarning)
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


COMMANDS: dict[str, Callable[..., None]] = {
    "up": servers.up,
    "down": servers.down,
    "status": servers.status,
    "upkeep": servers.upkeep,
    "backup": backups.backup,
    "restore": backups.restore,
    "deploy": servers.deploy,
    "demo": servers.demo,
    "ingest": domain.ingest,
    "readiness": domain.readiness,
    "preview": runs.preview,
    "train": runs.train,
    "launch": runs.launch,
    "report": versions.report,
    "promote": versions.promote,
    "rollback": versions.rollback,
    "cancel": runs.cancel,
    "runs": runs.list_runs,
    "rank": service.rank,
    "prune": service.prune,
    "audit": audit.audit,
    "simulate": data.simulate,
    "data": data.convert,
}
DOMAINS_COMMANDS: dict[str, Callable[..., None]] = {
    "register": domain.register,
    "list": domain.list_domains,
    "show": domain.show,
    "pause": domain.pause,
    "resume": domain.resume,
    "retire": domain.retire,
    "vouch": domain.vouch,
}
KEYS_COMMANDS: dict[str, Callable[..., None]] = {
    "add": keys.add,
    "list": keys.list_keys,
    "revoke": keys.revoke,
    "rotate": keys.rotate,
}
USERS_COMMANDS: dict[str, Callable[..., None]] = {
    "add": users.add,
    "change": users.change,
    "list": users.list_users,
    "remove": users.remove,
    "password": users.password,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
app.command("bench", context_settings=data.PASSED_ON)(data.run_benchmark)
for name, command in DOMAINS_COMMANDS.items():
    domains_app.command(name)(command)
app.add_typer(domains_app, name="domains")
keys_app = typer.Typer(no_args_is_help=True, help="API keys of the prediction service's callers.")
for name, command in KEYS_COMMANDS.items():
    keys_app.command(name)(command)
app.add_typer(keys_app, name="keys")
users_app = typer.Typer(no_args_is_help=True, help="People who may sign in to the pages.")
for name, command in USERS_COMMANDS.items():
    users_app.command(name)(command)
app.add_typer(users_app, name="users")
