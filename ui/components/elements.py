"""Building blocks of the pages: errors as one sentence, badges, empty states, a run as it goes, starting a run."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, ParamSpec

import streamlit as st

from domains.registry.records import FINISHED, Domain, Live, Run, Version
from orchestrator import use_cases
from orchestrator.errors import as_json
from ui import session
from ui.components import wording
from ui.components.wording import Label

P = ParamSpec("P")

logger = logging.getLogger(__name__)

DOMAINS, REGISTER, DOMAIN, PLAYGROUND, RUNS = (
    "views/domain_list.py",
    "views/register.py",
    "views/domain_page.py",
    "views/playground.py",
    "views/run_list.py",
)
"""The pages, as Streamlit links them: relative to ``app.py``."""


@contextmanager
def told() -> Iterator[None]:
    """Show whatever goes wrong inside as one sentence; the log has the rest."""
    try:
        yield
    except Exception as error:
        show_error(error)


def show_error(error: Exception) -> None:
    """One clear sentence, with its code and the field it is about."""
    body = as_json(error)["error"]
    if body["code"] == "internal":
        logger.exception("page failed", exc_info=error)
        body = {"code": "internal", "message": "Something failed on Graft's side; the UI's log says what."}
    problems = body.get("details", {}).get("problems")
    if problems and len(problems) > 1:
        st.error(f"{len(problems)} things to correct  \n`{body['code']}`")
        show_problems(problems)
        return
    message = str(body["message"]).strip().replace("\n", "  \n")
    message = message[:1].upper() + message[1:]
    field = f" · field `{body['field']}`" if body.get("field") else ""
    st.error(f"{message}  \n`{body['code']}`{field}")


def show_problems(problems: Sequence[dict[str, Any]]) -> None:
    """A table of what to correct, with line and field."""
    lined = any(problem.get("line") for problem in problems)
    # A plain table: it wraps long sentences, which the interactive one cuts.
    st.table(
        [
            {
                **({"Line": str(problem.get("line") or "–")} if lined else {}),
                "Field": f"`{problem['field']}`" if problem.get("field") else "whole file",
                "What to correct": problem["message"],
            }
            for problem in problems
        ],
        border="horizontal",
        hide_index=True,
    )


def badge(label: Label) -> None:
    """A coloured word that explains itself on hover."""
    st.badge(label.text, color=label.colour, help=label.meaning or None)


def dialog(title: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """A dialog that tells what goes wrong inside it in one sentence."""

    def wrap(draw: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(draw)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            with told():
                draw(*args, **kwargs)

        return st.dialog(title)(guarded)

    return wrap


def heading(title: str, lead: str) -> None:
    """The top of a page: what it is and one line on what it is for."""
    st.title(title, anchor=False)
    st.markdown(f":gray[{lead}]")


def empty(title: str, text: str, *, page: str | None = None, link: str = "", **query: str) -> None:
    """What a page shows when there is nothing yet: what would stand here, and how to get there."""
    with st.container(border=True, horizontal_alignment="center"):
        st.space("small")
        st.markdown(f"#### {title}", width="content")
        st.markdown(text, width="content")
        if page is not None and st.button(link, type="primary", key=f"empty-{page}"):
            st.switch_page(page, query_params=query)
        st.space("small")


def level_of(domain: Domain, live: Version | None) -> Label:
    """What a domain's answers rest on."""
    level = use_cases.level(domain.name, registry=session.registry())
    if level == "prior" and not domain.counts.get("rows_added"):
        level = "none"
    return wording.label(wording.FALLBACK_LEVELS, level)


def live_version(live: Live | None) -> Version | None:
    """The version behind a live pointer."""
    return None if live is None else session.registry().version(live.version_id)


def elapsed(run: Run) -> str:
    """How long a run took, or has been going."""
    return wording.duration(((run.finished_at or datetime.now(UTC)) - run.started_at).total_seconds())


def run_link(run: Run) -> str | None:
    """Where Prefect shows a run."""
    if run.flow_run_id is None:
        return None
    return f"{session.settings().prefect_url.removesuffix('/api')}/runs/flow-run/{run.flow_run_id}"


def active(runs: Sequence[Run]) -> list[Run]:
    """The runs that have not ended."""
    return [run for run in runs if run.state not in FINISHED]


def watch_runs(domain: str | None, *, everything: bool = False) -> None:
    """The runs that are going on, followed as they go; the whole page is drawn anew when one of them ends.

    Args:
        domain: Whose runs; None means those of the shared model.
        everything: Runs of all domains.
    """

    def going() -> list[Run]:
        found = active(session.registry().runs(domain, limit=100))
        return [run for run in found if everything or run.domain == domain]

    at_first = going()
    if not at_first:
        return
    known = {run.id for run in at_first}

    def draw() -> None:
        with told():
            now = going()
            if not known <= {run.id for run in now}:
                st.rerun()
            for run in now:
                show_progress(run)

    st.fragment(draw, run_every=1.0)()


def show_progress(run: Run) -> None:
    """One run that is going on: what it does, how far it is, and how fast."""
    with st.container(border=True):
        title = wording.words(wording.KINDS, run.kind) + (f" · {run.domain}" if run.domain else "")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{title}**", width="content")
            badge(wording.label(wording.RUN_STATES, run.state))
            st.caption(f"by {run.started_by}, {elapsed(run)} so far", width="content")
            if (link := run_link(run)) is not None:
                st.markdown(f"[open in Prefect]({link})", width="content")
            stop_button(run)
        step = run.step or ("Waiting for a worker" if run.state == "queued" or run.flow_run_id else "Starting")
        st.progress(min(max(run.progress, 0.0), 1.0), text=f"{step} · {run.progress:.0%}")
        said = []
        if "loss" in run.detail:
            said.append(f"loss {run.detail['loss']:.4f}")
        if "steps" in run.detail:
            said.append(wording.plural(int(run.detail["steps"]), "step"))
        if run.detail.get("examples_per_s"):
            said.append(f"{run.detail['examples_per_s']:,.0f} examples/s")
        if said:
            st.caption(" · ".join(said))


def run_row(run: Run) -> None:
    """One run in a list; opens to what went in, what came out, and its error in full."""
    title = wording.words(wording.KINDS, run.kind) + (f" · {run.domain}" if run.domain else "")
    state = wording.label(wording.RUN_STATES, run.state)
    told_at = f"{elapsed(run)}, {wording.ago(run.started_at)} by {run.started_by}"
    if run.state == "failed":
        told_at += f" · stopped at {run.progress:.0%}, {run.step}"
    with st.expander(f":{state.colour}-badge[{state.text}] **{title}** :gray[{told_at}]"):
        link = run_link(run)
        st.caption(
            f"`{run.id}` · started {wording.when(run.started_at)}"
            + (f" · ended {wording.when(run.finished_at)}" if run.finished_at else "")
            + (f" · [open in Prefect]({link})" if link else " · ran without Prefect")
        )
        if run.error:
            st.markdown("**The error in full**")
            st.code(run.error, language=None, wrap_lines=True)
        given, came = st.columns(2)
        given.caption("Asked for")
        given.json(run.params or {}, expanded=2)
        came.caption("Came of it")
        came.json(run.result or run.detail or {}, expanded=2)
    if run.error:
        st.error(run.error.strip().splitlines()[-1])


def stop_button(run: Run) -> None:
    """Offer to stop a run that goes on at the Prefect worker; one inside this UI ends with it."""
    if run.flow_run_id and st.button("Stop", key=f"stop-{run.id}"):
        with told():
            use_cases.cancel(run.id, registry=session.registry(), settings=session.settings())
            st.toast("Stopping; the worker ends it within seconds.")


def start_button(kind: str, *, domain: str | None, params: dict[str, Any], label: str) -> None:
    """Choose where a run goes and start it; reruns the page when it has started."""
    settings = session.settings()
    up = session.prefect_answers()
    if up:
        st.caption(f"Runs on the Prefect worker; follow it here or in [Prefect]({settings.prefect_url[:-4]}).")
    else:
        st.warning(
            "The Prefect server does not answer (`graft up` starts it). The run can go on inside this UI instead; it "
            "stops if the UI stops, and can then be started again."
        )
    if st.button(label if up else f"{label} inside this UI", type="primary", key=f"start-{kind}"):
        with told():
            use_cases.start(
                kind,
                domain=domain,
                params=params,
                registry=session.registry(),
                settings=settings,
                by=session.who(),
                local=not up,
            )
            st.rerun()
