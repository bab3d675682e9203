"""One function per story. Each names what it touches as keyword arguments and can be called again without harm.

The command line, the pages, the flows and the tests all come through here.
"""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from domains.errors import Conflict, NotEnoughData, PromotionRefused, UnknownVersion
from domains.events import readiness as reading
from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.events.readiness import Readiness
from domains.ingestion import ingest as ingesting
from domains.ingestion.ingest import IngestReport
from domains.registry.records import FINISHED
from domains.registry.registry import Domain, Promotion, Registry, Run, Version
from domains.spec import DomainSpec
from orchestrator import prefect_client
from orchestrator.errors import Refused, Unavailable
from orchestrator.evaluation import gate
from orchestrator.jobs import runner
from orchestrator.jobs.runner import OnProgress, RunContext, Step
from orchestrator.settings import Settings

KINDS = ("train-shared", "launch-domain", "retrain", "preview")


def steps(kind: str) -> tuple[Step, ...]:
    """The steps of a kind of run, in order."""
    # Imported here so that the pages and the command line, which only start runs, come up without torch.
    from orchestrator.jobs import launch as launching
    from orchestrator.jobs import preview
    from orchestrator.jobs import train_shared as shared_training

    if kind == "preview":
        return preview.STEPS
    gather, *_, refresh = shared_training.STEPS
    if kind == "train-shared":
        return shared_training.STEPS
    launched = (gather, *launching.STEPS, refresh)
    return (*launched, launching.GO_LIVE) if kind == "retrain" else launched


def register(spec: DomainSpec, *, registry: Registry, by: str) -> Domain:
    """Put a domain on the books.

    Raises:
        DomainAlreadyRegistered: another spec holds the name; the same spec again is returned unchanged.
    """
    for source in spec.sources:
        registry.domain(source)
    return registry.register_domain(spec, by=by)


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
    """Validate files and add their good rows; bad rows are quarantined with file, line and reason.

    Args:
        truth: a simulated domain's true click probabilities, kept beside its data for the "best reachable" row.

    Raises:
        InvalidData: a file is unreadable or wrong as a whole; nothing was added.
    """
    domain = registry.domain(name)
    run = registry.start_run(
        "ingest",
        name,
        params={"interactions": [str(path) for path in interactions]},
        by=by,
        run_id=runner.new_run_id("ingest"),
    )

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
            _keep_truth(truth, settings.data_dir / "domains" / name / "truth.parquet")
        # All of them: one that was killed after publishing its rows is recorded by the next.
        for published in DomainData(settings.data_dir, name).ingests():
            registry.record_ingest(name, published.ingest_id, published.as_dict(), by=by)
    except BaseException as error:
        registry.finish_run(run.id, state="failed", error=str(error) or type(error).__name__)
        raise
    registry.finish_run(run.id, state="succeeded", result=report.as_dict())
    return report


def readiness(name: str, *, registry: Registry, settings: Settings) -> Readiness:
    """What a domain still lacks before it can launch, and what its sources could lend it."""
    domain = registry.domain(name)
    sources = [other.name for other in registry.domains() if other.role == "source"]
    return reading.assess(domain.spec, settings.data_dir, sources=sources)


def preview(
    name: str,
    *,
    registry: Registry,
    settings: Settings,
    by: str,
    run_id: str | None = None,
    on_progress: OnProgress | None = None,
    **size: Any,
) -> dict[str, Any]:
    """Short runs before any launch: what each source gives, and how much data until the adapter is ahead.

    Takes minutes. The result is kept with the run; ``latest_preview`` reads it.

    Raises:
        NotEnoughData: the domain, or all of its sources, have too few rows to tell anything.
    """
    registry.domain(name)
    return _execute("preview", name, size, registry, settings, by, run_id, on_progress).result


def latest_preview(name: str, *, registry: Registry) -> dict[str, Any] | None:
    """What the newest finished preview of a domain found; None before the first."""
    done = (run for run in registry.runs(name, limit=1000) if run.kind == "preview" and run.state == "succeeded")
    newest = max(done, key=lambda run: run.started_at, default=None)
    return None if newest is None else newest.result


def report_page(name: str, version_id: str | None = None, *, registry: Registry) -> tuple[Version, str]:
    """A version's cold-start report as one HTML file; the newest one that a launch made where none is named.

    Raises:
        UnknownVersion: no launch has made one, or the one named belongs elsewhere or came out of shared training.
    """
    from orchestrator.evaluation import html as page

    spec = registry.domain(name).spec
    judged = {version.id: version for version in registry.versions(name, "adapter") if "rows" in version.report}
    if version_id is None:
        if not judged:
            raise UnknownVersion(f"no launch of {name!r} has made a version to report on; launch it first", domain=name)
        version_id = max(judged.values(), key=lambda version: version.created_at).id
    elif version_id not in judged:
        raise UnknownVersion(f"domain {name!r} has no version {version_id[:12]!r} with a cold-start report")
    version = judged[version_id]
    return version, page.render(version, baseline=gate.baseline_of(version.report, spec.gate))


def build_features(*, registry: Registry, settings: Settings, on_progress: OnProgress | None = None) -> None:
    """Bring histories and online features up to date with all ingested events."""
    from orchestrator.data import online

    held = [(domain.spec, domain.number) for domain in registry.domains() if domain.counts.get("rows_added")]
    if not held:
        raise NotEnoughData("no domain has data yet; ingest some first")
    Histories.build(settings.data_dir, held)
    online.refresh(registry=registry, settings=settings)


def train_shared(
    *,
    registry: Registry,
    settings: Settings,
    by: str,
    run_id: str | None = None,
    on_progress: OnProgress | None = None,
    **recipe: Any,
) -> Version:
    """Train the shared model and publish it; the same ``run_id`` continues where it stopped."""
    run = _execute("train-shared", None, recipe, registry, settings, by, run_id, on_progress)
    return registry.version(run.result["version"])


def launch(
    name: str,
    *,
    registry: Registry,
    settings: Settings,
    by: str,
    run_id: str | None = None,
    on_progress: OnProgress | None = None,
    kind: str = "launch-domain",
    **recipe: Any,
) -> Version:
    """Fine-tune a domain's adapter and bring it before the gate; promotion is a separate decision.

    The version's ``report["decision"]`` says ship or hold and why.
    """
    registry.domain(name)
    run = _execute(kind, name, recipe, registry, settings, by, run_id, on_progress)
    return registry.version(run.result["version"])


def promote(name: str, version_id: str | None = None, *, registry: Registry, who: str, why: str) -> Promotion:
    """Put a challenger in front of users; the newest one where no version is named.

    Raises:
        PromotionRefused: the gate held it back, or it is no version of this domain.
        StalePromotion: another version went live meanwhile.
    """
    registry.domain(name)
    versions = [version for version in registry.versions(name, "adapter") if version.level == "adapter"]
    if version_id is None:
        if not versions:
            raise UnknownVersion(f"domain {name!r} has no trained version to promote; launch it first", domain=name)
        version = max(versions, key=lambda candidate: candidate.created_at)
    else:
        version = registry.version(version_id)
    if version.domain != name:
        raise PromotionRefused(f"version {version.id[:12]} belongs to {version.domain!r}, not to {name!r}", domain=name)
    decision = version.report.get("decision")
    if decision is not None and not decision["promote"]:
        raise PromotionRefused(
            f"version {version.id[:12]} may not go live: " + "; ".join(decision["reasons"]),
            domain=name,
            reasons=decision["reasons"],
        )
    live = registry.live(name)
    return registry.promote(name, version.id, expect=live.version_id if live else None, who=who, why=why)


def roll_back(name: str, *, registry: Registry, who: str, why: str, expect: str | None = None) -> Promotion:
    """Point a domain back at the version that was live before, in one step.

    Args:
        expect: the live version that the caller saw; two people who press at once then go back once, not twice.

    Raises:
        StalePromotion: another version is live than ``expect``.
    """
    registry.domain(name)
    return registry.roll_back(name, who=who, why=why, expect=expect)


def start(
    kind: str,
    *,
    domain: str | None = None,
    params: dict[str, Any] | None = None,
    registry: Registry,
    settings: Settings,
    by: str,
    local: bool = False,
) -> Run:
    """Start a run and return at once: on the Prefect worker, or with ``local`` in a thread of this process.

    Raises:
        FlowsUnavailable: no Prefect server answers.
    """
    if domain is not None:
        registry.domain(domain)
    params = params or {}
    run_id = runner.new_run_id(kind)
    if local:
        run = registry.start_run(kind, domain, params=params, by=by, run_id=run_id)
        threading.Thread(
            target=_execute_quietly,
            args=(kind, domain, params, registry, settings, by, run_id),
            daemon=True,
            name=run_id,
        ).start()
        return run
    run = registry.start_run(kind, domain, params=params, by=by, run_id=run_id)
    arguments: dict[str, Any] = {"run_id": run_id, "by": by, "params": params}
    if domain is not None:
        arguments["domain"] = domain
    try:
        flow_run_id = prefect_client.create_flow_run(
            f"{kind}/{kind}", arguments, api_url=settings.prefect_url, name=run_id, idempotency_key=run_id
        )
    except Unavailable as error:
        registry.finish_run(run_id, state="failed", error=str(error))
        raise
    registry.link_flow_run(run_id, flow_run_id)
    return registry.run(run_id)


def cancel(run_id: str, *, registry: Registry, settings: Settings) -> Run:
    """Stop a run that goes on at the Prefect worker; its checkpoints stay, so starting it again continues.

    Raises:
        UnknownRun: no such run.
        Conflict: it goes on in some other process without Prefect, which alone can end it.
        FlowsUnavailable: Prefect does not answer.
    """
    run = registry.run(run_id)
    if run.state in FINISHED:
        return run
    if run.flow_run_id is None:
        raise Conflict(f"run {run_id} goes on in the process that started it; stop that process", run=run_id)
    prefect_client.cancel(run.flow_run_id, api_url=settings.prefect_url)
    return registry.run(run_id)


def level(name: str, *, registry: Registry) -> str:
    """What a domain's answers rest on now: ``prior``, ``zero_shot`` or ``adapter``.

    A source domain has no pointer of its own: its slot is part of the live shared model.
    """
    domain, live = registry.domain(name), registry.live(name)
    if domain.state == "paused":
        return "prior"
    if live is None and domain.role == "source":
        backbone = registry.live(None)
        known = backbone is not None and name in registry.version(backbone.version_id).metrics
        return "adapter" if known else "prior"
    return "prior" if live is None else registry.version(live.version_id).level or "adapter"


def prune(*, registry: Registry, settings: Settings, days: float | None = None) -> int:
    """Delete answers and feedback older than so many days, the setting's where none are named; says how many rows.

    Raises:
        ValueError: no number of days is named, here or by the setting.
    """
    days = settings.keep_predictions_days if days is None else days
    if days <= 0:
        raise ValueError("say how many days of answers to keep: --days, or the setting GRAFT_KEEP_PREDICTIONS_DAYS")
    return registry.forget_answers(datetime.now(UTC) - timedelta(days=days))


def sample_users(name: str, *, settings: Settings, registry: Registry, most: int = 50) -> list[dict[str, Any]]:
    """Users to try in the playground: some with long histories, some with short ones, some new to the domain."""
    data = DomainData(settings.data_dir, name)
    table = data.interactions()
    users = np.unique(table["user"].to_numpy())
    store = Histories.open(settings.data_dir).source
    random = np.random.default_rng(0)
    users = random.permutation(users)[: most * 4]
    now = np.full(len(users), np.iinfo(np.int64).max)
    start_, stop = store.window(users, now, 2000)
    events = stop - start_
    order = np.argsort(-events)[np.linspace(0, len(users) - 1, min(most, len(users))).astype(int)]
    vocabulary = data.user_vocabulary
    return [{"user_id": vocabulary.name(int(users[at])), "source_events": int(events[at])} for at in order]


def recent_events(user_id: str, *, settings: Settings, registry: Registry, most: int = 20) -> list[dict[str, Any]]:
    """A user's latest source events, newest first, in words."""
    domains = {domain.number: domain.name for domain in registry.domains()}
    store = Histories.open(settings.data_dir).source
    first = next(iter(domains.values()))
    user = int(DomainData(settings.data_dir, first).user_vocabulary.index([user_id])[0])
    if user == 0:
        return []
    seen = store.history(user, np.iinfo(np.int64).max, most)
    names = {name: DomainData(settings.data_dir, name).item_vocabulary for name in set(domains.values())}
    return [
        {
            "domain": domains[int(number)],
            "item_id": names[domains[int(number)]].name(int(item)),
            "time_us": int(time_us),
            "value": float(value),
        }
        for number, item, time_us, value in zip(
            seen.domain[::-1], seen.item[::-1], seen.time_us[::-1], seen.value[::-1], strict=True
        )
    ]


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
        Refused: it answers no, with the code and the field that it named.
    """
    body: dict[str, Any] = {"user_id": user_id, "items": [{"item_id": item} for item in item_ids]}
    if top_k is not None:
        body["top_k"] = top_k
    try:
        answer = httpx.post(f"{settings.service_url}/v1/domains/{name}/rank", json=body, timeout=timeout_s)
    except httpx.HTTPError as error:
        raise Unavailable(f"the prediction service at {settings.service_url} does not answer: {error}") from error
    if answer.status_code >= 400:
        told = answer.json()["error"]
        raise Refused(told["message"], code=told["code"], details=told.get("details"), field=told.get("field"))
    return answer.json()


def _execute(
    kind: str,
    domain: str | None,
    params: dict[str, Any],
    registry: Registry,
    settings: Settings,
    by: str,
    run_id: str | None,
    on_progress: OnProgress | None = None,
) -> Run:
    context = RunContext(
        run_id=run_id or runner.new_run_id(kind),
        kind=kind,
        domain=domain,
        params=params,
        by=by,
        registry=registry,
        settings=settings,
        on_progress=on_progress,
    )
    return runner.execute(steps(kind), context)


def _execute_quietly(*arguments: Any) -> None:
    try:
        _execute(*arguments)
    except Exception:
        return


def _keep_truth(truth: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_name(f".{kept.name}.{uuid.uuid4().hex}")
    shutil.copyfile(truth, temporary)
    os.replace(temporary, kept)


__all__ = [
    "KINDS",
    "build_features",
    "cancel",
    "ingest_data",
    "latest_preview",
    "launch",
    "level",
    "preview",
    "promote",
    "prune",
    "rank",
    "readiness",
    "recent_events",
    "register",
    "report_page",
    "roll_back",
    "sample_users",
    "start",
    "steps",
    "train_shared",
]
