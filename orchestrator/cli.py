"""``graft ...``: every story from a shell. Thin: parses words, calls a use case, prints what came of it.

A mistake is answered with one line that names the field, the file and the line, and exit status 1. With the option
``--traceback`` the place that it came from is shown instead.
"""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperGroup

from models.training.allocator import keep_freed_memory
from orchestrator.console import terminal
from orchestrator.console.terminal import console
from orchestrator.errors import http_status
from orchestrator.settings import Settings


class OneLineErrors(TyperGroup):
    """Turns an error that somebody can mend into one line; an error of Graft's own keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            mendable = http_status(error) != 500 or isinstance(error, OSError)
            if not mendable or ctx.params.get("traceback"):
                raise
            terminal.errors.print(f"[bold red]error:[/bold red] {_plain(terminal.error_line(error))}", soft_wrap=True)
            raise typer.Exit(1) from None


app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Launch a new recommendation domain in minutes.",
)
domains_app = typer.Typer(no_args_is_help=True, help="Register, list and show domains.")
app.add_typer(domains_app, name="domains")

Why = Annotated[str, typer.Option("--why", help="The reason, kept in the audit log.")]
By = Annotated[
    str, typer.Option("--by", envvar=["GRAFT_USER", "USER", "LOGNAME"], help="Who asks, kept in the audit log.")
]
Local = Annotated[bool, typer.Option("--local", help="Run here, without the Prefect worker.")]
Choices = Annotated[
    list[str] | None, typer.Option("--set", help="A choice of the recipe, such as epochs=2; may be repeated.")
]
Files = Annotated[list[Path] | None, typer.Option("--interactions", "-i", help="CSV, TSV or Parquet; may be repeated.")]
ItemFile = Annotated[Path | None, typer.Option("--items", help="The items' features.")]
UserFile = Annotated[Path | None, typer.Option("--users", help="The users' profiles.")]


@app.callback()
def graft(
    ctx: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the log of what happens.")] = False,
) -> None:
    """Launch a new recommendation domain in minutes."""
    keep_freed_memory()
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


# ---------------------------------------------------------------------------------------------------------- servers


@app.command()
def up(
    ui: Annotated[bool, typer.Option(help="Start the web UI too.")] = True,
    background: Annotated[bool, typer.Option("--background", "-b", help="Return once all servers are up.")] = False,
) -> None:
    """Start the Prefect server and worker, the prediction service and the web UI; Ctrl-C ends them."""
    from orchestrator.servers import supervisor

    if background:
        supervisor.up_in_background(Settings(), ui=ui, say=_say)
    else:
        supervisor.up(Settings(), ui=ui, say=_say)


@app.command()
def down() -> None:
    """End the servers, from any shell."""
    from orchestrator.servers import supervisor

    if not supervisor.down(Settings(), say=_say):
        _say("no servers are running")


@app.command()
def status() -> None:
    """Show which servers run, and what they know."""
    from orchestrator.servers import supervisor

    settings = Settings()
    state = supervisor.read_state(settings)
    if state is None:
        _say("no servers are running; `graft up` starts them")
    else:
        health = supervisor.health(settings)
        terminal.table(
            f"servers of {settings.home.absolute()}",
            ["server", "state", "address", "process", "restarts", "log"],
            (
                [
                    *(server.name, "healthy" if health[server.name] else "[red]down[/red]", server.address),
                    *(server.pid, server.restarts, os.path.relpath(server.log)),
                ]
                for server in state.servers
            ),
        )
    if settings.database_url or (settings.home / "registry.db").is_file():
        registry = _registry(settings)
        domains, running = registry.domains(), [run for run in registry.runs() if run.state in ("queued", "running")]
        live = sum(registry.live(domain.name) is not None for domain in domains)
        _say(f"{len(domains)} domains, {live} with a live version, {len(running)} runs in progress")


@app.command()
def deploy() -> None:
    """Write flows and schedules to the Prefect server; `graft up` does it by itself."""
    from orchestrator import flows

    for name in flows.deploy(Settings()):
        _say(f"deployed {name}")


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="simulated, or a public data set such as amazon or douban.")] = "simulated",
    path: Annotated[Path | None, typer.Option(help="Folder of the public data set's files.")] = None,
    size: Annotated[str, typer.Option(help="Size of the simulated marketplace.")] = "small",
    local: Annotated[bool, typer.Option("--local", help="Everything in this process, no servers.")] = False,
    leave_up: Annotated[bool, typer.Option("--leave-up/--no-wait", help="Leave the servers up at the end.")] = True,
    ui: Annotated[bool, typer.Option(help="Start the web UI too.")] = True,
) -> None:
    """Launch a cold domain from nothing: data, shared model, launch, comparison, promotion, a ranking by curl."""
    from orchestrator.console import demo as story

    story.run(Settings(), data=data, path=path, size=size, local=local, leave_up=leave_up, ui=ui)


# ---------------------------------------------------------------------------------------------------------- domains


@domains_app.command("register")
def register(
    spec: Annotated[Path, typer.Argument(help="The domain's spec, a YAML file.")],
    interactions: Files = None,
    items: ItemFile = None,
    users: UserFile = None,
    by: By = "command line",
) -> None:
    """Put a domain on the books; with files, ingest them too."""
    from domains.spec import DomainSpec
    from orchestrator import use_cases

    settings = Settings()
    registry = _registry(settings)
    domain = use_cases.register(DomainSpec.from_yaml(spec), registry=registry, by=by)
    _say(f"{domain.name} is registered as {domain.role} domain number {domain.number}")
    if interactions:
        _ingest(domain.name, interactions, items, users, settings=settings, by=by)


@domains_app.command("list")
def list_domains() -> None:
    """List every domain with its state and what answers in it."""
    settings = Settings()
    registry = _registry(settings)
    terminal.table(
        "domains",
        ["domain", "role", "state", "answers by", "events", "users", "items", "owner", "retrains"],
        (
            [
                *(domain.name, domain.role, domain.state.value, _level(registry, domain.name)),
                *(_count(domain.counts.get(key)) for key in ("rows_added", "users", "items")),
                *(domain.owner, domain.spec.schedule),
            ]
            for domain in registry.domains()
        ),
        numeric=["events", "users", "items"],
    )


@domains_app.command("show")
def show(name: str) -> None:
    """Show one domain: spec, data, versions, promotions."""
    settings = Settings()
    registry = _registry(settings)
    domain = registry.domain(name)
    console.print(f"[bold]{name}[/bold]: {domain.role}, {domain.state.value}, answers by {_level(registry, name)}")
    console.print(domain.spec.to_yaml().rstrip(), highlight=False, markup=False)
    live = registry.live(name)
    terminal.table(
        "versions, newest first",
        ["version", "level", "live", "metrics", "made"],
        (
            [
                *(version.id[:12], version.level, "live" if live and live.version_id == version.id else ""),
                *(_metrics(version.metrics), f"{version.created_at:%Y-%m-%d %H:%M} by {version.created_by}"),
            ]
            for version in sorted(registry.versions(name), key=lambda version: version.created_at, reverse=True)
        ),
    )
    promotions = registry.promotions(name)
    if promotions:
        terminal.table(
            "promotions",
            ["when", "what", "version", "who", "why"],
            (
                [f"{move.at:%Y-%m-%d %H:%M}", move.kind.replace("_", " "), move.to_version[:12], move.who, move.why]
                for move in promotions
            ),
        )


@app.command()
def ingest(
    name: str,
    interactions: Annotated[list[Path], typer.Option("--interactions", "-i", help="CSV, TSV or Parquet.")],
    items: ItemFile = None,
    users: UserFile = None,
    by: By = "command line",
) -> None:
    """Validate files and add their good rows; bad rows are set aside with file, line and reason."""
    _ingest(name, interactions, items, users, settings=Settings(), by=by)


@app.command()
def readiness(name: str) -> None:
    """Show what a domain still lacks before it can launch, and what its sources could lend it."""
    from orchestrator import use_cases

    settings = Settings()
    terminal.readiness(name, use_cases.readiness(name, registry=_registry(settings), settings=settings))


@app.command()
def preview(name: str, local: Local = False, by: By = "command line") -> None:
    """Try short runs before a launch: what each source gives, how much data until the adapter is ahead."""
    from orchestrator import use_cases

    settings = Settings()
    registry = _registry(settings)
    registry.domain(name)
    if local:
        with terminal.progress_bar(f"preview {name}") as on_progress:
            found = use_cases.preview(name, registry=registry, settings=settings, by=by, on_progress=on_progress)
    else:
        found = _follow("preview", name, {}, registry, settings, by).result
    terminal.preview(name, found)


# ------------------------------------------------------------------------------------------------------------- runs


@app.command()
def train(choices: Choices = None, local: Local = False, by: By = "command line") -> None:
    """Train the shared model on every domain's events."""
    from orchestrator import use_cases

    settings = Settings()
    registry, recipe = _registry(settings), _recipe(choices)
    if local:
        with terminal.progress_bar("train-shared") as on_progress:
            version = use_cases.train_shared(
                registry=registry, settings=settings, by=by, on_progress=on_progress, **recipe
            )
    else:
        version = registry.version(_follow("train-shared", None, recipe, registry, settings, by).result["version"])
    _say(f"shared model {version.id[:12]} is trained")
    terminal.domain_metrics(version.metrics)


@app.command()
def launch(name: str, choices: Choices = None, local: Local = False, by: By = "command line") -> None:
    """Fine-tune a domain, compare it on cold users with what the team would otherwise use, ask the gate."""
    from orchestrator import use_cases

    settings = Settings()
    registry, recipe = _registry(settings), _recipe(choices)
    registry.domain(name)
    if local:
        with terminal.progress_bar(f"launch-domain {name}") as on_progress:
            version = use_cases.launch(
                name, registry=registry, settings=settings, by=by, on_progress=on_progress, **recipe
            )
    else:
        version = registry.version(_follow("launch-domain", name, recipe, registry, settings, by).result["version"])
    terminal.cold_start_table(name, version.report)
    terminal.decision_lines(version.report)
    decision = version.report.get("decision") or {"promote": True}
    if decision["promote"]:
        _say(f'version {version.id[:12]} wants to go live: graft promote {name} --why "..."')


@app.command()
def report(
    name: str,
    version: Annotated[str | None, typer.Argument(help="The newest that a launch made where none is named.")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write; NAME-VERSION.html where none is named.")] = None,
) -> None:
    """Write a version's cold-start report as one HTML file that needs nothing else."""
    from orchestrator import use_cases

    registry = _registry(Settings())
    found, page = use_cases.report_page(name, _whole_id(registry, name, version), registry=registry)
    path = out or Path(f"{name}-{found.id[:12]}.html")
    path.write_text(page, encoding="utf-8")
    _say(f"{path}: the cold-start report of {name}, version {found.id[:12]}")


@app.command()
def promote(
    name: str, version: Annotated[str | None, typer.Argument()] = None, *, why: Why, by: By = "command line"
) -> None:
    """Put a version in front of users; the newest one where none is named."""
    from orchestrator import use_cases

    registry = _registry(Settings())
    move = use_cases.promote(name, _whole_id(registry, name, version), registry=registry, who=by, why=why)
    _say(f"{name}: version {move.to_version[:12]} is live")


@app.command()
def rollback(name: str, why: Why, by: By = "command line") -> None:
    """Go back to the version that was live before."""
    from orchestrator import use_cases

    move = use_cases.roll_back(name, registry=_registry(Settings()), who=by, why=why)
    _say(f"{name}: version {move.to_version[:12]} is live again")


@app.command()
def cancel(run_id: str) -> None:
    """Stop a run; starting it again continues from its last checkpoint."""
    from orchestrator import use_cases

    settings = Settings()
    run = use_cases.cancel(run_id, registry=_registry(settings), settings=settings)
    _say(f"{run_id}: {run.state if run.finished_at else 'stopping'}")


@app.command("runs")
def list_runs(
    name: Annotated[str | None, typer.Argument(help="Only of this domain.")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 20,
) -> None:
    """List the latest runs."""
    terminal.table(
        "runs, newest first",
        ["run", "domain", "state", "done", "step", "started", "error"],
        (
            [
                *(run.id, run.domain, run.state, f"{run.progress:.0%}", run.step),
                *(f"{run.started_at:%m-%d %H:%M:%S}", run.error),
            ]
            for run in _registry(Settings()).runs(name, limit=limit)
        ),
        numeric=["done"],
    )


@app.command()
def rank(
    name: str,
    user: Annotated[str, typer.Option("--user", "-u", help="The user's id.")],
    items: Annotated[str, typer.Option("--items", help="Item ids, separated by commas.")],
    top: Annotated[int | None, typer.Option("--top", min=1, help="Only the best of them.")] = None,
) -> None:
    """Ask the running service for a ranking."""
    from orchestrator import use_cases

    settings = Settings()
    wanted = [item.strip() for item in items.split(",") if item.strip()]
    terminal.ranking(use_cases.rank(name, user_id=user, item_ids=wanted, settings=settings, top_k=top))


@app.command()
def prune(
    days: Annotated[
        float | None, typer.Option(min=0, help="Days to keep; GRAFT_KEEP_PREDICTIONS_DAYS where none are named.")
    ] = None,
) -> None:
    """Delete old answers and feedback from the log; while `graft up` runs, the setting does it every hour."""
    from orchestrator import use_cases

    settings = Settings()
    gone = use_cases.prune(registry=_registry(settings), settings=settings, days=days)
    _say(f"{gone:,} old rows of answers and feedback deleted")


# ------------------------------------------------------------------------------------------------------------- data


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    size: Annotated[str, typer.Option(help="tiny, small, ...; or give --events.")] = "small",
    events: Annotated[int | None, typer.Option(min=1, help="Events of the whole marketplace.")] = None,
    seed: int = 0,
) -> None:
    """Make a marketplace of domains with known truth: specs, events, items, users."""
    from domains.simulation.simulator import SimulatorConfig, simulate

    config = SimulatorConfig(size=size, seed=seed, **({} if events is None else {"events": events}))  # type: ignore[arg-type]
    _list_prepared(simulate(config, out))


@app.command()
def data(
    name: Annotated[str, typer.Argument(help="amazon, douban, movielens, ...")],
    path: Annotated[Path, typer.Option(help="Folder of the original files.")],
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
) -> None:
    """Turn a public data set's original files into specs and files that `domains register` takes."""
    from domains.public import LOADERS

    if name not in LOADERS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(sorted(LOADERS))}", param_hint="NAME")
    _list_prepared(LOADERS[name](path, out))


@app.command(
    "bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
)
def run_benchmark(ctx: typer.Context, name: Annotated[str | None, typer.Argument()] = None) -> None:
    """Run a benchmark: `graft bench NAME [--data DIR] [--out DIR] ...`; without a name, list them and their data."""
    from orchestrator.console import bench

    benchmarks, sets = bench.catalogue()
    if name is None or name.startswith("-"):
        _say("graft bench NAME [--data DIR] [--out DIR] [--seeds N] [--settings ...] [--models ...] [--json FILE]")
        _say("graft bench NAME --help tells what options a benchmark has")
    elif name in benchmarks:
        bench.run(name, ctx.args, out=Settings().home / "benchmarks")
        return
    terminal.table(
        "benchmarks",
        ["name", "what it measures", "reads any of"],
        ([one, held.measures, ", ".join(held.sets) or "what it makes itself"] for one, held in benchmarks.items()),
    )
    terminal.table(
        "public sets, one folder each under --data",
        ["folder", "files", "from"],
        ([folder, held.files, held.origin] for folder, held in sets.items()),
    )
    if name is not None and not name.startswith("-"):
        bench.run(name, ctx.args, out=Settings().home)  # says what is wrong with the name


def _ingest(
    name: str, interactions: list[Path], items: Path | None, users: Path | None, *, settings: Settings, by: str
) -> None:
    from orchestrator import use_cases

    with terminal.progress_bar(f"ingest {name}") as on_progress:
        report = use_cases.ingest_data(
            name,
            interactions=interactions,
            items=items,
            users=users,
            registry=_registry(settings),
            settings=settings,
            by=by,
            on_progress=on_progress,
        )
    terminal.ingest_report(report)


def _follow(kind: str, domain: str | None, recipe: dict[str, Any], registry: Any, settings: Settings, by: str) -> Any:
    from orchestrator import use_cases

    run = use_cases.start(kind, domain=domain, params=recipe, registry=registry, settings=settings, by=by)
    run = terminal.watch(run, registry=registry, settings=settings)
    if run.state != "succeeded":
        terminal.errors.print(f"[bold red]{run.state}:[/bold red] {_plain(run.error or run.step)}", soft_wrap=True)
        raise typer.Exit(1)
    return run


def _registry(settings: Settings) -> Any:
    from domains.registry.registry import Registry

    settings.home.mkdir(parents=True, exist_ok=True)
    registry = Registry(settings.registry_url)
    registry.migrate()
    return registry


def _recipe(choices: list[str] | None) -> dict[str, Any]:
    """``epochs=2`` and the like, checked against the recipe before anything starts."""
    from orchestrator.training.recipe import Recipe

    chosen: dict[str, Any] = {}
    for choice in choices or []:
        key, given, value = choice.partition("=")
        if not given:
            raise typer.BadParameter(f"{choice!r} is not of the form name=value", param_hint="--set")
        key = key.strip()
        if key not in Recipe.model_fields:
            near = difflib.get_close_matches(key, Recipe.model_fields, n=1)
            meant = f"did you mean {near[0]}?" if near else f"it has {', '.join(Recipe.model_fields)}"
            raise ValueError(f"the recipe has no choice {key!r}; {meant}")
        chosen[key] = yaml.safe_load(value)
    Recipe(**chosen)
    return chosen


def _whole_id(registry: Any, name: str, start: str | None) -> str | None:
    """A version's whole id from its first characters, as the tables print them."""
    if start is None:
        return None
    found = [version.id for version in registry.versions(name) if version.id.startswith(start)]
    return found[0] if len(found) == 1 else start


def _level(registry: Any, name: str) -> str:
    from orchestrator import use_cases

    return use_cases.level(name, registry=registry).replace("_", "-")


def _list_prepared(prepared: list[Any]) -> None:
    for one in prepared:
        spec_path = getattr(one, "spec_path", None) or one.interactions.parent / "spec.yaml"
        files = [
            f"-i {one.interactions}",
            *(f"--{key} {getattr(one, key)}" for key in ("items", "users") if getattr(one, key)),
        ]
        _say(f"graft domains register {spec_path} {' '.join(files)}")


def _metrics(metrics: dict[str, Any]) -> str:
    """A version's own row; one that came out of shared training holds the rows that it was compared with beside it."""
    own = metrics.get("rows", {}).get("shared", metrics)
    return ", ".join(
        f"{name} {measured['value']:.4f}"
        for name, measured in own.items()
        if isinstance(measured, dict) and "value" in measured
    )


def _count(value: int | None) -> str:
    return "0" if value is None else f"{value:,}"


def _say(line: str) -> None:
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Text of others in a line with markup: its square brackets are only brackets."""
    return text.replace("[", r"\[")


if __name__ == "__main__":
    app()
