"""A domain at a glance: its data, what answers now, whether it is ready to launch, and what its sources bring."""

from __future__ import annotations

from typing import Any

import streamlit as st

from domains.events.readiness import MODERATE_SHIFT, STRONG_SHIFT, Readiness
from domains.registry.records import Domain
from ui import session
from ui.components import layout, preview_report, wording


def show(domain: Domain) -> None:
    """The whole overview."""
    if not domain.counts.get("rows_added"):
        st.markdown("Nothing to see yet: the overview starts with the first data.")
        return
    readiness = session.readiness(domain.name)
    layout.figures(
        {
            "Events": wording.count(readiness.events),
            "Users": wording.count(readiness.users),
            "Items": wording.count(readiness.items),
            "Mean label": "–" if readiness.label_mean is None else f"{readiness.label_mean:.3f}",
            "Cold users waiting": wording.count(readiness.waiting_users),
        }
    )
    if domain.role == "target":
        _what_answers(domain)
        _readiness(readiness)
        _sources(readiness)
        preview_report.show(domain)
    else:
        learners = [
            other.name
            for other in session.registry().domains()
            if other.role == "target" and (not other.spec.sources or domain.name in other.spec.sources)
        ]
        st.markdown(f"**Targets that learn from it:** {', '.join(learners) or 'none yet'}")
    if readiness.notes:
        with st.expander("Notes on the data", expanded=domain.role == "source"):
            st.markdown("\n".join(f"- {note}" for note in readiness.notes))


def _what_answers(domain: Domain) -> None:
    st.subheader("What answers now", anchor=False)
    level = wording.label(wording.FALLBACK_LEVELS, session.fallback_level(domain))
    live = session.registry().live(domain.name)
    since = f" Version `{wording.short(live.version_id)}`, since {wording.when(live.since)}." if live else ""
    st.markdown(f"{level.meaning}{since}")
    st.code(f"POST {session.settings().service_url}/v1/domains/{domain.name}/rank", language=None, wrap_lines=True)


def _readiness(readiness: Readiness) -> None:
    st.subheader("Ready to launch?", anchor=False)
    if readiness.ready:
        st.success("Nothing is missing.")
    else:
        st.warning("Still missing:\n" + "\n".join(f"- {line}" for line in readiness.missing))
    quantiles = readiness.history_quantiles
    if quantiles:
        st.markdown(
            f"**{readiness.users_with_history:,}** of its {readiness.users:,} users have a history in the sources: "
            f"{quantiles['50%']:,.0f} events in the median, from {quantiles['10%']:,.0f} (10th percentile) to "
            f"{quantiles['90%']:,.0f} (90th)."
        )


def _sources(readiness: Readiness) -> None:
    if not readiness.sources:
        return
    st.subheader("What its sources bring", anchor=False)
    rows: list[dict[str, Any]] = []
    for source in readiness.sources:
        shifted = {name: index for name, index in source.feature_shift.items() if index > MODERATE_SHIFT}
        rows.append(
            {
                "Source": source.name,
                "Shared users": source.shared_users,
                "Share of this domain's users": source.shared_share * 100,
                "Their events there": source.source_events,
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
            "Their events there": st.column_config.NumberColumn(format="localized"),
            "Share of this domain's users": st.column_config.ProgressColumn(
                min_value=0, max_value=100, format="%.0f%%"
            ),
            "Label shift": st.column_config.NumberColumn(
                format="%+.3f",
                help="This domain's mean label minus the source's. Far from zero, users behave differently there.",
            ),
        },
    )
