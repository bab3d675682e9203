"""What Graft can be asked to do, one function each: register, ingest, train, launch, promote, rank and the rest.

The command line, the pages and the flows all call these. Each names what it touches as keyword arguments and can be
repeated without harm.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from domains.errors import Conflict, IllegalTransition, NotEnoughData, Rejected, UnknownDomain, UnknownVersion
from domains.events import readiness as reading
from domains.events.domain_data import DomainData
from domains.events.publishing import copy_whole
from domains.events.readiness import Readiness
from domains.ingestion import ingest as ingesting
from domains.ingestion.ingest import IngestReport
from domains.lifecycle import State
from domains.registry.records import FINISHED
from domains.registry.registry import Domain, Registry, Run, Version
from domains.spec import DomainSpec
from models.training.allocator import keep_freed_memory
from orchestrator import prefect_client
from orchestrator.credentials import make_home
from orchestrator.errors import Refused, Unavailable, as_line
from orchestrator.evaluation.preview_report import PreviewReport
from orchestrator.evaluation.report import ColdStartReport
from orchestrator.jobs import results, runner
from orchestrator.jobs.runner import Call, OnProgress, RunContext, Step
from orchestrator.settings import Settings
from orchestrator.traffic import (  # noqa: F401  what answers is asked for here too
    fallback_level,
    fallback_levels,
    pause,
    promote,
    resume,
    retire,
    roll_back,
)


def open_registry(settings: Settings) -> Registry:
    """The registry that the settings name, brought up to the current schema; makes the home folder."""
    make_home(settings.home)
    registry = Registry(settings.registry_url)
    registry.migrate()
    return registry


def steps(kind: str) -> tuple[Step, ...]:
    """The steps of a kind of run, in order."""
    # Imported here: the pages and the command line start runs without loading torch.
    from orchestrator.jobs import launch, preview, train_shared

    return {
        "train-shared": train_shared.STEPS,
        "launch-domain": launch.STEPS,
        "retrain": launch.RETRAIN_STEPS,
        "preview": preview.STEPS,
    }[kind]


def register(spec: DomainSpec, *, registry: Registry, by: str) -> Domain:
    """Register a domain; registering the same spec again changes nothing.

    Raises:
        UnknownDomain: a source that the spec names is not registered.
        DomainAlreadyRegistered: another spec holds the name, or a retired domain does.
    """
    for place, source in enumerate(spec.sources):
        try:
            registry.domain(source)
        except UnknownDomain as unknown:
            raise UnknownDomain(f"sources: {unknown.message}", field=f"sources.{place}", name=source) from None
    return registry.register_domain(spec, by=by)


def vouch(name: str, feature: str, *, why: str, registry: Registry, by: str) -> Domain:
    """Say that a feature which tells the label too well is known when a request comes; the next launch takes it.

    The words stand in the domain's spec (``gate.known_at_request``), and who said them in the audit log.

    Raises:
        UnknownDomain: no such domain.
        InvalidSpec: the domain has no such feature, or ``why`` is empty.
    """
    declared = registry.domain(name).spec.model_dump(mode="json", exclude_unset=True)
    gate = declared.setdefault("gate", {})
    gate["known_at_request"] = {**gate.get("known_at_request", {}), feature: why}
    return registry.update_spec(DomainSpec.from_mapping(declared), by=by)


def ingest_data(
    name: str,
    *,
    interactions: list[Path],
    items: Path | None = None,
    users: Path | None = None,
    truth: Path | None = None,
    registry: Registry,
    settings: Settings,
    by: str,
    on_progress: OnProgress | None = None,
) -> IngestReport:
    """Validate files and add their good rows; bad rows are set aside with their file, line and reason.

    Args:
        truth: a simulated domain's true click probabilities, copied beside its data for the "best reachable" row.

    Raises:
        InvalidData: a file is unreadable or wrong as a whole; nothing was added.
        IllegalTransition: the domain is retired.
    """
    domain = registry.domain(name)
    if domain.state is State.RETIRED:
        raise IllegalTransition(f"{name!r} is retired; it takes no more data", domain=name)
    runner.close_dead(registry, settings)
    given = {"interactions": [str(path) for path in interactions]}
    run = registry.start_run("ingest", name, params=given, by=by, run_id=runner.new_run_id("ingest"))
    runner.note_process(runner.RunContext(run.id, "ingest", name, {}, by, registry, settings))

    def report_progress(fraction: float, step: str = "Reading the files", **detail: Any) -> None:
        registry.report_progress(run.id, fraction, step, **detail)
        if on_progress is not None:
            on_progress(fraction, step, detail)

    try:
        report = ingesting.ingest(
            domain.spec,
            number=domain.number,
            interactions=interactions,
            items=items,
            users=users,
            data_dir=settings.data_dir,
            on_progress=report_progress,
        )
        if truth is not None:
            copy_whole(truth, settings.data_dir / "domains" / name / "truth.parquet")
        # All of them, so that an ingest that was killed after publishing its rows is recorded by the next one.
        for published in DomainData(settings.data_dir, name).ingests():
            registry.record_ingest(name, published.ingest_id, published.as_dict(), by=by)
    except BaseException as error:
        # Ctrl-C and SIGTERM are no Exceptions: the ingest was stopped; nothing is wrong with it.
        stopped = not isinstance(error, Exception)
        registry.finish_run(run.id, state="cancelled" if stopped else "failed", error=as_line(error))
        raise
    registry.finish_run(run.id, state="succeeded", result=report.as_dict())
    return report


def readiness(name: str, *, registry: Registry, settings: Settings) -> Readiness:
    """What a domain still lacks before it can launch, and what its sources could contribute."""
    domain = registry.domain(name)
    sources = [other.name for other in registry.domains() if other.role == "source"]
    return reading.assess(domain.spec, settings.data_dir, sources=sources)


def latest_preview(name: str, *, registry: Registry) -> PreviewReport | None:
    """The report of the newest finished preview of a domain; None before the first."""
    done = (run for run in registry.runs(name, limit=1000) if run.kind == "preview" and run.state == "succeeded")
    newest = max(done, key=lambda run: run.started_at, default=None)
    return None if newest is None else PreviewReport.of(newest)


def report_page(name: str, version_id: str | None = None, *, registry: Registry) -> tuple[Version, str]:
    """A version and its cold-start report as one HTML page; by default the newest version that a launch made.

    Raises:
        UnknownVersion: no launch has made one, or the one named belongs elsewhere or came from shared training.
    """
    from orchestrator.evaluation import html as page

    spec = registry.domain(name).spec
    reported = {version.id: version for version in registry.versions(name, "adapter") if ColdStartReport.of(version)}
    if version_id is None:
        if not reported:
            raise UnknownVersion(f"no launch of {name!r} has made a version to report on; launch it first", domain=name)
        version_id = max(reported.values(), key=lambda version: version.created_at).id
    elif version_id not in reported:
        raise UnknownVersion(f"domain {name!r} has no version {version_id[:12]!r} with a cold-start report")
    version = reported[version_id]
    return version, page.render(version, spec.gate, registry.forced(name).get(version.id))


def build_features(*, registry: Registry, settings: Settings) -> None:
    """Bring histories and online features up to date with all ingested events.

    Raises:
        NotEnoughData: no domain has data yet.
    """
    from orchestrator.data import online
    from orchestrator.data.dataset import gather_histories

    gather_histories(registry, settings)
    online.refresh(registry=registry, settings=settings)


def run(
    kind: str,
    domain: str | None = None,
    *,
    params: dict[str, Any] | None = None,
    registry: Registry,
    settings: Settings,
    by: str,
    run_id: str | None = None,
    on_progress: OnProgress | None = None,
    call: Call = runner.call_directly,
) -> Run:
    """Run all steps of a kind of run in this process; the same ``run_id`` continues where it stopped.

    Args:
        params: choices of the recipe, or of the preview's size.
        call: how each step is called; Prefect calls it as a task.

    Raises:
        UnknownDomain: no such domain.
        IllegalTransition: the domain is retired.
        Rejected: it is a source, which has no launches of its own.
        NotEnoughData: it has no data yet, or there are too few rows to train on or to compare.
        whatever else a step raises, after the run is recorded as failed.
    """
    _check_runnable(domain, registry)
    keep_freed_memory()
    if settings.threads:
        import torch

        torch.set_num_threads(settings.threads)
    context = RunContext(
        run_id=run_id or runner.new_run_id(kind),
        kind=kind,
        domain=domain,
        params=params or {},
        by=by,
        registry=registry,
        settings=settings,
        on_progress=on_progress,
    )
    return runner.execute(steps(kind), context, call=call)


def start(
    kind: str,
    domain: str | None = None,
    *,
    params: dict[str, Any] | None = None,
    registry: Registry,
    settings: Settings,
    by: str,
    local: bool = False,
) -> Run:
    """Start a run and return at once: on the Prefect worker, or with ``local`` in a thread of this process.

    Raises:
        UnknownDomain: no such domain.
        IllegalTransition: the domain is retired.
        Rejected: it is a source, which has no launches of its own.
        NotEnoughData: it has no data yet.
        FlowsUnavailable: no Prefect server answers.
    """
    _check_runnable(domain, registry)
    arguments: dict[str, Any] = {"run_id": runner.new_run_id(kind), "by": by, "params": params or {}}
    started = registry.start_run(kind, domain, params=arguments["params"], by=by, run_id=arguments["run_id"])
    if local:

        def work() -> None:
            with contextlib.suppress(Exception):  # the run's record says what went wrong
                run(kind, domain, registry=registry, settings=settings, **arguments)

        threading.Thread(target=work, daemon=True, name=started.id).start()
        return started
    if domain is not None:
        arguments["domain"] = domain
    try:
        asked: dict[str, Any] = {"name": started.id, "patience_s": settings.prefect_patience_s}
        flow_run_id = prefect_client.create_flow_run(f"{kind}/{kind}", arguments, api_url=settings.prefect_api, **asked)
    except Unavailable as error:
        registry.finish_run(started.id, state="failed", error=as_line(error))
        raise
    registry.link_flow_run(started.id, flow_run_id)
    return registry.run(started.id)


def _check_runnable(name: str | None, registry: Registry) -> None:
    """Refuse at once what would fail later: only targets with data are launched or previewed, and no retired ones."""
    if name is None:
        return
    domain = registry.domain(name)
    if domain.role == "source":
        raise Rejected(f"{name!r} is a source: train the shared model on it, and launch a target", domain=name)
    if domain.state is State.RETIRED:
        raise IllegalTransition(f"{name!r} is retired; nothing is trained for it any more", domain=name)
    if not domain.counts.get("rows_added"):
        raise NotEnoughData(f"domain {name!r} has no interactions yet; ingest some first", domain=name)


def train_shared(
    *, registry: Registry, settings: Settings, by: str, run_id: str | None = None, **recipe: Any
) -> Version:
    """Train the shared model in this process and publish it."""
    done = run("train-shared", params=recipe, registry=registry, settings=settings, by=by, run_id=run_id)
    return registry.version(results.version_of(done))


def launch(
    name: str,
    *,
    registry: Registry,
    settings: Settings,
    by: str,
    run_id: str | None = None,
    kind: str = "launch-domain",
    **recipe: Any,
) -> Version:
    """Fine-tune a domain's adapter in this process and put it to the gate; promotion is a separate decision.

    The decision in the version's report says whether it may go live, and why.
    """
    done = run(kind, name, params=recipe, registry=registry, settings=settings, by=by, run_id=run_id)
    return registry.version(results.version_of(done))


def cancel(run_id: str, *, registry: Registry, settings: Settings, by: str) -> Run:
    """Stop a run on the Prefect worker; its checkpoints stay, so that starting it again continues it.

    Raises:
        UnknownRun: no such run.
        Conflict: it runs outside Prefect, in a process that only its owner can stop.
        FlowsUnavailable: Prefect does not answer.
    """
    if (run := registry.run(run_id)).state in FINISHED:
        return run
    if run.flow_run_id is None:
        raise Conflict(f"run {run_id} is running in the process that started it; stop that process", run=run_id)
    prefect_client.cancel(run.flow_run_id, api_url=settings.prefect_api)
    registry.note(by, "cancel_run", run.domain, run_id=run_id, before=run.state, after="stopping")
    return registry.run(run_id)


def rank(
    name: str,
    *,
    user_id: str,
    item_ids: list[str],
    settings: Settings,
    top_k: int | None = None,
    timeout_s: float = 10.0,
) -> dict[str, Any]:
    """Ask the running service for a ranking, as any caller would.

    Raises:
        Unavailable: the service does not answer.
        Refused: it refuses the request, with a code and the field at fault.
    """
    body: dict[str, Any] = {"user_id": user_id, "items": [{"item_id": item} for item in item_ids]}
    body |= {} if top_k is None else {"top_k": top_k}
    try:
        path, headers = f"/v1/domains/{quote(name, safe='')}/rank", settings.service_headers
        answer = httpx.post(settings.service_url + path, json=body, timeout=timeout_s, headers=headers)
    except httpx.HTTPError as fault:
        raise Unavailable(
            f"the prediction service at {settings.service_url} does not answer; `graft up` starts it ({fault})"
        ) from fault
    try:
        said = answer.json()
        error = said["error"] if answer.status_code >= 400 else None
    except (ValueError, KeyError, TypeError):
        place = f"{settings.service_url} answers with {answer.status_code}"
        raise Unavailable(f"what {place} is not the prediction service (GRAFT_SERVICE_PORT)") from None
    if error is not None:
        raise Refused(error["message"], code=error["code"], details=error.get("details"), field=error.get("field"))
    return said
