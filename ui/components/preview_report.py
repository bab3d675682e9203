"""What short runs said before a launch: is each source worth borrowing from, and how much data the domain still
needs."""

from __future__ import annotations

from typing import Any

import streamlit as st

from domains.registry.records import Domain
from orchestrator import use_cases
from ui import session
from ui.components import charts, layout, runs, wording

VERDICTS = {
    "borrow": "worth borrowing from",
    "do not borrow": "do not borrow: it makes answers worse",
    "no clear gain": "no clear gain: the interval reaches both sides of zero",
}


def show(domain: Domain) -> None:
    """The newest preview of a domain, and the button that makes one."""
    report = use_cases.latest_preview(domain.name, registry=session.registry())
    found = None if report is None else report.as_dict()
    going = [run for run in runs.active(session.registry().runs(domain.name)) if run.kind == "preview"]
    st.subheader("Worth source_weighting? Tried on short runs", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            _told(found) if found else "Not tried yet. A few minutes of short runs tell, before any launch.",
            width="stretch",
        )
        if st.button("Try again" if found else "Try it", disabled=bool(going), key="preview"):
            _start(domain)
    if found:
        _sources(found)
        _curve(found)


@layout.dialog("Preview")
def _start(domain: Domain) -> None:
    st.markdown(
        f"Graft trains small networks for a few hundred steps with and without each source, and adapters on growing "
        f"shares of **{domain.name}**'s rows. Nothing is kept but what they said; the cold users whom a launch is "
        "judged on stay untouched."
    )
    runs.start_button("preview", domain=domain.name, params={}, label="Start the short runs")


def _told(found: dict[str, Any]) -> str:
    return (
        f"{found['evaluation_users']:,} users, each scored by a run that never met them; made {found['made_at'][:10]}. "
        f"All sources together lower {wording.metric_name(found['metric']).lower()} by "
        f"**{_gain(found['together'])}**."
    )


def _sources(found: dict[str, Any]) -> None:
    st.dataframe(
        [
            {
                "Source": source["name"],
                "Alone it lowers the error by": _gain(source["alone"]),
                "Beside the others by": _gain(source["beside"]),
                "Verdict": VERDICTS.get(source["verdict"], source["verdict"]),
            }
            for source in found["sources"]
        ],
        hide_index=True,
    )


def _curve(found: dict[str, Any]) -> None:
    fewest = found["curve"]["rows"][0]
    for baseline, needed in found["needed"].items():
        name = wording.words(wording.ROWS, baseline).lower()
        low, rows, high = (_rows(needed[part], fewest) for part in ("low", "rows", "high"))
        st.markdown(f"An adapter is ahead of **{name}** with **{rows}** :gray[(95% interval: {low} to {high})]")
    test = found["backtest"]
    if test["of"]:
        st.caption(
            f"Forecasts made from the smaller shares alone: the interval held {test['held']} of {test['of']} times."
        )
    with st.expander("How errors fall with more data"):
        st.altair_chart(charts.growing(found["curve"], found["metric"]), width="stretch")


def _gain(measured: dict[str, float]) -> str:
    return f"{measured['value']:+.4f} [{measured['low']:+.4f}, {measured['high']:+.4f}]"


def _rows(rows: float | None, fewest: float) -> str:
    """A forecast number of rows; the fewest that were tried stand for that or less."""
    if rows is None:
        return "more than a hundred times its rows"
    return f"{rows:,.0f} rows" + (" or fewer" if rows <= fewest else "")
