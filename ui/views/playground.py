"""Playground: pick a user, see how the endpoint ranks for them, and why."""

from __future__ import annotations

import contextlib
import json
import random
import shlex
from typing import Any

import streamlit as st

from domains.registry.records import Domain
from orchestrator import use_cases
from orchestrator.data.sample_users import recent_events, sample_users
from ui import session
from ui.components import errors, layout, navigation, tables, wording

MOST_EVENTS = 12


def show() -> None:
    """Draw the page."""
    layout.heading(
        "Playground", "Request a ranking from a domain's endpoint, as any client would, and see what it rests on."
    )
    domains = [domain for domain in session.registry().domains() if domain.counts.get("rows_added")]
    domains.sort(key=lambda domain: (domain.role != "target", -domain.number))
    if not domains:
        layout.empty(
            "No domain has data yet",
            "Once a domain has data, its endpoint can rank: by popularity at first, better after a launch.",
            page=navigation.REGISTER,
            link="Register a domain",
        )
        return
    domain = _chosen(domains)
    left, right = st.columns([1, 1.25], gap="medium")
    with left:
        user_id = _user(domain)
        with errors.shown():
            _history(user_id)
    with right, errors.shown():
        item_ids, top_k = _candidates(domain)
        _ask(domain, user_id, item_ids, top_k)


def _chosen(domains: list[Domain]) -> Domain:
    names = [domain.name for domain in domains]
    asked = st.query_params.get("name")
    at = names.index(asked) if asked in names else 0
    left, right = st.columns([1, 1.25], gap="medium", vertical_alignment="bottom")
    chosen = left.selectbox("Domain", names, index=at, key="playground-domain")
    domain = next(domain for domain in domains if domain.name == chosen)
    level = wording.label(wording.FALLBACK_LEVELS, session.fallback_level(domain))
    with right, st.container(horizontal=True, vertical_alignment="center"):
        layout.badge(level)
        st.caption(level.meaning, width="content")
    return domain


def _user(domain: Domain) -> str:
    users: list[dict[str, Any]] = []
    with errors.shown():
        users = _sample_users(domain.name, session.home())
    events = {user["user_id"]: user["source_events"] for user in users}
    how = st.segmented_control(
        "User", ["Pick one", "Type an id"], default="Pick one" if users else "Type an id", required=True
    )
    if how == "Pick one" and users:
        return str(
            st.selectbox(
                "User",
                list(events),
                format_func=lambda user: f"{user} · {wording.plural(events[user], 'past event')}",
                label_visibility="collapsed",
                key=f"user-{domain.name}",
            )
        )
    return st.text_input(
        "User id", value="someone-new", label_visibility="collapsed", help="An id that Graft has never seen works too."
    ).strip()


def _history(user_id: str) -> None:
    st.markdown("**Latest events in other domains**")
    specs = {domain.name: domain.spec for domain in session.registry().domains()}
    seen = _recent_events(user_id, session.home()) if user_id else []
    if not seen:
        st.caption("None: Graft has no history of this user.")
        return
    timed = any(event["time_us"] > 1 for event in seen)
    rows = []
    for event in seen:
        features = session.item_features(event["domain"]).get(event["item_id"], {})
        rows.append(
            {
                **({"Time": wording.event_time(event["time_us"])} if timed else {}),
                "Domain": event["domain"],
                "Event": wording.event(event, specs.get(event["domain"])),
                "Item features": _features(features) or event["item_id"],
                "Item": event["item_id"],
            }
        )
    tables.show(rows, hide_index=True, height=38 + 35 * len(rows))


def _candidates(domain: Domain) -> tuple[list[str], int]:
    items = session.popularity(domain.name)
    popular, rest = [row["item_id"] for row in items], random.Random(domain.number)
    with st.expander("Candidates", expanded=False):
        first, second, third = st.columns(3)
        most = first.number_input("Most popular", 0, 500, min(10, len(items)), key=f"popular-{domain.name}")
        others = second.number_input(
            "Random others", 0, 500, min(15, max(0, len(items) - 10)), key=f"random-{domain.name}"
        )
        top_k = third.number_input("Return the top", 1, 1000, 15, key=f"top-{domain.name}")
        tail = popular[int(most) :]
        default = popular[: int(most)] + rest.sample(tail, min(int(others), len(tail)))
        typed = st.text_area(
            "Or list item ids, one per line", placeholder="\n".join(default[:3]), key=f"items-{domain.name}", height=90
        )
    named = [line.strip() for line in typed.splitlines() if line.strip()]
    return (named or default)[:1000], int(top_k)


def _ask(domain: Domain, user_id: str, item_ids: list[str], top_k: int) -> None:
    body = {"user_id": user_id, "items": [{"item_id": item} for item in item_ids], "top_k": top_k}
    pressed = st.button(
        f"Rank {wording.plural(len(item_ids), 'item')} for {user_id or '…'}",
        type="primary",
        disabled=not (user_id and item_ids),
        width="stretch",
        key="rank",
    )
    key = f"ranking-{domain.name}"
    if pressed:
        st.session_state.pop(key, None)
        with errors.shown():
            answer = use_cases.rank(
                domain.name, user_id=user_id, item_ids=item_ids, top_k=top_k, settings=session.settings()
            )
            st.session_state[key] = {"body": body, "answer": answer}
    held = st.session_state.get(key)
    with st.container():
        if held is not None and held["body"] == body:
            _answer(domain, held["answer"])
        elif not pressed:
            st.caption("The ranking appears here.")
    _curl(domain, body)


def _answer(domain: Domain, answer: dict[str, Any]) -> None:
    level = wording.label(wording.FALLBACK_LEVELS, answer["served_by"])
    with st.container(horizontal=True, vertical_alignment="center"):
        layout.badge(level)
        st.markdown(
            f"version `{wording.short(answer['model_version'])}` · took **{answer['took_ms']:.1f} ms**", width="content"
        )
    reason = answer.get("reason")
    if reason:
        st.info(f"Ranked by popularity only: {wording.words(wording.REASONS, reason)}.")
    features = session.item_features(domain.name)
    popularity_ranks = {row["item_id"]: rank for rank, row in enumerate(session.popularity(domain.name), 1)}
    score = "Click probability" if domain.spec.task == "ctr" else "Rating"
    rows = []
    for rank, item in enumerate(answer["items"], 1):
        why = item.get("reason")
        row = {
            "#": rank,
            "Item": item["item_id"],
            score: item["score"] * (100 if domain.spec.task == "ctr" else 1),
            "By popularity": f"#{popularity_ranks[item['item_id']]}" if item["item_id"] in popularity_ranks else "–",
            "Features": _features(features.get(item["item_id"], {})),
        }
        if why and why != reason:
            row["Note"] = wording.words(wording.REASONS, why)
        rows.append(row)
    top = max(row[score] for row in rows)
    tables.show(
        rows,
        hide_index=True,
        height=38 + 35 * len(rows),
        column_config={
            "#": st.column_config.NumberColumn(width=40),
            score: st.column_config.ProgressColumn(
                min_value=0,
                max_value=float(top) or 1.0,
                format="%.1f%%" if domain.spec.task == "ctr" else "%.2f",
            ),
            "By popularity": st.column_config.Column(
                width=90, help="The item's rank if everybody saw the most popular items first."
            ),
        },
    )


def _curl(domain: Domain, body: dict[str, Any]) -> None:
    with st.expander("The same request with curl"):
        url = f"{session.settings().service_url}/v1/domains/{domain.name}/rank"
        data = shlex.quote(json.dumps(body))
        command = f"curl --silent {url} \\\n  --header 'content-type: application/json' \\\n  --data {data}"
        st.code(command, language="bash", wrap_lines=True)


def _features(features: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else str(value)
        for name, value in features.items()
        if value is not None
    )


@session.cached
def _sample_users(domain: str, home: session.Home) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):  # histories are built when training starts
        return sample_users(domain, settings=home.settings)
    return []


@session.cached
def _recent_events(user_id: str, home: session.Home) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError):
        return recent_events(user_id, settings=home.settings, registry=home.registry, most=MOST_EVENTS)
    return []


show()
