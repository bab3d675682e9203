"""What short runs say before a launch: which sources help, and how much data the domain still needs."""

from __future__ import annotations

import streamlit as st

from domains.registry.records import Domain
from orchestrator import use_cases
from orchestrator.evaluation.preview_report import PreviewReport
from ui import session
from ui.components import charts, layout, runs, wording

VERDICTS = {
    "borrow": "borrow: it lowers the error",
    "do not borrow": "do not borrow: it raises the error",
    "no clear gain": "no clear gain: the interval includes zero",
}


def show(domain: Domain) -> None:
    """The newest preview of a domain, and the button that makes one."""
    report = use_cases.latest_preview(domain.name, registry=session.registry())
    going = [run for run in runs.active(session.registry().runs(domain.name)) if run.kind == "preview"]
    st.subheader("Do the sources help? A preview from short runs", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(
            _summary(report) if report else "Not tried yet. A few minutes of short runs tell before any launch.",
            width="stretch",
        )
        mine = session.actor().may("owner", domain)
        if mine and st.button("Preview again" if report else "Preview", disabled=bool(going), key="preview"):
            _start(domain)
    if report:
        _sources(report)
        _data_needed(report)


@layout.dialog("Preview")
def _start(domain: Domain) -> None:
    st.markdown(
        "Graft trains small networks for a few hundred steps with and without each source, and adapters on growing "
        f"shares of **{domain.name}**'s rows. It keeps only the measurements, and it does not touch the cold users on "
        "whom launches are evaluated."
    )
    runs.start_button("preview", domain=domain.name, params={}, label="Start the short runs")


def _summary(report: PreviewReport) -> str:
    return (
        f"Made on {report.made_at[:10]}, on {report.evaluation_users:,} users, each measured by a run that was not "
        f"trained on them. All sources together lower {report.error} by "
        f"**{wording.gain(report.together)}**."
    )


def _sources(report: PreviewReport) -> None:
    st.dataframe(
        [
            {
                "Source": source.name,
                "Alone, it lowers the error by": wording.gain(source.alone),
                "Added to the others, by": wording.gain(source.beside),
                "Verdict": VERDICTS[source.verdict],
            }
            for source in report.sources
        ],
        hide_index=True,
    )


def _data_needed(report: PreviewReport) -> None:
    fewest = report.curve.rows[0]
    for baseline, needed in report.needed.items():
        name = wording.row(baseline)
        low, rows, high = (_rows(part, fewest) for part in (needed.low, needed.rows, needed.high))
        st.markdown(f"An adapter beats the **{name}** baseline with **{rows}** :gray[(95% interval: {low} to {high})]")
    test = report.backtest
    if test.of:
        st.caption(
            f"Tested on smaller shares: {test.held} of {test.of} forecast intervals contained what was then measured."
        )
    with st.expander("Error by number of training rows"):
        st.altair_chart(charts.errors_by_rows(report.curve, report.error), width="stretch")


def _rows(rows: float | None, fewest: float) -> str:
    """A forecast number of rows; the fewest that were tried stand for that or less."""
    if rows is None:
        return "more than a hundred times its rows"
    return f"{rows:,.0f} rows" + (" or fewer" if rows <= fewest else "")
