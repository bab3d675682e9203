"""Domains: all that are registered, what serves each, and the shared model that they build on."""

from __future__ import annotations

from typing import Any

import streamlit as st

from domains.registry.records import Domain, Live, Run
from orchestrator import use_cases
from ui import session
from ui.components import layout, navigation, runs, shared_model, wording

PAGE_SIZE = 25
FILTERED_FROM = 8
"""Domains that fit on a screen; more than these get a search field."""
WIDTHS = [1.7, 1.3, 1.4, 1.9, 1.7, 2.0]
"""Relative widths of the list's columns."""


def show() -> None:
    """Draw the page."""
    layout.heading("Domains", "Every recommendation domain: its data, what serves it, and since when.")
    registry = session.registry()
    domains = registry.domains()
    if not domains:
        layout.empty(
            "No domain yet",
            "A domain is a surface with items and users of its own, such as a video feed or a new live page. "
            "Register the data-rich ones as sources first; new ones then learn from them.",
            page=navigation.REGISTER,
            link="Register the first domain",
        )
        return
    lives = {live.domain: live for live in registry.lives()}
    latest: dict[str | None, Run] = {}
    for run in registry.runs(limit=500):
        latest.setdefault(run.domain, run)
    _summary(domains, lives)
    shared_model.show(domains, lives.get(None))
    with st.container():
        runs.watch()
    _list(domains, lives, latest)


def _summary(domains: list[Domain], lives: dict[str | None, Live]) -> None:
    sources = [domain for domain in domains if domain.role == "source"]
    adapted = [domain for domain in domains if (live := lives.get(domain.name)) is not None and live.level == "adapter"]
    columns = st.columns([1, 1, 1, 1, 1.2], vertical_alignment="center")
    columns[0].metric("Sources", len(sources))
    columns[1].metric("Targets", len(domains) - len(sources))
    columns[2].metric("Served by an adapter", len(adapted))
    columns[3].metric("Events", wording.count(sum(domain.counts.get("rows_added", 0) for domain in domains)))
    if session.actor().may("owner") and columns[4].button("Register a domain", type="primary", width="stretch"):
        st.switch_page(navigation.REGISTER)


def _list(domains: list[Domain], lives: dict[str | None, Live], latest: dict[str | None, Run]) -> None:
    shown = _filtered(domains) if len(domains) > FILTERED_FROM else domains
    levels, forced = use_cases.fallback_levels(session.registry()), session.registry().forced()
    shown = sorted(shown, key=lambda domain: (domain.state == "retired", domain.role == "source", -domain.number))
    if not shown:
        st.caption("No domain matches.")
    pages = -(-len(shown) // PAGE_SIZE)
    page = (st.segmented_control("Page", range(1, pages + 1), default=1) or 1) if pages > 1 else 1
    for role, heading in (("target", "Targets"), ("source", "Sources")):
        of_role = [domain for domain in shown[(page - 1) * PAGE_SIZE : page * PAGE_SIZE] if domain.role == role]
        if of_role:
            st.subheader(heading, anchor=False)
            with st.container(border=True):
                _heads(role)
                for domain in of_role:
                    live = lives.get(domain.name)
                    badges = [wording.label(wording.FALLBACK_LEVELS, session.level_name(domain, levels[domain.name]))]
                    badges += [wording.FORCED] if live is not None and live.version_id in forced else []
                    _row(domain, live, latest.get(domain.name), badges)


def _filtered(domains: list[Domain]) -> list[Domain]:
    text_slot, role_slot = st.columns([3, 1])
    text = text_slot.text_input("Find", placeholder="name or owner", label_visibility="collapsed").strip().lower()
    role = role_slot.selectbox("Role", ["all roles", "target", "source"], label_visibility="collapsed")
    return [
        domain
        for domain in domains
        if (text in domain.name or text in domain.owner.lower()) and role in ("all roles", domain.role)
    ]


def _heads(role: str) -> None:
    titles = ("Domain", "State", "Served by", "Data", "Live version", "Last run")
    with st.container(key=f"heads-{role}"):
        for slot, title in zip(st.columns(WIDTHS), titles, strict=True):
            slot.caption(title)


def _row(domain: Domain, live: Live | None, run: Run | None, badges: list[wording.Label]) -> None:
    counts = domain.counts
    with st.container(key=f"row-{domain.name}"):
        name, state, level, data, since, last = st.columns(WIDTHS, vertical_alignment="top")
        with name.container(gap=None):
            st.page_link(navigation.DOMAIN, label=domain.name, query_params={"name": domain.name})
            st.caption(f"{wording.TASKS[domain.spec.task].lower()} · {domain.owner}")
        with state:
            layout.badge(wording.label(wording.STATES, domain.state))
            if domain.challenger is not None:
                layout.badge(wording.CHALLENGER)
        with level:
            if domain.role == "target":
                for badge in badges:
                    layout.badge(badge)
            else:
                st.caption("training data")
        if counts.get("rows_added"):
            _cell(
                data,
                f"{wording.count(counts['rows_added'])} events",
                f"{wording.count(counts.get('users'))} users, {wording.count(counts.get('items'))} items",
            )
        else:
            data.caption("no data yet")
        if live is not None:
            _cell(since, f"`{wording.short(live.version_id)}`", wording.ago(live.since))
        else:
            since.caption("–")
        if run is not None:
            ended = run.finished_at or run.started_at
            state_of_run = wording.label(wording.RUN_STATES, run.state).text.lower()
            _cell(last, wording.words(wording.KINDS, run.kind), f"{state_of_run} {wording.ago(ended)}")
        else:
            last.caption("–")


def _cell(slot: Any, above: str, below: str) -> None:
    slot.markdown(f"{above}  \n:small[:gray[{below}]]")


show()
