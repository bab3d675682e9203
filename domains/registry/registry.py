"""The registry: what exists, what runs, what answers, and who changed it when.

Each verb is one transaction that gives frozen values back; rows never leave. Every verb is safe to repeat, and safe to
race: writers take turns, and a pointer moves only by compare-and-set (docs/decisions/0002-registry.md). Lists come
newest first unless they say otherwise.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, insert, select, text, update

from domains.errors import (
    Conflict,
    DomainAlreadyRegistered,
    IllegalTransition,
    InvalidSpec,
    NoLiveVersion,
    PromotionRefused,
    Rejected,
    StalePromotion,
)
from domains.lifecycle import State, check_move
from domains.registry import migrations, prediction_log
from domains.registry.database import Database, advance, now
from domains.registry.records import FINISHED, Domain, Live, Promotion, Run, RunState, Version, VersionKind
from domains.registry.rows import (
    BACKBONE_SLOT,
    added_counts,
    as_domain,
    as_live,
    as_promotion,
    as_run,
    domain_row,
    note,
    pointer_row,
    row_of,
    version_of,
)
from domains.registry.tables import audit, domains, ingests, live, promotions, runs, versions
from domains.spec import DomainSpec


class Registry:
    """The registry in the database at ``url``; threads may share one, processes each build their own.

    ``generation`` grows with every change that a server must notice: a pointer that moves, a domain registered or
    changed, a state, new data. Servers poll it and read the rest only when it has grown.

    Raises:
        DomainFault: the URL names neither SQLite nor PostgreSQL.
    """

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    def migrate(self) -> None:
        """Create the tables or bring them up to date; cheap when there is nothing to do, safe to race."""
        with self._database.change_tables() as connection:
            migrations.upgrade(connection)

    def close(self) -> None:
        """Let go of the connections; the next verb opens new ones."""
        self._database.engine.dispose()

    # Domains

    def register_domain(self, spec: DomainSpec, *, by: str) -> Domain:
        """Take the name for this spec; the same spec again gives the domain as it stands.

        Raises:
            DomainAlreadyRegistered: another spec holds the name.
            InvalidSpec: a source that it borrows from is registered as a target.
        """
        with self._database.write() as connection:
            held = connection.execute(select(domains).where(domains.c.name == spec.name)).one_or_none()
            if held is not None:
                domain = as_domain(held)
                if domain.spec == spec:
                    return domain
                raise DomainAlreadyRegistered(
                    f"{spec.name!r} is already registered, by {domain.owner}; choose another name or update its spec",
                    name=spec.name,
                    owner=domain.owner,
                )
            _check_sources(connection, spec)
            row = {
                "number": advance(connection, "domain_number"),
                "name": spec.name,
                "role": spec.role,
                "state": State.REGISTERED,
                "spec": spec.model_dump(mode="json"),
                "counts": {},
                "created_at": now(),
                "created_by": by,
            }
            connection.execute(insert(domains).values(row))
            note(connection, by, "register_domain", spec.name)
            advance(connection, "generation")
            return as_domain(domain_row(connection, spec.name))

    def update_spec(self, spec: DomainSpec, *, by: str) -> Domain:
        """Replace the spec of a registered domain; its role and its task are for life.

        Raises:
            UnknownDomain: no domain has the spec's name.
            InvalidSpec: the role or the task differs, or a source is registered as a target.
            IllegalTransition: the domain is retired.
        """
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, spec.name))
            if held.spec == spec:
                return held
            if held.state is State.RETIRED:
                raise IllegalTransition(f"{spec.name!r} is retired; its spec stands as it was", name=spec.name)
            for field in ("role", "task"):
                before, after = getattr(held.spec, field), getattr(spec, field)
                if before != after:
                    raise InvalidSpec(
                        f"{field}: is {before} for the life of {spec.name!r}; register {after} under another name",
                        field=field,
                    )
            _check_sources(connection, spec)
            written = spec.model_dump(mode="json")
            connection.execute(update(domains).where(domains.c.name == spec.name).values(spec=written))
            note(connection, by, "update_spec", spec.name, before=held.spec.model_dump(mode="json"), after=written)
            advance(connection, "generation")
            return as_domain(domain_row(connection, spec.name))

    def domain(self, name: str) -> Domain:
        """Raises UnknownDomain, with the nearest name."""
        with self._database.read() as connection:
            return as_domain(domain_row(connection, name))

    def domains(self) -> list[Domain]:
        """All domains, retired ones too, by number."""
        with self._database.read() as connection:
            return [as_domain(row) for row in connection.execute(select(domains).order_by(domains.c.number))]

    def move(self, name: str, to: State, *, by: str, why: str = "") -> Domain:
        """Move a domain through its lifecycle; nothing happens where it already is.

        Raises:
            UnknownDomain: no such domain.
            IllegalTransition: the lifecycle has no such move, or nothing is live in a domain that is to be live.
        """
        to = State(to)
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, name))
            if held.state is to:
                return held
            if to is State.LIVE and pointer_row(connection, name) is None:
                raise IllegalTransition(
                    f"{name!r} has no live version; promote one, which makes it live", current=held.state, wanted=to
                )
            _move(connection, held, to, by=by, why=why)
            advance(connection, "generation")
            return as_domain(domain_row(connection, name))

    def record_ingest(self, name: str, ingest_id: str, report: dict[str, Any], *, by: str = "ingest") -> None:
        """Add an ingest's report to the domain's counts, once; the first rows make the domain ready for training.

        Raises UnknownDomain.
        """
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, name))
            of_this = (ingests.c.domain == name) & (ingests.c.ingest_id == ingest_id)
            if connection.execute(select(ingests.c.at).where(of_this)).one_or_none() is not None:
                return
            connection.execute(insert(ingests).values(domain=name, ingest_id=ingest_id, report=report, at=now()))
            counts = added_counts(held.counts, report)
            connection.execute(update(domains).where(domains.c.name == name).values(counts=counts))
            note(connection, by, "record_ingest", name, ingest_id=ingest_id)
            if held.state is State.REGISTERED and counts.get("rows_added", 1) > 0:
                _move(connection, held, State.DATA_READY, by=by, why="data ingested")
            advance(connection, "generation")

    def ingests(self, name: str) -> list[dict[str, Any]]:
        """The reports of a domain's ingests, each with its ``ingest_id`` and ``at``. Raises UnknownDomain."""
        with self._database.read() as connection:
            domain_row(connection, name)
            found = connection.execute(select(ingests).where(ingests.c.domain == name).order_by(ingests.c.at.desc()))
            return [{**row.report, "ingest_id": row.ingest_id, "at": row.at} for row in found]

    # Runs

    def start_run(
        self,
        kind: str,
        domain: str | None,
        *,
        params: dict[str, Any],
        by: str,
        run_id: str | None = None,
        state: RunState = "running",
    ) -> Run:
        """Record that a run begins (or waits, with ``state="queued"``).

        The same ``run_id`` again resumes that run: it is running once more, its progress and its times stand.

        Raises:
            UnknownDomain: no such domain.
            Conflict: the id belongs to a run of another kind or domain.
        """
        run_id = run_id or uuid4().hex
        with self._database.write() as connection:
            held = connection.execute(select(runs).where(runs.c.id == run_id)).one_or_none()
            if held is None:
                if domain is not None:
                    domain_row(connection, domain)
                row: dict[str, Any] = {"id": run_id, "kind": kind, "domain": domain, "state": state, "progress": 0.0}
                row |= {"step": "", "detail": {}, "params": params, "result": {}, "started_at": now(), "started_by": by}
                connection.execute(insert(runs).values(row))
                note(connection, by, "start_run", domain, run_id=run_id, kind=kind)
            elif (held.kind, held.domain) != (kind, domain):
                raise Conflict(f"run {run_id!r} is {held.kind} of {held.domain}, not {kind} of {domain}", run_id=run_id)
            else:
                resumed = {"state": state, "error": None, "finished_at": None}
                connection.execute(update(runs).where(runs.c.id == run_id).values(resumed))
                if held.state in FINISHED:
                    note(connection, by, "resume_run", domain, run_id=run_id, was=held.state)
            return as_run(row_of(connection, runs, run_id))

    def report_progress(self, run_id: str, fraction: float, step: str, **detail: Any) -> None:
        """Say how far a run is (0 to 1) and what it does; ``detail`` is added to what was reported before.

        A run that has ended stays as it ended. Raises UnknownRun.
        """
        with self._database.write() as connection:
            held = row_of(connection, runs, run_id)
            if held.state in FINISHED:
                return
            progress = min(max(float(fraction), 0.0), 1.0) if math.isfinite(fraction) else held.progress
            change = {"progress": progress, "step": step, "detail": {**held.detail, **detail}}
            connection.execute(update(runs).where(runs.c.id == run_id).values(change))

    def finish_run(
        self, run_id: str, *, state: RunState, result: dict[str, Any] | None = None, error: str | None = None
    ) -> Run:
        """End a run. The first end stands: a crash hook that fires late changes nothing.

        Raises UnknownRun, and Rejected when ``state`` is not an end.
        """
        if state not in FINISHED:
            raise Rejected(f"a run ends {', '.join(FINISHED)}, not {state}")
        with self._database.write() as connection:
            held = row_of(connection, runs, run_id)
            if held.state not in FINISHED:
                progress = 1.0 if state == "succeeded" else held.progress
                end = {"state": state, "result": result or {}, "error": error, "finished_at": now()}
                connection.execute(update(runs).where(runs.c.id == run_id).values(progress=progress, **end))
                note(connection, held.started_by, "finish_run", held.domain, run_id=run_id, state=state, error=error)
            return as_run(row_of(connection, runs, run_id))

    def link_flow_run(self, run_id: str, flow_run_id: str) -> None:
        """Note which flow run of the scheduler executes a run. Raises UnknownRun."""
        with self._database.write() as connection:
            row_of(connection, runs, run_id)
            connection.execute(update(runs).where(runs.c.id == run_id).values(flow_run_id=flow_run_id))

    def run(self, run_id: str) -> Run:
        """Raises UnknownRun."""
        with self._database.read() as connection:
            return as_run(row_of(connection, runs, run_id))

    def runs(self, domain: str | None = None, limit: int = 50) -> list[Run]:
        """The latest runs, of one domain or of all."""
        chosen = select(runs).order_by(runs.c.started_at.desc(), runs.c.id).limit(limit)
        if domain is not None:
            chosen = chosen.where(runs.c.domain == domain)
        with self._database.read() as connection:
            return [as_run(row) for row in connection.execute(chosen)]

    # Versions

    def add_version(self, version: Version) -> Version:
        """Record a trained artifact; the same id again gives what is recorded.

        Raises:
            UnknownDomain, UnknownVersion: its domain or its backbone is not recorded.
            Conflict: the id is recorded as another kind, domain, backbone or level.
            Rejected: an adapter must name its domain and its backbone, and a backbone neither.
        """
        if (version.kind == "adapter") != (version.domain is not None) or (version.kind == "adapter") != (
            version.backbone_id is not None
        ):
            raise Rejected("an adapter names its domain and its backbone; a backbone names neither", id=version.id)
        with self._database.write() as connection:
            row = connection.execute(select(versions).where(versions.c.id == version.id)).one_or_none()
            if row is None:
                if version.domain is not None:
                    domain_row(connection, version.domain)
                if version.backbone_id is not None and version_of(connection, version.backbone_id).kind != "backbone":
                    raise Rejected(f"{version.backbone_id!r} is not a backbone", id=version.id)
                connection.execute(insert(versions).values(asdict(version)))
                note(connection, version.created_by, "add_version", version.domain, id=version.id, kind=version.kind)
            held = version_of(connection, version.id)
            for field in ("kind", "domain", "backbone_id", "level"):
                if getattr(held, field) != getattr(version, field):
                    raise Conflict(f"version {version.id!r} is recorded with another {field}", id=version.id)
            return held

    def reevaluate(
        self,
        id: str,
        *,
        metrics: dict[str, Any],
        report: dict[str, Any],
        certificate: dict[str, Any],
        config: dict[str, Any],
        by: str,
    ) -> Version:
        """Put a newer report and its choices in place of a version's own: the same weights came out of a launch again.

        Raises:
            UnknownVersion: no such version.
        """
        with self._database.write() as connection:
            held = version_of(connection, id)
            judged = {"metrics": metrics, "report": report, "certificate": certificate, "config": config}
            connection.execute(update(versions).where(versions.c.id == id).values(judged))
            before = (held.report.get("decision") or {}).get("verdict")
            after = (report.get("decision") or {}).get("verdict")
            note(connection, by, "reevaluate", held.domain, id=id, before=before, after=after)
            return version_of(connection, id)

    def version(self, id: str) -> Version:
        """Raises UnknownVersion."""
        with self._database.read() as connection:
            return version_of(connection, id)

    def versions(self, domain: str | None = None, kind: VersionKind | None = None) -> list[Version]:
        """All versions, or those of one domain, or of one kind."""
        chosen = select(versions).order_by(versions.c.created_at.desc(), versions.c.id)
        if domain is not None:
            chosen = chosen.where(versions.c.domain == domain)
        if kind is not None:
            chosen = chosen.where(versions.c.kind == kind)
        with self._database.read() as connection:
            return [Version(**row._mapping) for row in connection.execute(chosen)]

    # What answers

    def generation(self) -> int:
        """One indexed read of one number: made to be polled."""
        with self._database.read() as connection:
            return int(connection.execute(_GENERATION).scalar_one())

    def live(self, domain: str | None) -> Live | None:
        """What answers in a domain, or with None the shared model; None when nothing does."""
        with self._database.read() as connection:
            row = pointer_row(connection, domain)
            return None if row is None else as_live(row)

    def lives(self) -> list[Live]:
        """Every pointer, those of paused and retired domains too: their state says that they do not answer."""
        with self._database.read() as connection:
            return [as_live(row) for row in connection.execute(select(live).order_by(live.c.slot))]

    def promote(self, domain: str | None, version_id: str, *, expect: str | None, who: str, why: str) -> Promotion:
        """Put a version in front of users if ``expect`` (None: nothing) is still what is live.

        The domain's state becomes live, unless the version is a zero-shot one: then it stays.

        Promoting what is already live gives the flip that made it so, whatever is expected: a call whose answer was
        lost can be repeated.

        Raises:
            StalePromotion: another version went live meanwhile; evaluate again.
            PromotionRefused: the version belongs to another domain, or is not of the right kind.
            UnknownDomain, UnknownVersion: not recorded.
            IllegalTransition: the domain has no data yet, or is retired.
        """
        with self._database.write() as connection:
            held = None if domain is None else as_domain(domain_row(connection, domain))
            version = version_of(connection, version_id)
            if version.domain != domain:
                owner = "the shared model" if version.domain is None else f"domain {version.domain!r}"
                raise PromotionRefused(f"version {version_id!r} is one of {owner}", domain=domain, version=version_id)
            before = pointer_row(connection, domain)
            current = None if before is None else before.version_id
            if before is not None and current == version_id:
                # It may have left the live state meanwhile, for instance to train again.
                if _enter_live(connection, held, version, who=who, why=why):
                    advance(connection, "generation")
                return as_promotion(row_of(connection, promotions, before.flipped_by))
            if current != expect:
                raise StalePromotion(
                    f"{current or 'nothing'} is live in {domain or 'the shared model'}, not {expect or 'nothing'};"
                    " evaluate again",
                    domain=domain,
                    live=current,
                    expected=expect,
                )
            _enter_live(connection, held, version, who=who, why=why)
            rests_on = None if before is None else before.rests_on
            return _flip(connection, domain, current, version_id, who, why, kind="promote", below=rests_on)

    def roll_back(self, domain: str | None, *, who: str, why: str, expect: str | None = None) -> Promotion:
        """Return to the version that was live before, in one step; again: one further back.

        The domain's state stays. With ``expect``, only if that version is still live, so that two people who press the
        button at once go one back and not two.

        Raises:
            NoLiveVersion: nothing is live, or nothing was before it.
            StalePromotion: ``expect`` is no longer live.
            UnknownDomain: no such domain.
            IllegalTransition: the domain is retired.
        """
        with self._database.write() as connection:
            if domain is not None and domain_row(connection, domain).state == State.RETIRED:
                raise IllegalTransition(f"{domain!r} is retired; nothing answers there", domain=domain)
            pointer = pointer_row(connection, domain)
            where = domain or "the shared model"
            if pointer is None:
                raise NoLiveVersion(f"nothing is live in {where}", domain=domain)
            if expect is not None and pointer.version_id != expect:
                raise StalePromotion(
                    f"{pointer.version_id} is live in {where}, not {expect}", domain=domain, live=pointer.version_id
                )
            below = row_of(connection, promotions, pointer.rests_on).rests_on
            if below is None:
                raise NoLiveVersion(f"no version was live in {where} before {pointer.version_id}", domain=domain)
            earlier = row_of(connection, promotions, below).to_version
            return _flip(connection, domain, pointer.version_id, earlier, who, why, kind="roll_back", below=below)

    def promotions(self, domain: str | None = None) -> list[Promotion]:
        """Every flip, of one domain or of all."""
        chosen = select(promotions).order_by(promotions.c.id.desc())
        if domain is not None:
            chosen = chosen.where(promotions.c.domain == domain)
        with self._database.read() as connection:
            return [as_promotion(row) for row in connection.execute(chosen)]

    def audit(self, domain: str | None = None, limit: int = 1000) -> list[dict[str, Any]]:
        """Who did what to which domain, when and why: dicts of id, at, who, what, domain, why, details."""
        chosen = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if domain is not None:
            chosen = chosen.where(audit.c.domain == domain)
        with self._database.read() as connection:
            return [dict(row._mapping) for row in connection.execute(chosen)]

    # What was answered, and what came of it

    def log_predictions(self, rows: list[dict[str, Any]]) -> None:
        """Keep what was answered; see ``prediction_log.log_predictions``."""
        if rows:
            prepared = prediction_log.prepare_predictions(rows)
            with self._database.write(lock="feedback") as connection:
                prediction_log.log_predictions(connection, prepared)

    def log_feedback(self, rows: list[dict[str, Any]]) -> int:
        """Keep what users did with it and count the new rows; see ``prediction_log.log_feedback``."""
        if not rows:
            return 0
        prepared = prediction_log.prepare_feedback(rows)
        with self._database.write(lock="feedback") as connection:
            return prediction_log.log_feedback(connection, prepared)

    def answered(self, request_ids: set[str]) -> dict[str, tuple[str, str]]:
        """The domain and the user of each of these requests that the log holds."""
        with self._database.read() as connection:
            return prediction_log.answered(connection, request_ids)

    def feedback(self, domain: str, after_id: int = 0, limit: int = 10_000) -> list[dict[str, Any]]:
        """Feedback joined with its prediction, oldest first, from after ``after_id``: page with the last ``id``."""
        with self._database.read() as connection:
            return prediction_log.feedback(connection, domain, after_id=after_id, limit=limit)

    def forget_answers(self, before: datetime, *, batch: int = 2_000) -> int:
        """Delete answers and feedback older than ``before``, some at a time so that no request waits; says how many.

        It may be stopped at any moment and goes on with the next call.
        """
        gone = 0
        with self._database.read() as connection:
            names = list(connection.execute(select(domains.c.name)).scalars())
        for domain in (*names, None):
            while True:
                with self._database.write(lock="feedback") as connection:
                    some = prediction_log.forget(connection, domain, before, limit=batch)
                gone += some
                if not some:
                    break
        return gone


_GENERATION = text("SELECT value FROM counters WHERE name = 'generation'")


def _check_sources(connection: Connection, spec: DomainSpec) -> None:
    """A source that is not registered yet may come later; one that is a target never becomes a source."""
    wrong = select(domains.c.name).where(domains.c.name.in_(spec.sources), domains.c.role != "source")
    for name in connection.execute(wrong).scalars():
        raise InvalidSpec(f"sources: {name!r} is registered as a target, so it lends nothing", field="sources")


def _move(connection: Connection, held: Domain, to: State, *, by: str, why: str) -> None:
    check_move(held.state, to)
    connection.execute(update(domains).where(domains.c.name == held.name).values(state=to.value))
    note(connection, by, "move", held.name, why=why, before=held.state.value, after=to.value)


def _enter_live(connection: Connection, held: Domain | None, version: Version, *, who: str, why: str) -> bool:
    """Move the domain of a promoted version to live, if it is not; says whether it moved.

    A zero-shot version answers, yet nothing was launched: the domain stays where it is.
    """
    if held is None or held.state is State.LIVE:
        return False
    check_move(held.state, State.LIVE)
    if version.level == "zero_shot":
        return False
    _move(connection, held, State.LIVE, by=who, why=why)
    return True


def _flip(
    connection: Connection,
    domain: str | None,
    before: str | None,
    after: str,
    who: str,
    why: str,
    *,
    kind: str,
    below: int | None,
) -> Promotion:
    """Move a pointer. ``below``: for a promotion what it rests on; for a roll back the promotion to stand on again."""
    moment, slot = now(), BACKBONE_SLOT if domain is None else domain
    flip: dict[str, Any] = {
        "domain": domain,
        "from_version": before,
        "to_version": after,
        "who": who,
        "why": why,
        "at": moment,
    }
    flip |= {"kind": kind, "rests_on": below}
    flip_id = connection.execute(insert(promotions).values(flip).returning(promotions.c.id)).scalar_one()
    pointer = {
        "version_id": after,
        "generation": advance(connection, "generation"),
        "since": moment,
        "flipped_by": flip_id,
        "rests_on": flip_id if kind == "promote" else below,
    }
    if before is None:
        connection.execute(insert(live).values(slot=slot, **pointer))
    else:
        connection.execute(update(live).where(live.c.slot == slot).values(pointer))
    note(connection, who, kind, domain, why=why, before=before, after=after)
    return as_promotion(row_of(connection, promotions, flip_id))
