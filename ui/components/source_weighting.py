"""How shared training weights its sources (CCTL): a verdict on each, and the weights over time."""

from __future__ import annotations

import streamlit as st

from orchestrator.evaluation.report import SourceWeighting
from ui.components import charts


def show(found: SourceWeighting | None) -> None:
    """Verdicts, harmful parts and weights; nothing where all sources counted alike."""
    if found is None or not found.verdicts:
        return
    st.subheader("How the shared model weights its sources", anchor=False)
    st.dataframe(
        [
            {
                "Source": source,
                "Verdict": verdict.verdict,
                "Weight": f"{verdict.weight:.2f}",
                "Why": verdict.reason,
            }
            for source, verdict in found.verdicts.items()
        ],
        hide_index=True,
    )
    if found.harmful_parts:
        st.markdown("**Parts of sources that contradict what users do in the targets**")
        st.dataframe(
            [
                {"Source": part.source, "Part": part.part, "Source value": f"{part.value:.2f}", "Rows": part.rows}
                for part in found.harmful_parts
            ],
            hide_index=True,
        )
    if found.weights:
        st.altair_chart(charts.weights(found.weights), width="stretch")
