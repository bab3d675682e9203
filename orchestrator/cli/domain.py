"""Commands on a domain and its data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from domains.registry.registry import Version
from domains.spec import DomainSpec
from orchestrator import use_cases
from orchestrator.cli.options import Interactions, Items, Name, Users, Why
from orchestrator.console import terminal
from orchestrator.console.terminal import console, say
from orchestrator.credentials import os_user
from orchestrator.evaluation.report import ZeroShotReport, decision_of, metrics_of
from orchestrator.settings import Settings


def register(
    spec: Annotated[Path, typer.Argument(help="The domain's spec, a YAML file.")],
    *,
    interactions: Interactions = None,
    items: Items = None,
    users: Users = None,
) -> None:
    """Register a domain; with files, ingest them too."""
    if not interactions and (items or users):
        raise typer.BadParameter("items and users are read together with interactions", param_hint="--interactions")
    domain = use_cases.register(DomainSpec.from_yaml(spec), registry=use_cases.open_registry(Settings()), by=os_user())
    say(f"{domain.name} is registered as a {domain.role} domain")
    if interactions:
        ingest(domain.name, interactions=interactions, items=items, users=users)


def list_domains() -> None:
    """List every domain with its state and the fallback level that it answers at."""
    registry = use_cases.open_registry(Settings())
    levels, forced = use_cases.fallback_levels(registry), registry.forced()
    lives = {live.domain: live.version_id for live in registry.lives()}
    terminal.table(
        "domains",
        ["domain", "role", "state", "answers by", "events", "users", "items", "owner", "retrains"],
        (
            [
                *(domain.name, domain.role, domain.state.value),
                _level(levels[domain.name], forced=lives.get(domain.name) in forced),
                *(f"{domain.counts.get(key) or 0:,}" for key in ("rows_added", "users", "items")),
                *(domain.owner, domain.spec.schedule),
            ]
            for domain in registry.domains()
        ),
        numeric=["events", "users", "items"],
    )


def show(name: Name) -> None:
    """Show one domain: spec, data, versions, promotions."""
    registry = use_cases.open_registry(Settings())
    domain = registry.domain(name)
    live, forced = registry.live(name), registry.forced(name)
    level = use_cases.fallback_level(name, registry=registry)
    answers = _level(level, forced=live is not None and live.version_id in forced)
    console.print(f"[bold]{name}[/bold]: {domain.role}, {domain.state.value}, answers by {answers}")
    console.print(domain.spec.to_yaml().rstrip(), highlight=False, markup=False)
    if domain.challenger is not None:
        say(f"version {domain.challenger[:12]} passed its gate and waits to be promoted")
    versions = registry.versions(name)
    for version in versions:
        judged = ZeroShotReport.of(version)
        if live is None and judged is not None and not judged.decision.promote:
            say(f"the shared model does not answer untrained: {'; '.join(judged.decision.reasons)}")
            break
    for move in forced.values():
        say(f"version {str(move.to_version)[:12]} was set live against the gate by {move.who}: {move.why}")
    terminal.table(
        "versions, newest first",
        ["version", "level", "gate", "live", "metrics", "made"],
        (
            [
                *(version.id[:12], version.level, _gate(version, forced=version.id in forced)),
                "live" if live and live.version_id == version.id else "",
                *(_metrics(version), f"{version.created_at:%Y-%m-%d %H:%M} by {version.created_by}"),
            ]
            for version in sorted(versions, key=lambda version: version.created_at, reverse=True)
        ),
    )
    promotions = registry.promotions(name)
    if promotions:
        terminal.table(
            "promotions",
            ["when", "what", "version", "who", "why"],
            (
                [
                    f"{move.at:%Y-%m-%d %H:%M}",
                    move.kind.replace("_", " "),
                    (move.to_version or "")[:12],
                    move.who,
                    move.why,
                ]
                for move in promotions
            ),
        )


def vouch(
    name: Name,
    feature: Annotated[str, typer.Argument(help="The feature, as the launch's report names it.")],
    *,
    why: Annotated[str, typer.Option("--why", help="How you know; it stands in the spec and in every report.")],
) -> None:
    """Vouch for a feature that tells the label too well: it is known when a request comes. Then launch again."""
    who = os_user()
    use_cases.vouch(name, feature, why=why, registry=use_cases.open_registry(Settings()), by=who)
    say(f"{name}: {feature} is known when a request comes, says {who}; launch again to have it judged so")


def ingest(
    name: Name,
    *,
    interactions: Annotated[list[Path], typer.Option("--interactions", "-i", help="CSV, TSV or Parquet.")],
    items: Items = None,
    users: Users = None,
) -> None:
    """Validate files and add their good rows; bad rows are set aside with file, line and reason."""
    settings = Settings()
    with terminal.progress_bar(f"ingest {name}") as on_progress:
        report = use_cases.ingest_data(
            name,
            interactions=interactions,
            items=items,
            users=users,
            registry=use_cases.open_registry(settings),
            settings=settings,
            by=os_user(),
            on_progress=on_progress,
        )
    terminal.ingest_report(report)


def readiness(name: Name) -> None:
    """Show what a domain still lacks before it can launch, and what its sources could contribute."""
    settings = Settings()
    found = use_cases.readiness(name, registry=use_cases.open_registry(settings), settings=settings)
    terminal.readiness(name, found)


def pause(name: Name, *, why: Why) -> None:
    """Let popularity answer until the domain is resumed, whatever is promoted or retrained meanwhile."""
    use_cases.pause(name, registry=use_cases.open_registry(Settings()), who=os_user(), why=why)
    say(f"{name} is paused: popularity answers until it is resumed")


def resume(name: Name, *, why: Why) -> None:
    """End a pause: what is live answers again."""
    registry = use_cases.open_registry(Settings())
    use_cases.resume(name, registry=registry, who=os_user(), why=why)
    say(f"{name} answers by {_level(use_cases.fallback_level(name, registry=registry))} again")


def retire(name: Name, *, why: Why) -> None:
    """Close a domain for good: its endpoint stops answering, and its name is not given again."""
    use_cases.retire(name, registry=use_cases.open_registry(Settings()), who=os_user(), why=why)
    say(f"{name} is retired; its data and its history are kept")


def _level(level: str | None, *, forced: bool = False) -> str:
    if level is None:
        return "nothing"
    marked = forced and level != "prior"
    return f"{level.replace('_', '-')}{', FORCED' * marked}"


def _gate(version: Version, *, forced: bool) -> str:
    decision = decision_of(version)
    verdict = "not judged" if decision is None else "passed" if decision.promote else decision.verdict
    return f"{verdict}, FORCED" if forced else verdict


def _metrics(version: Version) -> str:
    return ", ".join(
        f"{name} {'not defined' if math.isnan(measured.value) else f'{measured.value:.4f}'}"
        for name, measured in metrics_of(version).items()
    )
