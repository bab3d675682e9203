"""Domains: what there is, what answers where, and the shared model under it all."""

from __future__ import annotations

from typing import Any, get_args

import streamlit as st

from domains.registry.records import Domain, Live, Run, Version
from orchestrator.training.recipe import Recipe
from ui import session
from ui.components import elements, version_report, wording

PAGE_SIZE = 25
CONTRASTIVE_WEIGHT = 0.1
"""What LCN's paper gives its contrastive loss."""


def show() -> None:
    """Draw the page."""
    elements.heading("Domains", "Every recommendation surface, what its answers rest on, and since when.")
    registry = session.registry()
    domains = registry.domains()
    if not domains:
        elements.empty(
            "No domain yet",
            "A domain is a surface with its own items and users, such as a video feed or a new live page. "
            "Register the data-rich ones as sources first; a new one then borrows what they know.",
            page=elements.REGISTER,
            link="Register the first domain",
        )
        return
    lives = {live.domain: live for live in registry.lives()}
    latest: dict[str | None, Run] = {}
    for run in registry.runs(limit=500):
        latest.setdefault(run.domain, run)
    _summary(domains, lives)
    _shared_model(domains, lives.get(None))
    with st.container():
        elements.watch_runs(None, everything=True)
    _list(domains, lives, latest)


def _summary(domains: list[Domain], lives: dict[str | None, Live]) -> None:
    sources = [domain for domain in domains if domain.role == "source"]
    adapted = [
        domain
        for domain in domains
        if (live := lives.get(domain.name)) is not None
        and session.registry().version(live.version_id).level == "adapter"
    ]
    columns = st.columns([1, 1, 1, 1, 1.2], vertical_alignment="center")
    columns[0].metric("Sources", len(sources))
    columns[1].metric("Targets", len(domains) - len(sources))
    columns[2].metric("Answer with an adapter", len(adapted))
    columns[3].metric("Events", wording.count(sum(domain.counts.get("rows_added", 0) for domain in domains)))
    if columns[4].button("Register a domain", type="primary", width="stretch"):
        st.switch_page(elements.REGISTER)


def _shared_model(domains: list[Domain], live: Live | None) -> None:
    ready = [domain for domain in domains if domain.counts.get("rows_added")]
    with st.container(border=True):
        text, button = st.columns([4, 1], vertical_alignment="center")
        if live is None:
            text.markdown("**Shared model** :gray[not trained yet]")
            text.caption(
                "All domains stand on one shared model. Train it on what the sources know; after that a new domain "
                "launches in minutes."
                if any(domain.role == "source" for domain in ready)
                else "All domains stand on one shared model. It needs the data of at least one source domain."
            )
        else:
            version = session.registry().version(live.version_id)
            text.markdown(f"**Shared model** `{wording.short(live.version_id)}`")
            learnt = list(version.metrics)
            text.caption(f"Live since {wording.when(live.since)}, trained on {', '.join(learnt) or 'all domains'}.")
        if button.button(
            "Train" if live is None else "Train again",
            type="primary" if live is None else "secondary",
            width="stretch",
            disabled=not any(domain.role == "source" for domain in ready),
            help=None if ready else "There is no data to train on yet.",
            key="train-shared",
        ):
            _train_dialog(ready)
        if live is not None and version.metrics:
            with st.expander("How good is it?"):
                _shared_metrics(version)
                version_report.source_weighting(version.report.get("source_weighting"))


def _shared_metrics(version: Version) -> None:
    st.caption("On each domain's held-out events, beside the mean of each item. Intervals are 95% over users.")
    rows: list[dict[str, Any]] = []
    notes = []
    for name, measured in version.metrics.items():
        if "rows" not in measured:
            notes.append(f"{name}: {measured.get('note', 'not measured')}")
            continue
        of_row = measured["rows"]
        row: dict[str, Any] = {"Domain": name, "Held-out events": measured["examples"]}
        for metric in of_row["shared"]:
            title = wording.metric_name(metric)
            row[title] = wording.interval(of_row["shared"][metric])
            row[f"{title} of item mean"] = f"{of_row['item_mean'][metric]['value']:.4f}"
        rows.append(row)
    if rows:
        st.dataframe(rows, hide_index=True)
    for note in notes:
        st.caption(note)


@elements.dialog("Train the shared model")
def _train_dialog(ready: list[Domain]) -> None:
    tasks = sorted({domain.spec.task for domain in ready if domain.role == "source"})
    task = (
        st.radio("What it predicts", tasks, format_func=lambda task: wording.TASKS[task], horizontal=True)
        if len(tasks) > 1
        else tasks[0]
    )
    fitting = [domain.name for domain in ready if domain.spec.task == task]
    chosen = st.multiselect(
        "Domains to learn from",
        fitting,
        default=fitting,
        help="Leave out a domain that you want to launch as new afterwards, or whose labels you do not trust.",
    )
    if not any(domain.role == "source" for domain in ready if domain.name in chosen):
        st.caption(":red[Choose at least one source domain.]")
        return
    left_out = [name for name in fitting if name not in chosen]
    with st.expander("How it reads histories and learns"):
        choices = _choices(task)
    elements.start_button(
        "train-shared",
        domain=None,
        params={"task": task, **({"leave_out": left_out} if left_out else {}), **choices},
        label="Train",
    )


def _choices(task: str) -> dict[str, Any]:
    """What differs from the task's usual recipe, which is what evidence favoured."""
    usual = Recipe.model_validate({"task": task})
    architectures = list(wording.ARCHITECTURES)
    architecture = st.selectbox(
        "A history is read by",
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
    if st.checkbox("Bring tastes of two domains together while learning (CRP); costs nothing when answering"):
        chosen["contrastive_weight"] = CONTRASTIVE_WEIGHT
    if st.checkbox("Weigh each source by what it gives the targets (CCTL); takes longer"):
        chosen["source_weighting"] = "weighed"
    if st.checkbox("Know users by their id too; helps only those whom training knows"):
        chosen["user_embedding"] = True
    return {name: value for name, value in chosen.items() if value != getattr(usual, name)}


def _list(domains: list[Domain], lives: dict[str | None, Live], latest: dict[str | None, Run]) -> None:
    shown = domains
    if len(domains) > 8:
        asked, role = st.columns([3, 1])
        text = asked.text_input("Find", placeholder="name or owner", label_visibility="collapsed").strip().lower()
        wanted = role.selectbox("Role", ["all roles", "target", "source"], label_visibility="collapsed")
        shown = [
            domain
            for domain in domains
            if (text in domain.name or text in domain.owner.lower()) and wanted in ("all roles", domain.role)
        ]
    shown = sorted(shown, key=lambda domain: (domain.state == "retired", domain.role == "source", -domain.number))
    if not shown:
        st.caption("No domain matches.")
    pages = -(-len(shown) // PAGE_SIZE)
    page = st.segmented_control("Page", range(1, pages + 1), default=1) or 1 if pages > 1 else 1
    for kind, heading in (("target", "Targets"), ("source", "Sources")):
        of_role = [domain for domain in shown[(page - 1) * PAGE_SIZE : page * PAGE_SIZE] if domain.role == kind]
        if of_role:
            st.subheader(heading, anchor=False)
            with st.container(border=True):
                _heads()
                for domain in of_role:
                    _row(domain, lives.get(domain.name), latest.get(domain.name))


WIDTHS = [1.7, 1.3, 1.4, 1.9, 1.7, 2.0]


def _heads() -> None:
    for slot, title in zip(
        st.columns(WIDTHS),
        ("Domain", "State", "Answers with", "Data", "Live version", "Last run"),
        strict=True,
    ):
        slot.caption(title)


def _row(domain: Domain, live: Live | None, run: Run | None) -> None:
    version = elements.live_version(live)
    counts = domain.counts
    with st.container(key=f"row-{domain.name}"):
        name, state, level, data, since, last = st.columns(WIDTHS, vertical_alignment="top")
        with name.container(gap=None):
            st.page_link(elements.DOMAIN, label=domain.name, query_params={"name": domain.name})
            st.caption(f"{wording.TASKS[domain.spec.task].lower()} · {domain.owner}")
        with state:
            elements.badge(wording.label(wording.STATES, domain.state))
        with level:
            if domain.role == "target":
                elements.badge(elements.level_of(domain, version))
            else:
                st.caption("lends its histories")
        if counts.get("rows_added"):
            _cell(
                data,
                f"{wording.count(counts['rows_added'])} events",
                f"{wording.count(counts.get('users'))} users, {wording.count(counts.get('items'))} items",
            )
        else:
            data.caption("no data yet")
        if live is not None:
            _cell(since, f"`{wording.short(live.version_id)}`", f"since {wording.ago(live.since)}")
        else:
            since.caption("–")
        if run is not None:
            ended = run.finished_at or run.started_at
            state_of_run = wording.label(wording.RUN_STATES, run.state).text.lower()
            _cell(last, wording.words(wording.KINDS, run.kind), f"{state_of_run} {wording.ago(ended)}")
        else:
            last.caption("–")


def _cell(place: Any, above: str, below: str) -> None:
    place.markdown(f"{above}  \n:small[:gray[{below}]]")


show()
