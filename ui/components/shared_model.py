"""The shared model: what is live, how good it is, and the dialog that trains it."""

from __future__ import annotations

from typing import Any, get_args

import streamlit as st

from domains.registry.records import Domain, Live, Version
from orchestrator.evaluation.report import HeldOut, SharedReport
from orchestrator.training.recipe import Recipe
from ui import session
from ui.components import layout, runs, source_weighting, wording

CONTRASTIVE_WEIGHT = 0.1
"""What LCN's paper gives its contrastive loss."""


def show(domains: list[Domain], live: Live | None) -> None:
    """A card with the live shared model and a button that trains another."""
    with_data = [domain for domain in domains if domain.counts.get("rows_added")]
    trainable = any(domain.role == "source" for domain in with_data)
    version = None if live is None else session.registry().version(live.version_id)
    admin = session.actor().may("admin")
    with st.container(border=True):
        text, button = st.columns([4, 1], vertical_alignment="center")
        if live is None or version is None:
            text.markdown("**Shared model** :gray[not trained yet]")
            text.caption(
                "All targets build on one shared model. Train it on the sources' data; after that a new target "
                "launches in minutes."
                if trainable
                else "All targets build on one shared model. It needs data from at least one source."
            )
        else:
            text.markdown(f"**Shared model** `{wording.short(version.id)}`")
            trained_on = ", ".join(version.metrics) or "sources that are not on record"
            text.caption(f"Live since {wording.when(live.since)}, trained on {trained_on}.")
        if button.button(
            "Train" if live is None else "Train again",
            type="primary" if live is None else "secondary",
            width="stretch",
            disabled=not (trainable and admin),
            help=_obstacle(trainable=trainable, admin=admin),
            key="train-shared",
        ):
            _train(with_data)
        if version is not None and version.metrics:
            with st.expander("How good is it?"):
                _metrics(version)
                source_weighting.show(SharedReport.of(version).source_weighting)


def _obstacle(*, trainable: bool, admin: bool) -> str | None:
    if not admin:
        return "An admin trains the model that all domains share."
    return None if trainable else "No source domain has data yet."


def _metrics(version: Version) -> None:
    st.caption("On each source's held-out events, next to the item mean. Intervals are 95% over users.")
    rows: list[dict[str, Any]] = []
    notes = []
    for name, measured in HeldOut.by_domain(version).items():
        if not measured.rows:
            notes.append(f"{name}: {measured.note or 'not measured'}")
            continue
        row: dict[str, Any] = {"Domain": name, "Held-out events": measured.examples}
        for metric, value in measured.rows["shared"].items():
            title = wording.metric_name(metric)
            row[title] = wording.interval(value)
            row[f"{title} of item mean"] = wording.number(measured.rows["item_mean"][metric].value)
        rows.append(row)
    if rows:
        st.dataframe(rows, hide_index=True)
    for note in notes:
        st.caption(note)


@layout.dialog("Train the shared model")
def _train(with_data: list[Domain]) -> None:
    tasks = sorted({domain.spec.task for domain in with_data if domain.role == "source"})
    task = (
        st.radio("What it predicts", tasks, format_func=lambda task: wording.TASKS[task], horizontal=True)
        if len(tasks) > 1
        else tasks[0]
    )
    fitting = [domain.name for domain in with_data if domain.role == "source" and domain.spec.task == task]
    chosen = st.multiselect(
        "Sources to learn from",
        fitting,
        default=fitting,
        help="Leave out a source whose labels you do not trust. Targets are not trained on; each has its own launch.",
    )
    if not chosen:
        st.caption(":red[Choose at least one source.]")
        return
    left_out = [name for name in fitting if name not in chosen]
    with st.expander("How it reads histories and learns"):
        choices = _choices(task)
    runs.start_button(
        "train-shared",
        domain=None,
        params={"task": task, **({"leave_out": left_out} if left_out else {}), **choices},
        label="Train",
    )


def _choices(task: str) -> dict[str, Any]:
    """What differs from the task's default recipe."""
    usual = Recipe.model_validate({"task": task})
    architectures = list(wording.ARCHITECTURES)
    architecture = st.selectbox(
        "Histories are read by",
        architectures,
        index=architectures.index(usual.architecture),
        format_func=lambda name: wording.words(wording.ARCHITECTURES, name),
    )
    chosen: dict[str, Any] = {"architecture": architecture}
    if architecture != "dacdr":
        sizes = get_args(Recipe.model_fields["pyramid"].annotation)
        if architecture == "domain_over_pyramid":  # which reads what a pyramid selects
            sizes = tuple(size for size in sizes if size != "none")
        chosen["pyramid"] = st.selectbox(
            "Pyramid", sizes, format_func=lambda name: wording.words(wording.PYRAMIDS, name)
        )
    if st.checkbox("Align what users like in different domains (contrastive loss, LCN); scoring stays as fast"):
        chosen["contrastive_weight"] = CONTRASTIVE_WEIGHT
    if st.checkbox("Weight each source by how much it helps the targets (CCTL); training takes longer"):
        chosen["source_weighting"] = "weighed"
    if st.checkbox("Give each user an embedding; helps only users in the training data"):
        chosen["user_embedding"] = True
    return {name: value for name, value in chosen.items() if value != getattr(usual, name)}
