"""What the command line shows: tables, reports, and runs with their progress."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from domains.errors import NotFound
from domains.events.readiness import Readiness
from domains.ingestion.ingest import IngestReport
from domains.registry.registry import Registry, Run
from models.intervals import Interval
from models.metrics import METRICS
from orchestrator import prefect_client, use_cases
from orchestrator.errors import DATABASE_AWAY, RunFailed, Unavailable, as_line
from orchestrator.evaluation.preview_report import PreviewReport
from orchestrator.evaluation.report import ColdStartReport, HeldOut
from orchestrator.evaluation.rows import ROWS
from orchestrator.evaluation.rows import label as row_label
from orchestrator.jobs.runner import OnProgress
from orchestrator.settings import Settings

RESUME_LIMIT_S = 150
"""How long a run may look ended before it counts as lost: the limit on heartbeats plus a restart."""

UNHEARD_LIMIT_S = 300
"""How long neither Prefect nor the registry may answer while somebody watches a run."""

MOST_WARNINGS = 20
"""Warnings of an ingest that are printed one by one."""
COLUMNS_IN_FILES = 132
"""Width of the output to a file or a pipe."""

console = Console()
if not console.is_terminal:
    console = Console(width=COLUMNS_IN_FILES)
errors = Console(stderr=True)


def say(line: str) -> None:
    """Print one line as it is."""
    console.print(line, highlight=False, markup=False, soft_wrap=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]], numeric: Iterable[str] = ()) -> None:
    """Print one table; ``numeric`` columns are aligned to the right."""
    numeric = set(numeric)
    console.print(title, style="italic", highlight=False, markup=False, soft_wrap=True)
    drawn = Table(header_style="bold")
    for column in columns:
        drawn.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(("" if cell is None else str(cell)) for cell in row))
    console.print(drawn)


def cold_start(domain: str, report: ColdStartReport) -> None:
    """What a launch found: a row per baseline, each metric with its 95 % interval; the gate's decision; the cost."""
    rows = report.rows
    order = [*(name for name in ROWS if name in rows), *(name for name in rows if name not in ROWS)]
    metrics = [METRICS[name] for name in rows[report.subject] if name in METRICS]
    headings = [metric.heading for metric in metrics]
    table(
        f"{domain}: {report.cold_users:,} cold users, {report.examples:,} examples (95 % intervals over users)",
        ["", *headings, "adapter gains"],
        (
            [
                row_label(name),
                *(_interval(rows[name].get(metric.name)) for metric in metrics),
                _interval(report.gain.get(name), signed=True),
            ]
            for name in order
        ),
        numeric=headings,
    )
    decision, cost = report.decision, report.cost
    console.print(f"gate: [bold]{decision.verdict}[/bold]; {escape('; '.join(decision.reasons))}", highlight=False)
    money = "" if cost.money is None else f", {cost.money:.4f} {cost.currency}".rstrip()
    minutes = cost.processor_seconds / 60
    seeds = report.required.seeds
    say(f"compared under {seeds} seed{'s' * (seeds > 1)}; {minutes:.1f} processor minutes{money}")


@contextmanager
def progress_bar(title: str) -> Iterator[OnProgress]:
    """A bar that a use case's ``on_progress`` moves."""
    with _bar() as bar:
        task = bar.add_task(title, total=1.0)

        def move(fraction: float, step: str = "", _detail: Mapping[str, Any] | None = None) -> None:
            bar.update(task, completed=fraction, description=f"{title}: {step}" if step else title)

        yield move
        bar.update(task, completed=1.0)


def run_to_end(
    kind: str,
    domain: str | None = None,
    *,
    params: dict[str, Any] | None = None,
    local: bool,
    registry: Registry,
    settings: Settings,
    by: str,
) -> Run:
    """Run something here or on the Prefect worker, with a bar of its progress. Ctrl-C only stops watching the worker.

    Raises:
        RunFailed: it failed on the worker or was cancelled.
        Unavailable: no Prefect server answers, or the flow run ended without reporting to the registry.
        whatever a step raises, when it runs here.
    """
    asked: dict[str, Any] = {"params": params, "registry": registry, "settings": settings, "by": by}
    if local:
        with progress_bar(" ".join(filter(None, [kind, domain]))) as on_progress:
            return use_cases.run(kind, domain, **asked, on_progress=on_progress)
    ended = _watch(use_cases.start(kind, domain, **asked), registry, settings)
    if ended.state != "succeeded":
        raise RunFailed(f"run {ended.id} {ended.state}: {ended.error or ended.step}")
    return ended


def _watch(run: Run, registry: Registry, settings: Settings) -> Run:
    title = " ".join(filter(None, [run.kind, run.domain]))
    lost = LostRun()
    with _bar() as bar:
        task = bar.add_task(f"{title}: waiting for the worker", total=1.0)
        while run.state in ("queued", "running"):
            bar.update(task, completed=run.progress, description=f"{title}: {run.step}" if run.step else None)
            time.sleep(0.3)
            try:
                run = registry.run(run.id)
                lost.look(run, settings)
            except DATABASE_AWAY:
                lost.unheard("the registry's database does not answer")
        if run.state == "succeeded":
            bar.update(task, completed=1.0, description=f"{title}: done")
    return run


class LostRun:
    """Tells a run that will not end from one whose Prefect server is being started again."""

    def __init__(self) -> None:
        self._looked_at, self._heard_at = 0.0, time.monotonic()
        self._ended_since: float | None = None

    def look(self, run: Run, settings: Settings) -> None:
        """Every five seconds, ask Prefect what has become of it.

        Raises:
            Unavailable: it ended, was not resumed and has not reported; or Prefect has not answered for minutes.
        """
        if run.flow_run_id is None or time.monotonic() - self._looked_at < 5 or run.state not in ("queued", "running"):
            return
        self._looked_at = now = time.monotonic()
        try:
            state = prefect_client.state(run.flow_run_id, api_url=settings.prefect_api)
        except (Unavailable, NotFound) as fault:
            self.unheard(as_line(fault))
            return
        self._heard_at = now
        # The supervisor starts a crashed run again: only one that stays ended is lost.
        self._ended_since = (self._ended_since or now) if state.final else None
        if self._ended_since is not None and now - self._ended_since > RESUME_LIMIT_S:
            raise Unavailable(f"Prefect says {state.name}: {state.message or 'no reason'}; run {run.id} did not end")

    def unheard(self, why: str) -> None:
        """Note that nothing is known of the run just now.

        Raises:
            Unavailable: nothing has been for minutes.
        """
        if time.monotonic() - self._heard_at > UNHEARD_LIMIT_S:
            raise Unavailable(f"{why}; the run may go on all the same, `graft runs` tells")


def domain_metrics(measured: Mapping[str, HeldOut]) -> None:
    """A shared model's metrics on each domain's held-out events, with the plain rows for comparison."""
    for domain, found in measured.items():
        if found.note is not None:
            say(f"{domain}: {found.note}")
    rows = [(domain, row, metrics) for domain, found in measured.items() for row, metrics in found.rows.items()]
    if not rows:
        return
    names = [name for name in METRICS if any(name in metrics for _, _, metrics in rows)]
    headings = [METRICS[name].label for name in names]
    table(
        "the shared model on each domain's held-out events (95 % intervals over users)",
        ["domain", "", *headings],
        (
            [domain, row.replace("_", " "), *(_interval(metrics.get(name)) for name in names)]
            for domain, row, metrics in rows
        ),
        numeric=headings,
    )


def ingest_report(report: IngestReport) -> None:
    """Rows read, added, already known and set aside, with the reasons; then what else the team should know."""
    console.print(
        f"{report.rows_read:,} rows read: {report.rows_added:,} added, {report.rows_duplicate:,} known already, "
        f"{report.rows_quarantined:,} set aside",
        highlight=False,
    )
    if report.rows_quarantined:
        for reason, count in sorted(report.reasons.items(), key=lambda pair: -pair[1]):
            say(f"  {count:,} x {reason}")
        say(f"  each with its file and line in {report.quarantine}")
    for warning in report.warnings[:MOST_WARNINGS]:
        say(f"  warning: {warning}")
    if len(report.warnings) > MOST_WARNINGS:
        say(f"  and {len(report.warnings) - MOST_WARNINGS:,} more warnings")


def readiness(domain: str, found: Readiness) -> None:
    """What a domain lacks, and other remarks on its data."""
    console.print(f"[bold]{domain} is {'not ready:' if found.missing else 'ready to launch'}[/bold]")
    for line in found.missing:
        say(f"  missing: {line}")
    for line in found.notes:
        say(f"  {line}")


def preview(report: PreviewReport) -> None:
    """What a preview found of the sources and of the data still needed."""
    table(
        f"{report.domain}: drop in {report.error} that each source brings, on {report.evaluation_users:,} users and "
        f"{report.evaluation_rows:,} rows (95 % intervals over runs and users)",
        ["source", "alone", "beside the others", "verdict"],
        (
            [found.name, _interval(found.alone, signed=True), _interval(found.beside, signed=True), found.verdict]
            for found in report.sources
        ),
        numeric=["alone", "beside the others"],
    )
    say(f"all of them together: {_interval(report.together, signed=True)}")
    curve = report.curve
    table(
        f"{report.error} on growing shares of its rows",
        ["rows", *(row_label(model) for model in curve.errors)],
        (
            [f"{rows:,.0f}", *(_interval(errors[point]) for errors in curve.errors.values())]
            for point, rows in enumerate(curve.rows)
        ),
        numeric=["rows"],
    )
    for baseline, needed in report.needed.items():
        low, rows, high = (needed_rows(part, curve.rows[0]) for part in (needed.low, needed.rows, needed.high))
        say(f"ahead of {row_label(baseline)} with {rows} (95 %: {low} to {high}) rows")
    test = report.backtest
    if test.of:
        say(f"forecasts from the smaller shares: the interval held {test.held} of {test.of} times")


def needed_rows(rows: float | None, fewest: float) -> str:
    """A forecast number of rows: None is over a hundred times what there is, ``fewest`` is the smallest share tried."""
    if rows is None:
        return "out of reach"
    return f"{rows:,.0f}" + (" or fewer" if rows <= fewest else "")


def ranking(answer: Mapping[str, Any]) -> None:
    """A ranking as the service returned it."""
    table(
        f"{answer['domain']}: {answer['served_by'].replace('_', '-')}, version {(answer['model_version'] or '-')[:12]}"
        f", {answer['took_ms']:.1f} ms",
        ["place", "item", "score", "why"],
        (
            [place, item["item_id"], f"{item['score']:.4f}", item.get("reason")]
            for place, item in enumerate(answer["items"], 1)
        ),
        numeric=["place", "score"],
    )


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=False,
    )


def _interval(measured: Interval | None, *, signed: bool = False) -> str:
    if measured is None:
        return ""
    if not math.isfinite(measured.value):
        return "not defined"
    sign = "+" if signed else ""
    return f"{measured.value:{sign}.4f} [{measured.low:{sign}.4f}, {measured.high:{sign}.4f}]"
