"""Runs on a page: started, followed as they go, stopped, and listed once they have ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import streamlit as st

from domains.registry.records import FINISHED, Run
from ui import session
from ui.components import errors, layout, wording


def active(runs: Sequence[Run]) -> list[Run]:
    """The runs that have not ended."""
    return [run for run in runs if run.state not in FINISHED]


def title(run: Run) -> str:
    """What a run does, and to which domain."""
    return wording.words(wording.KINDS, run.kind) + (f" · {run.domain}" if run.domain else "")


def watch(domain: str | None = None) -> None:
    """Follow the active runs of one domain, or of all; redraws the whole page when one of them ends."""

    def going() -> list[Run]:
        return active(session.registry().runs(domain, limit=100))

    at_first = {run.id for run in going()}
    if not at_first:
        return

    def draw() -> None:
        with errors.shown():
            now = going()
            if not at_first <= {run.id for run in now}:
                st.rerun()
            for run in now:
                _show_progress(run)

    st.fragment(draw, run_every=1.0)()


def show(run: Run) -> None:
    """One run in a list; opens to what went in, what came out, and its error in full."""
    state = wording.label(wording.RUN_STATES, run.state)
    summary = f"{_elapsed(run)}, {wording.ago(run.started_at)} by {run.started_by}"
    if run.state == "failed":
        summary += f" · stopped at {run.progress:.0%}, {run.step}"
    with st.expander(f":{state.colour}-badge[{state.text}] **{title(run)}** :gray[{summary}]"):
        link = _prefect_link(run)
        st.caption(
            f"`{run.id}` · started {wording.when(run.started_at)}"
            + (f" · ended {wording.when(run.finished_at)}" if run.finished_at else "")
            + (f" · [open in Prefect]({link})" if link else " · ran without Prefect")
        )
        if run.error:
            st.markdown("**The error in full**")
            st.code(run.error, language=None, wrap_lines=True)
        given, found = st.columns(2)
        given.caption("Parameters")
        given.json(run.params or {}, expanded=2)
        found.caption("Result")
        found.json(run.result or run.detail or {}, expanded=2)
    if run.error:
        st.error(run.error.strip().splitlines()[-1])


def start_button(kind: str, *, domain: str | None, params: dict[str, Any], label: str) -> None:
    """Start a run, on the Prefect worker where one answers and else inside this UI; then redraw the page."""
    up = session.prefect_answers()
    if up:
        st.caption(f"Runs on the Prefect worker; follow it here or in [Prefect]({session.prefect_page()}).")
    else:
        st.warning(
            "The Prefect server does not answer (`graft up` starts it). The run can go on inside this UI instead; it "
            "stops if the UI stops, and can then be started again."
        )
    if st.button(label if up else f"{label} inside this UI", type="primary", key=f"start-{kind}"):
        with errors.shown():
            session.acting().start(kind, domain, params=params, local=not up)
            st.rerun()


def _show_progress(run: Run) -> None:
    """One active run: what it does, how far it is, and how fast."""
    with st.container(border=True):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.markdown(f"**{title(run)}**", width="content")
            layout.badge(wording.label(wording.RUN_STATES, run.state))
            st.caption(f"by {run.started_by}, {_elapsed(run)} so far", width="content")
            if (link := _prefect_link(run)) is not None:
                st.markdown(f"[open in Prefect]({link})", width="content")
            _stop_button(run)
        step = run.step or ("Waiting for a worker" if run.state == "queued" or run.flow_run_id else "Starting")
        st.progress(min(max(run.progress, 0.0), 1.0), text=f"{step} · {run.progress:.0%}")
        details = []
        if "loss" in run.detail:
            details.append(f"loss {run.detail['loss']:.4f}")
        if "steps" in run.detail:
            details.append(wording.plural(int(run.detail["steps"]), "step"))
        if run.detail.get("examples_per_s"):
            details.append(f"{run.detail['examples_per_s']:,.0f} examples/s")
        if details:
            st.caption(" · ".join(details))


def _stop_button(run: Run) -> None:
    """Offer to stop a run of the Prefect worker; one inside this UI ends only with the UI."""
    domain = None if run.domain is None else session.registry().domain(run.domain)
    mine = session.actor().may("admin") if domain is None else session.actor().may("owner", domain)
    if mine and run.flow_run_id and st.button("Stop", key=f"stop-{run.id}"):
        with errors.shown():
            session.acting().cancel(run.id)
            st.toast("Stopping; the worker ends it within seconds.")


def _elapsed(run: Run) -> str:
    return wording.duration(((run.finished_at or datetime.now(UTC)) - run.started_at).total_seconds())


def _prefect_link(run: Run) -> str | None:
    return None if run.flow_run_id is None else f"{session.prefect_page()}/runs/flow-run/{run.flow_run_id}"
