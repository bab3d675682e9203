"""Commands that start, list and stop runs."""

from __future__ import annotations

import difflib
from typing import Annotated, Any

import typer
import yaml

from orchestrator import use_cases
from orchestrator.cli.options import Choices, Local, Name
from orchestrator.console import terminal
from orchestrator.console.terminal import say
from orchestrator.credentials import os_user
from orchestrator.evaluation.preview_report import PreviewReport
from orchestrator.evaluation.report import ColdStartReport, HeldOut
from orchestrator.jobs import results, runner
from orchestrator.settings import Settings


def preview(name: Name, *, local: Local = False) -> None:
    """Estimate before a launch, by short runs, what each source contributes and how much data the adapter needs."""
    settings = Settings()
    registry = use_cases.open_registry(settings)
    run = terminal.run_to_end("preview", name, local=local, registry=registry, settings=settings, by=os_user())
    terminal.preview(PreviewReport.of(run))


def train(*, choices: Choices = None, local: Local = False) -> None:
    """Train the shared model on the sources' events; no target goes live by it but through a judgement."""
    settings, recipe = Settings(), _recipe(choices)
    registry = use_cases.open_registry(settings)
    run = terminal.run_to_end(
        "train-shared", params=recipe, local=local, registry=registry, settings=settings, by=os_user()
    )
    version = registry.version(results.version_of(run))
    say(f"shared model {version.id[:12]} is trained")
    terminal.domain_metrics(HeldOut.by_domain(version))


def launch(name: Name, *, choices: Choices = None, local: Local = False) -> None:
    """Fine-tune a domain, compare it on cold users with the baselines, and put it to the gate."""
    settings, recipe = Settings(), _recipe(choices)
    registry = use_cases.open_registry(settings)
    run = terminal.run_to_end(
        "launch-domain", name, params=recipe, local=local, registry=registry, settings=settings, by=os_user()
    )
    version = registry.version(results.version_of(run))
    report = ColdStartReport.of(version)
    assert report is not None, "a launch makes a version with a report"
    terminal.cold_start(name, report)
    if report.decision.promote:
        say(f'version {version.id[:12]} is ready to go live: graft promote {name} --why "..."')


def cancel(run_id: Annotated[str, typer.Argument(help="The run's id, as `graft runs` lists it.")]) -> None:
    """Stop a run; starting it again continues from its last checkpoint."""
    settings = Settings()
    run = use_cases.cancel(run_id, registry=use_cases.open_registry(settings), settings=settings, by=os_user())
    say(f"{run_id}: {run.state if run.finished_at else 'stopping'}")


def list_runs(
    name: Annotated[str | None, typer.Argument(help="Only of this domain.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many to list.")] = 20,
) -> None:
    """List the latest runs; one whose process is gone is recorded as failed first."""
    settings = Settings()
    registry = use_cases.open_registry(settings)
    if name is not None:
        registry.domain(name)
    runner.close_dead(registry, settings)
    terminal.table(
        "runs, newest first",
        ["run", "domain", "state", "done", "step", "started", "error"],
        (
            [
                *(run.id, run.domain, run.state, f"{run.progress:.0%}", run.step),
                *(f"{run.started_at:%m-%d %H:%M:%S}", run.error),
            ]
            for run in registry.runs(name, limit=limit)
        ),
        numeric=["done"],
    )


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
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(Recipe.model_fields)}"
            raise ValueError(f"the recipe has no choice {key!r}; {hint}")
        try:
            chosen[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise typer.BadParameter(f"{choice!r}: the value is not readable", param_hint="--set") from None
    Recipe(**chosen)
    return chosen
