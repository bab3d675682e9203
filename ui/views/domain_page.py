"""Domain: everything about one domain, and what may be done with it next."""

from __future__ import annotations

from typing import Any

import streamlit as st

from domains.registry.records import Domain, Version
from orchestrator import changes
from ui import session
from ui.components import (
    data_files,
    domain_actions,
    domain_overview,
    errors,
    layout,
    navigation,
    runs,
    spec_form,
    tables,
    version_report,
    wording,
)


def show() -> None:
    """Draw the page."""
    domains = session.registry().domains()
    if not domains:
        layout.heading("Domain", "Everything about one domain.")
        layout.empty("No domain yet", "Register one first.", page=navigation.REGISTER, link="Register the first domain")
        return
    head, switch = st.columns([4, 1], vertical_alignment="center")
    domain = _chosen(domains, switch)
    if domain is None:
        with head:
            layout.heading("Domain", f"No domain is registered as {st.query_params['name']!r}.")
        layout.empty(
            "No such domain", "Choose one above, or look at the list.", page=navigation.DOMAINS, link="Domains"
        )
        return
    live = session.live_version(domain.name)
    with head:
        _header(domain, live)
    # Containers, so that the tabs below keep their place, and the chosen one stays, when these come and go.
    with st.container():
        domain_actions.next_step(domain, live)
    with st.container():
        runs.watch(domain.name)
    names = ["Overview", "Versions", "Data", "Runs", "History", "Spec"]
    tabs = dict(zip(names, st.tabs(names), strict=True))
    with tabs["Overview"], errors.shown():
        domain_overview.show(domain)
    with tabs["Versions"], errors.shown():
        version_report.show(domain, live)
    with tabs["Data"], errors.shown():
        _data(domain)
    with tabs["Runs"], errors.shown():
        _runs(domain)
    with tabs["History"], errors.shown():
        _history(domain)
    with tabs["Spec"], errors.shown():
        _spec(domain)


def _chosen(domains: list[Domain], switch: Any) -> Domain | None:
    """The domain that the address names, or the newest target where it names none; None where it names no domain."""
    names = [domain.name for domain in domains]
    newest_target = next((d.name for d in reversed(domains) if d.role == "target"), names[0])
    asked = st.query_params.get("name", newest_target)
    at = names.index(asked) if asked in names else None
    chosen = switch.selectbox(
        "Domain", names, index=at, key=f"domain-{asked}", placeholder="Choose", label_visibility="collapsed"
    )
    if chosen is not None and chosen != asked:
        st.query_params["name"] = chosen
        st.rerun()
    return None if at is None else domains[at]


def _header(domain: Domain, live: Version | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(domain.name, anchor=False, width="content")
        layout.badge(wording.label(wording.STATES, domain.state))
        if domain.challenger is not None:
            layout.badge(wording.CHALLENGER)
        if domain.role == "target":
            layout.badge(wording.label(wording.FALLBACK_LEVELS, session.fallback_level(domain)))
        if live is not None and live.id in session.registry().forced(domain.name):
            layout.badge(wording.FORCED)
    kind = wording.kind(domain, launched=live is not None and live.level == "adapter")
    predicts = "click probabilities" if domain.spec.task == "ctr" else "ratings"
    st.markdown(
        f":gray[{kind}; predicts {predicts}. Owned by **{domain.owner}**, registered {wording.ago(domain.created_at)}.]"
    )


def _data(domain: Domain) -> None:
    counts = domain.counts
    if counts.get("rows_added"):
        data_files.show_counts(
            read=counts.get("rows_read", 0),
            added=counts["rows_added"],
            duplicate=counts.get("rows_duplicate", 0),
            bad=counts.get("rows_quarantined", 0),
            users=counts.get("users", 0),
            items=counts.get("items", 0),
        )
        st.caption(
            f"Added in {wording.plural(counts.get('ingests', 1), 'batch', 'batches')}; events from "
            f"{wording.event_time(counts.get('first_us'))} to {wording.event_time(counts.get('last_us'))} UTC."
        )
        job = st.session_state.get("ingest")
        if job is None or job.domain != domain.name:
            data_files.show_bad_rows(domain.name, counts.get("reasons", {}))
    if session.actor().may("owner", domain):
        st.subheader("Add data", anchor=False)
        data_files.add_data(domain)


def _runs(domain: Domain) -> None:
    found = session.registry().runs(domain.name)
    if not found:
        st.markdown("Nothing has run for this domain yet.")
    for run in found:
        runs.show(run)


def _history(domain: Domain) -> None:
    promotions = session.registry().promotions(domain.name)
    st.subheader("Promotions", anchor=False)
    if promotions:
        tables.show(
            [
                {
                    "When": wording.when(promotion.at),
                    "What": wording.words(wording.MOVES, promotion.kind),
                    "From": wording.short(promotion.from_version),
                    "To": wording.short(promotion.to_version),
                    "Who": promotion.who,
                    "Why": promotion.why,
                }
                for promotion in promotions
            ],
            hide_index=True,
        )
    else:
        st.markdown("Nothing has gone live yet.")
    st.subheader("Audit trail", anchor=False)
    tables.show(
        [
            {
                "When": wording.when(entry["at"]),
                "Who": entry["who"],
                "What": wording.action(entry),
                "Change": changes.change_in_words(entry["details"]),
                "Why": wording.sentence(entry["why"] or ""),
            }
            for entry in session.registry().audit(domain.name)
        ],
        hide_index=True,
        column_config={"Why": st.column_config.Column(width="large")},
    )


def _spec(domain: Domain) -> None:
    st.markdown(wording.gate(domain.spec))
    mine = session.actor().may("owner", domain)
    if not mine or not st.toggle("Edit", key=f"edit-{domain.name}"):
        st.code(domain.spec.to_yaml(), language="yaml", wrap_lines=True)
        st.download_button("Download spec.yaml", domain.spec.to_yaml(), file_name=f"{domain.name}.yaml")
    else:
        st.caption("The name, the role and the task cannot be changed.")
        spec = spec_form.yaml_editor(domain.spec.to_yaml(), key=f"spec-{domain.name}")
        if spec is not None and spec.name != domain.name:
            st.error("The name cannot be changed; register another domain under the new one.")
        elif spec is not None and st.button("Save", type="primary", disabled=spec == domain.spec, key="save-spec"):
            session.acting().update_spec(spec)
            st.rerun()
    if domain.role == "target" and mine:
        domain_actions.pause_or_retire(domain)


show()
