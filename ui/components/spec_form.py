"""Declaring a domain: a form that reads the columns of the given files, or YAML that is checked as it is typed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import streamlit as st

from domains.errors import InvalidSpec
from domains.ingestion.source_files import SourceFile
from domains.spec import METRICS_BY_TASK, DomainSpec, Gate
from ui import session
from ui.components import errors, wording

GUESSES = {
    "user": ("user_id", "user", "userid", "uid", "customer_id", "reviewerid", "visitor_id"),
    "item": ("item_id", "item", "itemid", "iid", "asin", "product_id", "movie_id", "article_id", "sku"),
    "time": ("ts", "time", "timestamp", "event_time", "unixreviewtime", "date", "datetime", "created_at"),
    "label": ("click", "clicked", "label", "rating", "overall", "clk", "is_click"),
    "action": ("action", "event_type", "event", "behavior", "behaviour"),
}
"""How teams tend to name the columns."""
RATINGS = frozenset({"rating", "overall", "stars", "score"})
SAMPLE_ROWS = 200
EXAMPLE = """\
name: live-rooms
role: target
task: ctr
sources: []            # empty: every source
owner: team-live
interactions:
  user: user_id
  item: item_id
  time: ts
  label: click
items:
  id: item_id
  features: {category: category, price: number}
domain_features: {surface: live, layout: feed}
gate: {metric: auc}
"""


@dataclass(frozen=True)
class Columns:
    """The columns of the given files; None where there is no file."""

    interactions: SourceFile | None = None
    items: SourceFile | None = None
    users: SourceFile | None = None


def yaml_editor(text: str, *, key: str) -> DomainSpec | None:
    """Edit or upload a spec as YAML; returns it once it is valid, and until then shows what to correct."""
    uploaded = st.file_uploader("A spec file", ["yaml", "yml"], key=f"{key}-file")
    origin = None
    if uploaded is not None and st.session_state.get(f"{key}-read") != uploaded.file_id:
        st.session_state[f"{key}-read"] = uploaded.file_id
        st.session_state[f"{key}-text"] = uploaded.getvalue().decode("utf-8", errors="replace")
    if uploaded is not None:
        origin = uploaded.name
    st.session_state.setdefault(f"{key}-text", text)
    typed = st.text_area(
        "Spec", key=f"{key}-text", height=420, label_visibility="collapsed", help="Checked when you leave the field."
    )
    if not typed.strip():
        st.caption("Paste a spec, or upload one.")
        return None
    try:
        # A text that is one line would be taken for a path.
        spec = DomainSpec.from_yaml(typed if "\n" in typed else typed + "\n", origin=origin)
    except InvalidSpec as fault:
        errors.show_problems(fault.details["problems"], code=fault.code)
        return None
    st.success(f"Valid: {spec.name}, a {spec.role} that predicts {wording.TASKS[spec.task].lower()}.")
    return spec


def form(columns: Columns, *, key: str = "form") -> DomainSpec | None:
    """Fill in a spec; returns it once it is valid, and until then shows what is missing or wrong."""
    st.markdown("**The domain**")
    declared: dict[str, Any] = {}
    left, right = st.columns(2)
    declared["name"] = left.text_input(
        "Name", key=f"{key}-name", placeholder="live-rooms", help="Part of the endpoint's address: a-z, 0-9 and '-'."
    ).strip()
    actor = session.actor()
    declared["owner"] = right.text_input(
        "Owner",
        value=actor.name if actor.role == "owner" else "",
        key=f"{key}-owner",
        placeholder="team-live",
        help="The team that is responsible for it.",
    ).strip()
    declared["role"] = left.radio(
        "Role",
        ["target", "source"],
        key=f"{key}-role",
        format_func={"target": "Target: to be launched", "source": "Source: rich in data"}.get,
        horizontal=True,
    )
    guessed = _guess("label", columns.interactions)
    declared["task"] = right.radio(
        "Predicts",
        ["ctr", "rating"],
        index=int(guessed.lower() in RATINGS) if guessed else 0,
        key=f"{key}-task",
        format_func=wording.TASKS.get,
        horizontal=True,
    )
    if declared["role"] == "target":
        sources = [domain.name for domain in session.registry().domains() if domain.role == "source"]
        declared["sources"] = st.multiselect(
            "Sources to learn from",
            sources,
            key=f"{key}-sources",
            placeholder="every source",
            help="Empty: every source.",
        )
    typed = st.text_input(
        "Features of the domain itself (optional)",
        key=f"{key}-domain-features",
        placeholder="surface=live, layout=feed",
        help="A new domain starts close to the domains whose features it shares.",
    )
    declared["domain_features"] = _domain_features(typed)

    st.markdown("**Interactions**")
    declared["interactions"] = _interactions(columns.interactions, declared["task"], key)
    for table in ("items", "users"):
        side = _side(table, getattr(columns, table), key)
        if side is not None:
            declared[table] = side
    with st.expander("Go-live rule, history and schedule"):
        declared |= _rules(declared["task"], key)
    return _validated(declared)


def _interactions(source: SourceFile | None, task: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    titles = {
        "user": ("User column", True),
        "item": ("Item column", True),
        "time": ("Time column", False),
        "label": ("Rating column" if task == "rating" else "Click column", task == "rating"),
        "action": ("Action column", False),
    }
    for slot, (role, (title, needed)) in zip(st.columns(5), titles.items(), strict=True):
        with slot:
            column = _column(title, source, _guess(role, source), needed=needed, key=f"{key}-{role}")
        if column or needed:
            found[role] = column
    if task == "rating":
        low, high = st.columns(4)[:2]
        found["label_range"] = [
            low.number_input("Lowest rating", value=1.0, key=f"{key}-low"),
            high.number_input("Highest rating", value=5.0, key=f"{key}-high"),
        ]
    taken = {str(value) for value in found.values()}
    context = _features(
        "Request context, such as the device or the hour (optional)", source, taken, f"{key}-context", ()
    )
    if context:
        found["context"] = context
    return found


def _side(table: str, source: SourceFile | None, key: str) -> dict[str, Any] | None:
    if source is None and not st.checkbox(f"There is a file of {table}", key=f"{key}-has-{table}"):
        return None
    st.markdown(f"**{table.capitalize()}**")
    left, right = st.columns([1, 4])
    with left:
        identity = _column(
            "Id column", source, _guess(table[:-1], source) or _guess_id(source), needed=True, key=f"{key}-{table}-id"
        )
    with right:
        features = _features("Features", source, {str(identity)}, f"{key}-{table}-features", None)
    return {"id": identity, "features": features}


def _column(title: str, source: SourceFile | None, guess: str | None, *, needed: bool, key: str) -> str | None:
    if source is None:
        typed = st.text_input(title, value=(guess or "") if needed else "", key=f"{key}-typed").strip()
        return typed or None
    names = list(source.columns)
    index = names.index(guess) if guess in names else None
    if needed:
        return st.selectbox(title, names, index=index, key=f"{key}-chosen", placeholder="choose")
    chosen = st.selectbox(title, ["(none)", *names], index=0 if index is None else index + 1, key=f"{key}-chosen")
    return None if chosen == "(none)" else chosen


def _features(
    title: str, source: SourceFile | None, taken: set[str], key: str, default: Sequence[str] | None
) -> dict[str, str]:
    if source is None:
        typed = st.text_input(title, key=f"{key}-typed", placeholder="category, price:number")
        pairs = (part.partition(":") for part in typed.split(",") if part.strip())
        return {name.strip(): kind.strip() or "category" for name, _, kind in pairs}
    names = [name for name in source.columns if name not in taken]
    if not names:
        return {}
    chosen = st.multiselect(
        title,
        names,
        default=names if default is None else [name for name in default if name in names],
        key=f"{key}-chosen",
    )
    numeric = numeric_columns(source)
    numbers = (
        st.multiselect(
            "Numeric ones",
            chosen,
            default=[name for name in chosen if name in numeric],
            key=f"{key}-numbers-{'-'.join(chosen)}",
            help="The others are categories.",
        )
        if chosen
        else []
    )
    return {name: "number" if name in numbers else "category" for name in chosen}


def _rules(task: str, key: str) -> dict[str, Any]:
    gate, history = st.columns(2)
    usual = Gate()
    baselines = list(get_args(Gate.model_fields["baseline"].annotation))
    rule = {
        "baseline": gate.selectbox(
            "Baseline to beat",
            [baseline for baseline in baselines if not (task == "rating" and baseline == "popularity")],
            index=0,
            format_func=wording.row_name,
            key=f"{key}-baseline-{task}",
        ),
        "metric": gate.selectbox(
            "Metric",
            METRICS_BY_TASK[task],
            format_func=wording.metric_name,
            key=f"{key}-metric-{task}",
        ),
        "minimum_cold_users": int(
            gate.number_input("Minimum number of cold users", 1, value=usual.minimum_cold_users, key=f"{key}-cold")
        ),
        "maximum_prediction_bias": float(
            gate.number_input(
                "Maximum prediction bias (share)",
                0.01,
                value=usual.maximum_prediction_bias,
                key=f"{key}-bias",
            )
        ),
        "cold_share": float(
            gate.number_input("Share of users held out as cold", 0.01, 0.99, usual.cold_share, key=f"{key}-share")
        ),
    }
    short = int(history.number_input("Latest events of this domain to read", 1, 2000, 24, key=f"{key}-short"))
    schedule = history.text_input(
        "Retrain schedule (cron, UTC; optional)", placeholder="0 3 * * *", key=f"{key}-schedule"
    ).strip()
    return {"gate": rule, "history": {"short": short}, **({"schedule": schedule} if schedule else {})}


def _validated(declared: dict[str, Any]) -> DomainSpec | None:
    blank = [name for name in ("name", "owner") if not declared[name]]
    blank += [f"interactions.{role}" for role, column in declared["interactions"].items() if column is None]
    blank += [f"{table}.id" for table in ("items", "users") if table in declared and not declared[table]["id"]]
    try:
        return DomainSpec.from_mapping(declared)
    except InvalidSpec as fault:
        wrong = [problem for problem in fault.details["problems"] if problem["field"] not in blank]
    if wrong:
        errors.show_problems(wrong, code=InvalidSpec.code)
    if blank:
        st.info("Still to fill in: " + ", ".join(_field_in_words(field) for field in blank) + ".")
    return None


def _field_in_words(field: str) -> str:
    table, _, role = field.partition(".")
    if not role:
        return f"the {table}"
    return f"the {role} column of the {table}"


def _domain_features(typed: str) -> dict[str, str | float]:
    found: dict[str, str | float] = {}
    for part in typed.split(","):
        name, _, value = (piece.strip() for piece in part.replace(":", "=").partition("="))
        if not name:
            continue
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = value
    return found


def _guess(role: str, source: SourceFile | None) -> str | None:
    names = GUESSES.get(role, ())
    if source is None:
        return names[0] if names and role in ("user", "item") else None
    folded = {column.lower(): column for column in source.columns}
    return next((folded[name] for name in names if name in folded), None)


def _guess_id(source: SourceFile | None) -> str | None:
    if source is None:
        return None
    return next((column for column in source.columns if column.lower().endswith("id")), None)


def numeric_columns(source: SourceFile) -> set[str]:
    """Columns that hold numbers: by type in Parquet, by a look at the first rows of a text file."""
    if source.kind == "parquet":
        number = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "HUGEINT")
        return {
            name
            for name, kind in zip(source.columns, source.types, strict=True)
            if any(part in kind for part in number)
        }
    if source.path.suffix.lower() == ".gz":
        return set()
    with source.path.open(encoding="utf-8", errors="replace", newline="") as stream:
        rows = [row for row, _ in zip(csv.reader(stream, delimiter=source.delimiter), range(SAMPLE_ROWS), strict=False)]
    body = rows[source.header_line :]
    return {
        name
        for column, name in enumerate(source.columns)
        if (cells := [row[column] for row in body if len(row) > column and row[column] != ""])
        and all(_is_number(cell) for cell in cells)
    }


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
