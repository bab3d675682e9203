"""Commands that make data and measure: simulated and public data sets, and benchmarks on them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.console import terminal
from orchestrator.console.terminal import say
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from domains.public.reading import PreparedDomain
    from domains.simulation.simulator import SimulatedDomain

PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""A benchmark reads its options itself, ``--help`` included."""


def simulate(
    *,
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    size: Annotated[str, typer.Option(help="tiny, small, ...; or give --events.")] = "small",
    events: Annotated[int | None, typer.Option(min=1, help="Events of the whole marketplace.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
) -> None:
    """Simulate a marketplace of domains whose click probabilities are known: specs, events, items, users."""
    from domains.simulation import simulator

    config = simulator.SimulatorConfig(size=size, seed=seed, **({} if events is None else {"events": events}))  # type: ignore[arg-type]
    _print_commands(simulator.simulate(config, out))


def convert(
    name: Annotated[str, typer.Argument(help="amazon, douban, movielens, ...")],
    *,
    path: Annotated[Path, typer.Option(help="Folder of the original files.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
) -> None:
    """Convert a public data set's original files into specs and files that `domains register` takes."""
    from domains.public import LOADERS

    if name not in LOADERS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(sorted(LOADERS))}", param_hint="NAME")
    _print_commands(LOADERS[name](path, out))


def run_benchmark(ctx: typer.Context, name: Annotated[str | None, typer.Argument()] = None) -> None:
    """Run a benchmark: `graft bench NAME [--data DIR] [--out DIR] ...`; without a name, list them and their data."""
    from orchestrator.console import bench

    benchmarks, sets = bench.catalogue()
    chosen = None if name is None or name.startswith("-") else name
    if chosen is None:
        say("graft bench NAME [--data DIR] [--out DIR] [--seeds N] [--settings ...] [--models ...] [--json FILE]")
        say("graft bench NAME --help lists the options of a benchmark")
    if chosen not in benchmarks:
        terminal.table(
            "benchmarks",
            ["name", "what it measures", "reads any of"],
            (
                [known, benchmark.measures, ", ".join(benchmark.sets) or "what it makes itself"]
                for known, benchmark in benchmarks.items()
            ),
        )
        terminal.table(
            "public sets, one folder each under --data",
            ["folder", "files", "from"],
            ([folder, public.files, public.origin] for folder, public in sets.items()),
        )
    if chosen is not None:
        bench.run(chosen, ctx.args, out=Settings().home / "benchmarks")


def _print_commands(prepared: list[SimulatedDomain] | list[PreparedDomain]) -> None:
    """The command that registers and ingests each domain."""
    for domain in prepared:
        files = {"-i": domain.interactions, "--items": domain.items, "--users": domain.users}
        options = " ".join(f"{option} {file}" for option, file in files.items() if file is not None)
        say(f"graft domains register {domain.interactions.parent / 'spec.yaml'} {options}")
