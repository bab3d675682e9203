"""Runs: everything that was started, how far it is, and what went wrong."""

from __future__ import annotations

import streamlit as st

from domains.registry.records import FINISHED, RunState
from ui import session
from ui.components import layout, navigation, runs, wording

SHOWN = 200


def show() -> None:
    """Draw the page."""
    layout.heading("Runs", "Everything that was started: data checks, training, launches.")
    latest = session.registry().runs(limit=SHOWN)
    if not latest:
        layout.empty(
            "Nothing has run yet",
            "Runs appear here when data is added, the shared model is trained or a domain is launched.",
            page=navigation.DOMAINS,
            link="Go to the domains",
        )
        return
    _figures([run.state for run in latest])
    with st.container():
        runs.watch()
    state, kind, domain = st.columns(3)
    of_state = state.selectbox(
        "State",
        [None, *wording.RUN_STATES],
        format_func=lambda name: "All states" if name is None else wording.RUN_STATES[name].text,
    )
    kinds = sorted({run.kind for run in latest})
    of_kind = kind.selectbox(
        "Kind",
        [None, *kinds],
        format_func=lambda name: "All kinds" if name is None else wording.words(wording.KINDS, name),
    )
    domains = sorted({run.domain for run in latest if run.domain})
    of_domain = domain.selectbox("Domain", [None, *domains], format_func=lambda name: name or "All domains")
    found = [
        run
        for run in latest
        if of_state in (None, run.state) and of_kind in (None, run.kind) and of_domain in (None, run.domain)
    ]
    ended = [run for run in found if run.state in FINISHED]
    if not ended:
        st.caption("No finished run matches.")
    for run in ended:
        runs.show(run)
    if len(latest) == SHOWN:
        st.caption(f"The latest {SHOWN} runs.")


def _figures(states: list[RunState]) -> None:
    layout.figures({label.text: sum(state == name for state in states) for name, label in wording.RUN_STATES.items()})
    if session.prefect_answers():
        st.caption(f"Queues, logs and retries of every run: [Prefect]({session.prefect_page()}).")
    else:
        st.caption("The Prefect server does not answer; `graft up` starts it. Runs started here go on inside this UI.")


show()
