"""Domain: everything about one domain, and what may be done with it next."""

from __future__ import annotations

from typing import Any

import streamlit as st

from domains.events.readiness import MODERATE_SHIFT, STRONG_SHIFT, Readiness
from domains.lifecycle import State
from domains.registry.records import Domain, Version
from orchestrator import use_cases
from ui import session
from ui.components import data_files, elements, preview_report, spec_form, version_report, wording


def show() -> None:
    """Draw the page."""
    registry = session.registry()
    domains = registry.domains()
    if not domains:
        elements.heading("Domain", "Everything about one domain.")
        elements.empty("No domain yet", "Register one first.", page=elements.REGISTER, link="Register the first domain")
        return
    head, switch = st.columns([4, 1], vertical_alignment="center")
    domain = _chosen(domains, switch)
    live = registry.live(domain.name)
    version = elements.live_version(live)
    with head:
        _header(domain, version)
    # Containers, so that the tabs below keep their place, and the chosen one stays, when these come and go.
    with st.container():
        _next_step(domain, version)
    with st.container():
        elements.watch_runs(domain.name)
    names = ["Overview", "Versions", "Data", "Runs", "History", "Spec"]
    tabs = dict(zip(names, st.tabs(names), strict=True))
    with tabs["Overview"], elements.told():
        _overview(domain, version)
    with tabs["Versions"], elements.told():
        version_report.show(domain, version)
    with tabs["Data"], elements.told():
        _data(domain)
    with tabs["Runs"], elements.told():
        _runs(domain)
    with tabs["History"], elements.told():
        _history(domain)
    with tabs["Spec"], elements.told():
        _spec(domain)


def _chosen(domains: list[Domain], switch: Any) -> Domain:
    names = [domain.name for domain in domains]
    asked = st.query_params.get("name")
    if asked is not None and asked not in names:
        st.warning(f"No domain is registered as {asked!r}; here is another.")
    newest_target = next((d.name for d in reversed(domains) if d.role == "target"), names[0])
    at = names.index(asked if asked in names else newest_target)
    chosen = switch.selectbox("Domain", names, index=at, key=f"domain-{names[at]}", label_visibility="collapsed")
    if chosen != names[at]:
        st.query_params["name"] = chosen
        st.rerun()
    return domains[at]


def _header(domain: Domain, version: Version | None) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.title(domain.name, anchor=False, width="content")
        elements.badge(wording.label(wording.STATES, domain.state))
        if domain.role == "target":
            elements.badge(elements.level_of(domain, version))
    kind = "A new surface to launch" if domain.role == "target" else "A source that lends its histories"
    predicts = "click probabilities" if domain.spec.task == "ctr" else "ratings"
    st.markdown(
        f":gray[{kind}; predicts {predicts}. Owned by **{domain.owner}**, registered {wording.ago(domain.created_at)}.]"
    )


def _next_step(domain: Domain, version: Version | None) -> None:
    """The one thing to do now, and the buttons for everything else that may be done."""
    registry = session.registry()
    if domain.state == "retired":
        st.info("This domain is retired; it is kept for the record.")
        return
    if not domain.counts.get("rows_added"):
        st.info("**Next: add its data.** Open the tab *Data* below.")
        return
    if domain.role == "source":
        return
    going = elements.active(registry.runs(domain.name))
    candidates = _promotable(domain, version)
    if registry.live(None) is None:
        text = "**Next: train the shared model**, on the page *Domains*. This domain then stands on top of it."
    elif going:
        text = f"**{wording.words(wording.KINDS, going[0].kind)} is going on.** Follow it below."
    elif candidates and domain.state == "challenger":
        text = f"**Next: decide on version `{wording.short(candidates[0].id)}`.** It passed the gate and waits."
    elif (version is None or version.level != "adapter") and _held_back(domain):
        text = "**The gate held the last launch back.** The tab *Versions* says why; more data may change it."
    elif version is None or version.level != "adapter":
        text = "**Next: launch it.** Graft trains a few weights of its own and proves them on held-out cold users."
    else:
        text = f"**Version `{wording.short(version.id)}` answers.** Launch again when there is new data to learn from."
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(text, width="stretch")
        launching = any(run.kind != "ingest" for run in going)
        if st.button(
            "Launch" if version is None or version.level != "adapter" else "Launch again",
            type="primary" if not candidates and not launching else "secondary",
            disabled=registry.live(None) is None or launching,
            key="launch",
        ):
            _launch(domain)
        if st.button("Promote", type="primary" if candidates else "secondary", disabled=not candidates, key="promote"):
            _promote(domain, candidates)
        if st.button("Roll back", disabled=not _has_earlier(domain), key="roll-back"):
            _roll_back(domain)
        if domain.counts.get("rows_added") and st.button("Try it", key="try"):
            st.switch_page(elements.PLAYGROUND, query_params={"name": domain.name})


def _promotable(domain: Domain, live: Version | None) -> list[Version]:
    """Versions that could go live now: trained here, passed by the gate, and not live already; newest first."""
    return [
        version
        for version in session.registry().versions(domain.name, "adapter")
        if version.level == "adapter"
        and (live is None or version.id != live.id)
        and version.report.get("decision", {}).get("promote", True)
    ]


def _held_back(domain: Domain) -> bool:
    judged = [version for version in session.registry().versions(domain.name, "adapter") if version.report]
    return bool(judged) and not judged[0].report.get("decision", {}).get("promote", True)


def _has_earlier(domain: Domain) -> bool:
    return len(session.registry().promotions(domain.name)) > 1


@elements.dialog("Launch")
def _launch(domain: Domain) -> None:
    readiness = session.readiness(domain.name)
    st.markdown(
        f"Graft freezes the shared model, trains the few weights that **{domain.name}** owns, checks that nothing else "
        "moved, and compares the result on cold users it never met. Nothing goes live by itself."
    )
    if readiness.missing:
        st.warning(
            "It is not ready:\n" + "\n".join(f"- {line}" for line in readiness.missing) + "\n\nThe gate will most "
            "likely hold the version back."
        )
    st.caption(wording.gate(domain.spec))
    st.caption(wording.policy(session.settings().required_baselines, session.settings().required_seeds))
    elements.start_button("launch-domain", domain=domain.name, params={"task": domain.spec.task}, label="Launch")


@elements.dialog("Promote")
def _promote(domain: Domain, candidates: list[Version]) -> None:
    by_id = {version.id: version for version in candidates}
    chosen = by_id[
        st.selectbox(
            "Version",
            list(by_id),
            format_func=lambda id: f"{wording.short(id)} of {wording.when(by_id[id].created_at)}",
        )
    ]
    for reason in chosen.report.get("decision", {}).get("reasons", []):
        st.success(wording.said(reason))
    st.caption("The service picks it up within seconds, with no restart. You can roll back in one step.")
    why = st.text_input("Why?", placeholder="beats popularity on cold users", key="why-promote").strip()
    if st.button("Promote it", type="primary", disabled=not why, key="do-promote"):
        with elements.told():
            use_cases.promote(domain.name, chosen.id, registry=session.registry(), who=session.who(), why=why)
            st.rerun()
    if not why:
        st.caption("Say why in a few words; it stays in the history.")


@elements.dialog("Roll back")
def _roll_back(domain: Domain) -> None:
    live = session.registry().live(domain.name)
    st.markdown(
        f"**{domain.name}** goes back to the version that was live before "
        f"`{wording.short(live.version_id if live else None)}`, at once."
    )
    why = st.text_input("Why?", placeholder="clicks fell since this morning", key="why-roll-back").strip()
    if st.button("Roll back", type="primary", disabled=not why, key="do-roll-back"):
        with elements.told():
            use_cases.roll_back(
                domain.name,
                registry=session.registry(),
                who=session.who(),
                why=why,
                expect=live.version_id if live else None,
            )
            st.rerun()
    if not why:
        st.caption("Say why in a few words; it stays in the history.")


def _overview(domain: Domain, version: Version | None) -> None:
    if not domain.counts.get("rows_added"):
        st.markdown("Nothing to see yet: the overview starts with the first data.")
        return
    readiness = session.readiness(domain.name)
    for column, (title, value) in zip(
        st.columns(5),
        (
            ("Events", wording.count(readiness.events)),
            ("Users", wording.count(readiness.users)),
            ("Items", wording.count(readiness.items)),
            ("Mean label", "–" if readiness.label_mean is None else f"{readiness.label_mean:.3f}"),
            ("Cold users waiting", wording.count(readiness.waiting_users)),
        ),
        strict=True,
    ):
        column.metric(title, value)
    if domain.role == "target":
        _what_answers(domain, version)
        _readiness(readiness)
        _sources(readiness)
        preview_report.show(domain)
    else:
        borrowers = [
            other.name
            for other in session.registry().domains()
            if other.role == "target" and (not other.spec.sources or domain.name in other.spec.sources)
        ]
        st.markdown(f"**Lends to** {', '.join(borrowers) or 'nobody yet'}")
    if readiness.notes:
        with st.expander("What the data says", expanded=domain.role == "source"):
            st.markdown("\n".join(f"- {note}" for note in readiness.notes))


def _what_answers(domain: Domain, version: Version | None) -> None:
    st.subheader("What answers now", anchor=False)
    level = elements.level_of(domain, version)
    live = session.registry().live(domain.name)
    since = f" Version `{wording.short(live.version_id)}`, since {wording.when(live.since)}." if live else ""
    st.markdown(f"{level.meaning}{since}")
    st.code(f"POST {session.settings().service_url}/v1/domains/{domain.name}/rank", language=None)


def _readiness(readiness: Readiness) -> None:
    st.subheader("Ready to launch?", anchor=False)
    if readiness.ready:
        st.success("Nothing is missing.")
    else:
        st.warning("Still missing:\n" + "\n".join(f"- {line}" for line in readiness.missing))
    quantiles = readiness.history_quantiles
    if quantiles:
        st.markdown(
            f"**{readiness.users_with_history:,}** of its {readiness.users:,} users come with a past in the sources: "
            f"{quantiles['50%']:,.0f} events in the median, from {quantiles['10%']:,.0f} (the poorest tenth) to "
            f"{quantiles['90%']:,.0f} (the richest)."
        )


def _sources(readiness: Readiness) -> None:
    if not readiness.sources:
        return
    st.subheader("What its sources would bring", anchor=False)
    rows: list[dict[str, Any]] = []
    for source in readiness.sources:
        shifted = {name: index for name, index in source.feature_shift.items() if index > MODERATE_SHIFT}
        rows.append(
            {
                "Source": source.name,
                "Shared users": source.shared_users,
                "of this domain's users": source.shared_share * 100,
                "Events they bring": source.source_events,
                "Label shift": source.label_shift,
                "Shifted features": ", ".join(
                    f"{name} ({'strongly' if index > STRONG_SHIFT else 'somewhat'})" for name, index in shifted.items()
                )
                or "none",
            }
        )
    st.dataframe(
        rows,
        hide_index=True,
        column_config={
            "Shared users": st.column_config.NumberColumn(format="localized"),
            "Events they bring": st.column_config.NumberColumn(format="localized"),
            "of this domain's users": st.column_config.ProgressColumn(min_value=0, max_value=100, format="%.0f%%"),
            "Label shift": st.column_config.NumberColumn(
                format="%+.3f", help="This domain's mean label less the source's; far from zero, tastes differ."
            ),
        },
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
            f"Over {wording.plural(counts.get('ingests', 1), 'delivery', 'deliveries')}; events from "
            f"{wording.moment(counts.get('first_us'))} to {wording.moment(counts.get('last_us'))} UTC."
        )
        job = st.session_state.get("ingest")
        if job is None or job.domain != domain.name:
            data_files.show_bad_rows(domain.name, counts.get("reasons", {}))
    st.subheader("Add data", anchor=False)
    data_files.add_data(domain)


def _runs(domain: Domain) -> None:
    runs = session.registry().runs(domain.name)
    if not runs:
        st.markdown("Nothing has run for this domain yet.")
        return
    for run in runs:
        elements.run_row(run)


def _history(domain: Domain) -> None:
    flips = session.registry().promotions(domain.name)
    st.subheader("What went live", anchor=False)
    if flips:
        st.dataframe(
            [
                {
                    "When": wording.when(flip.at),
                    "What": "rolled back" if flip.kind == "roll_back" else "promoted",
                    "From": wording.short(flip.from_version),
                    "To": wording.short(flip.to_version),
                    "Who": flip.who,
                    "Why": flip.why,
                }
                for flip in flips
            ],
            hide_index=True,
        )
    else:
        st.markdown("Nothing has gone live yet.")
    st.subheader("Who did what", anchor=False)
    st.dataframe(
        [
            {
                "When": wording.when(entry["at"]),
                "Who": entry["who"],
                "What": wording.deed(entry),
                "Why": wording.said(entry["why"] or ""),
            }
            for entry in session.registry().audit(domain.name)
        ],
        hide_index=True,
    )


def _spec(domain: Domain) -> None:
    st.markdown(wording.gate(domain.spec))
    if not st.toggle("Edit", key=f"edit-{domain.name}"):
        st.code(domain.spec.to_yaml(), language="yaml")
        st.download_button("Download spec.yaml", domain.spec.to_yaml(), file_name=f"{domain.name}.yaml")
    else:
        st.caption("The name, the role and the task are for life.")
        spec = spec_form.yaml_editor(domain.spec.to_yaml(), key=f"spec-{domain.name}")
        if spec is not None and spec.name != domain.name:
            st.error("The name is for life; register another domain under the new one.")
        elif spec is not None and st.button("Save", type="primary", disabled=spec == domain.spec, key="save-spec"):
            session.registry().update_spec(spec, by=session.who())
            st.rerun()
    if domain.role == "target":
        _pause_or_retire(domain)


def _pause_or_retire(domain: Domain) -> None:
    st.subheader("Out of service", anchor=False)
    with st.container(horizontal=True):
        if domain.state == "paused":
            if st.button("Resume", key="resume"):
                _move(domain, State.LIVE, "Resume", "Its live version answers again, at once.")
        elif st.button("Pause", disabled=domain.state not in ("live", "training", "challenger"), key="pause"):
            _move(domain, State.PAUSED, "Pause", "Until it is resumed, its endpoint answers by popularity.")
        if st.button("Retire", disabled=domain.state == "retired", key="retire"):
            _move(domain, State.RETIRED, "Retire", "Its endpoint stops answering. This cannot be undone.")


@elements.dialog("Out of service")
def _move(domain: Domain, to: State, verb: str, meaning: str) -> None:
    st.markdown(f"**{verb} {domain.name}?** {meaning}")
    why = st.text_input("Why?", key="why-move").strip()
    if st.button(verb, type="primary", disabled=not why, key="do-move"):
        with elements.told():
            session.registry().move(domain.name, to, by=session.who(), why=why)
            st.rerun()


show()
