"""Commands on the servers of this machine, and the demo that starts them."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import use_cases
from orchestrator.cli.options import Ui
from orchestrator.console import terminal
from orchestrator.console.terminal import say
from orchestrator.errors import FlowsUnavailable, Unavailable
from orchestrator.settings import Settings


def up(
    *,
    ui: Ui = True,
    background: Annotated[bool, typer.Option("--background", "-b", help="Return once all servers are up.")] = False,
) -> None:
    """Start the Prefect server and worker, the prediction service and the web UI; Ctrl-C stops them."""
    from orchestrator.servers import supervisor

    start = supervisor.up_in_background if background else supervisor.up
    start(Settings(), ui=ui, say=say)


def down(
    *,
    supervisor_only: Annotated[
        bool, typer.Option("--supervisor-only", help="End what looks after the servers; the next `graft up` goes on.")
    ] = False,
) -> None:
    """Stop the servers, from any shell."""
    from orchestrator.servers import supervisor

    if not supervisor.down(Settings(), say=say, supervisor_only=supervisor_only):
        say("no servers are running")


def status() -> None:
    """Show how servers, registry, feature store, outbox, disk and upkeep are; what is wrong is marked."""
    from orchestrator.servers import overview, state

    settings = Settings()
    running = state.read(settings)
    if running is None:
        say("no servers are running; `graft up` starts them")
    else:
        health = state.health(settings)
        terminal.table(
            f"servers of {settings.home.absolute()}",
            ["server", "state", "address", "process", "restarts", "log"],
            (
                [
                    *(server.name, "healthy" if health[server.name] else "[red]down[/red]", server.address),
                    *(server.pid, server.restarts, os.path.relpath(server.log)),
                ]
                for server in running.servers
            ),
        )
        for fault in state.service_faults(settings):
            say(f"service: {fault}")
    if settings.database_url or (settings.home / "registry.db").is_file():
        for part in overview.overview(settings):
            say(f"{part.name}: {part.says}" if part.well else f"WRONG {part.name}: {part.says}")


def upkeep(
    *, once: Annotated[bool, typer.Option("--once", help="Do all of it once, as from a timer, and end.")] = False
) -> None:
    """Do what `graft up` does beside its servers: resume lost runs, hand over schedules, delete what is old."""
    from orchestrator.servers.chores import Chores

    settings = Settings()
    chores = Chores(settings, use_cases.open_registry(settings), say)
    if once:
        chores.do()
        if chores.faults:
            raise Unavailable("; ".join(f"{chore} failed: {reason}" for chore, reason in chores.faults.items()))
        return
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    say("looking after runs, schedules and what may be deleted; Ctrl-C ends it")
    while not stop.wait(1.0):
        chores.do()


def deploy() -> None:
    """Write flows and schedules to the Prefect server; `graft up` does so by itself."""
    from orchestrator import flows, prefect_client

    settings = Settings()
    if not prefect_client.healthy(settings.prefect_api):  # Prefect's own client would start a server for the moment
        raise FlowsUnavailable(f"the Prefect server does not answer at {settings.prefect_url}; `graft up` starts it")
    for name in flows.deploy(settings):
        say(f"deployed {name}")


def demo(
    *,
    data: Annotated[str, typer.Option(help="simulated, or a public data set such as amazon or douban.")] = "simulated",
    path: Annotated[Path | None, typer.Option(help="Folder of the public data set's files.")] = None,
    size: Annotated[str, typer.Option(help="Size of the simulated marketplace.")] = "small",
    local: Annotated[bool, typer.Option("--local", help="Everything in this process, no servers.")] = False,
    leave_up: Annotated[bool, typer.Option("--leave-up/--no-wait", help="Leave the servers up at the end.")] = True,
    ui: Ui = True,
) -> None:
    """Launch a cold domain from nothing: data, shared model, launch, comparison, promotion, a ranking by curl."""
    from orchestrator.cli import demo as demonstration

    demonstration.run(Settings(), data=data, path=path, size=size, local=local, leave_up=leave_up, ui=ui)
