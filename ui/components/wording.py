"""What the pages say: states, levels, metrics, reasons and times in plain words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from domains.registry.records import Domain
from domains.spec import DomainSpec
from models.intervals import Interval
from models.metrics import METRICS
from orchestrator.evaluation.gate import STRONGEST
from orchestrator.evaluation.rows import ROWS, SEGMENTS
from orchestrator.evaluation.rows import label as label_of_row

Colour = Literal["red", "orange", "yellow", "blue", "green", "violet", "gray", "grey", "primary"]


class Label(NamedTuple):
    """A short name, the colour of its badge, and one sentence on what it means."""

    text: str
    colour: Colour
    meaning: str


STATES: dict[str, Label] = {
    "registered": Label("Registered", "gray", "The name is taken; no data has arrived yet."),
    "data_ready": Label("Data ready", "blue", "Data is in; the domain can be trained on or launched."),
    "live": Label("Live", "green", "A trained version is live."),
    "paused": Label("Paused", "yellow", "Items are ranked by popularity until the domain is resumed."),
    "retired": Label("Retired", "red", "Closed for good."),
}
CHALLENGER = Label("Challenger", "violet", "A version passed the gate and waits to be promoted.")
FORCED = Label("Forced", "red", "A person set the live version live against the gate.")
MOVES = {
    "promote": "promoted",
    "force": "forced, against the gate",
    "roll_back": "rolled back",
    "withdraw": "withdrawn",
}
"""What moves of a live pointer are called."""
FALLBACK_LEVELS: dict[str, Label] = {
    "retired": Label("No answers", "gray", "The domain is retired: its endpoint answers nothing."),
    "none": Label("No answers yet", "gray", "There is no data to answer from."),
    "prior": Label("Popularity", "gray", "Items are ranked by popularity; no model scores this domain yet."),
    "zero_shot": Label("Shared model", "blue", "The shared model ranks; no adapter of this domain is live yet."),
    "adapter": Label("Own adapter", "green", "The domain's own adapter ranks, on top of the shared model."),
}
RUN_STATES: dict[str, Label] = {
    "queued": Label("Queued", "gray", "Waiting for a worker."),
    "running": Label("Running", "blue", "In progress."),
    "succeeded": Label("Succeeded", "green", "Done."),
    "failed": Label("Failed", "red", "Stopped by an error."),
    "cancelled": Label("Cancelled", "orange", "Stopped on request."),
}
KINDS = {
    "train-shared": "Train the shared model",
    "launch-domain": "Launch",
    "retrain": "Retrain",
    "preview": "Preview",
    "ingest": "Add data",
}
REASONS = {
    "item_unknown": "Graft does not know this item",
    "user_unknown": "Graft does not know this user, so items are ranked by popularity",
    "no_history": "the user has no history to read, so items are ranked by popularity",
    "features_unavailable": "the feature store does not answer, so items are ranked by popularity",
    "no_version": "no model is live here, so items are ranked by popularity",
    "paused": "the domain is paused, so items are ranked by popularity",
    "model_fault": "the model failed on this request, so items are ranked by popularity",
}
ACTIONS = {
    "register_domain": "registered the domain",
    "update_spec": "changed the spec",
    "record_ingest": "added data",
    "add_version": "added a version",
    "promote": "promoted a version",
    "roll_back": "rolled back",
    "reevaluate": "evaluated a version again",
    "resume_run": "resumed a run",
    "force": "set a version live against the gate",
    "withdraw": "took the live version down",
    "offer": "changed which version waits",
    "cancel_run": "stopped a run",
    "refuse_role": "was refused for lack of a role",
    "refuse_login": "was refused at the sign in",
    "refuse_path": "was refused a file of the server",
    "end_sessions": "signed out",
    "sign_in": "signed in",
    "add_user": "added a user",
    "change_user": "changed a user",
    "remove_user": "removed a user",
    "set_password": "set a password",
    "change_policy": "changed the settings of this installation",
    "add_key": "made an API key",
    "rotate_key": "rotated an API key",
    "revoke_key": "revoked an API key",
}
ARCHITECTURES = {
    "dacdr": "DACDR: cross-attention between history, domain and item",
    "lcn": "LCN: a pyramid that narrows a long history to its most relevant events",
    "dacdr+lcn": "DACDR and LCN side by side",
    "domain_over_pyramid": "DACDR over the events that LCN's pyramid selects",
}
PYRAMIDS = {
    "auto": "automatic, by the length of the histories",
    "LCN-200-50": "LCN-200-50",
    "LCN-500-100": "LCN-500-100",
    "none": "none: only the latest events",
}
TASKS = {"ctr": "Clicks", "rating": "Ratings"}


def label(words: Mapping[str, Label], key: str) -> Label:
    """The label of a state or level; one that is not in the table is shown as it is."""
    return words.get(key, Label(key.replace("_", " ").capitalize(), "gray", ""))


def words(table: Mapping[str, str], key: str) -> str:
    """A key in words; one that is not in the table is shown as it is."""
    return table.get(key, key.replace("_", " "))


def metric_name(key: str) -> str:
    """A metric as a heading; one that is not in the table is shown as it is."""
    return _capitalised(METRICS[key].label if key in METRICS else key.replace("_", " "))


def row(key: str) -> str:
    """A row of a results table, or the gate's baseline, within a sentence."""
    return "the strongest required baseline" if key == STRONGEST else label_of_row(key)


def row_name(key: str) -> str:
    """A row of a results table as a heading."""
    return _capitalised(row(key))


def segment_name(key: str) -> str:
    """A segment of the users or items as a heading."""
    return _capitalised(words(SEGMENTS, key))


def count(number: float | None) -> str:
    """``12,345``, or a dash for what is not known."""
    return "–" if number is None else f"{number:,.0f}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def ago(at: datetime, *, now: datetime | None = None) -> str:
    """``3 minutes ago``; the date once it is more than a month."""
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    if seconds < 45:
        return "just now"
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size * 0.75:
            passed = max(1, round(seconds / size))
            return f"{at:%-d %b %Y}" if unit == "day" and passed > 31 else f"{plural(passed, unit)} ago"
    return "just now"


def when(at: datetime) -> str:
    """``21 Nov 2025, 13:22 UTC``."""
    return f"{at.astimezone(UTC):%-d %b %Y, %H:%M} UTC"


def event_time(time_us: int | None) -> str:
    """The time of an event, in microseconds since 1970, as a date; data without times has a dash."""
    if not time_us or time_us < 2:
        return "–"
    return f"{datetime.fromtimestamp(time_us / 1e6, UTC):%-d %b %Y, %H:%M}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3_600} h {whole % 3_600 // 60} min"


def short(version_id: str | None) -> str:
    """The first twelve characters of a version's content hash."""
    return "–" if version_id is None else version_id.removeprefix("sha256:")[:12]


def interval(measured: Interval, digits: int = 4) -> str:
    """``0.7123 (0.6990 to 0.7251)``."""
    if math.isnan(measured.value):
        return "not defined"
    return f"{measured.value:.{digits}f} ({measured.low:.{digits}f} to {measured.high:.{digits}f})"


def number(value: float, digits: int = 4) -> str:
    """``0.7123``, or words where it is not defined."""
    return "not defined" if math.isnan(value) else f"{value:.{digits}f}"


def gain(measured: Interval) -> str:
    """``+0.0123 (+0.0090 to +0.0151)``."""
    if math.isnan(measured.value):
        return "not defined"
    return f"{measured.value:+.4f} ({measured.low:+.4f} to {measured.high:+.4f})"


def sentence(reason: str) -> str:
    """A reason of the gate as a sentence: metrics and baselines by their names, not their keys."""
    names = {
        **{key: metric.label for key, metric in METRICS.items()},
        **{key: row(key) for key in ROWS if key not in ("adapter", "shared", "live")},
    }
    return _capitalised(re.sub(r"\b(" + "|".join(names) + r")\b", lambda found: names[found.group()], reason))


def action(entry: Mapping[str, Any]) -> str:
    """What was done, of an entry of the audit trail."""
    details = entry.get("details") or {}
    if entry["what"] == "move":
        return f"now {label(STATES, str(details.get('after', ''))).text.lower()}"
    if entry["what"] in ("start_run", "resume_run") and "kind" in details:
        return f"started: {words(KINDS, details['kind']).lower()}"
    if entry["what"] == "finish_run":
        return f"run {details.get('state', 'ended')}"
    return words(ACTIONS, entry["what"])


def event(seen: Mapping[str, Any], spec: DomainSpec | None) -> str:
    """What a user did with one item, in a word or two."""
    value = float(seen["value"])
    if spec is None or spec.interactions.label is None:
        return "interacted"
    if spec.task == "rating" or spec.interactions.positive_above is not None:
        return f"rated it {value:g}"
    return "clicked" if value > 0 else "skipped"


def policy(baselines: Sequence[str], seeds: int) -> str:
    """What every launch of this installation is compared with, as one sentence."""
    if not baselines:
        return f"No baseline is required of launches here; each runs under at least {plural(seeds, 'seed')}."
    *others, last = (row(baseline) for baseline in baselines)
    named = f"{', '.join(others)} and {last}" if others else last
    return f"Every launch here is compared with at least {named}, under {plural(seeds, 'seed')} or more."


def kind(domain: Domain, *, launched: bool) -> str:
    """What a domain is, in a few words."""
    if domain.role == "source":
        return "A source that new domains learn from"
    if domain.state == "retired":
        return "A target, closed for good"
    return "A target with a version of its own live" if launched else "A new target, to be launched"


def gate(spec: DomainSpec) -> str:
    """A domain's go-live rule as one sentence."""
    rule = spec.gate
    return (
        f"A version goes live only if its {METRICS[rule.metric].label} on at least {rule.minimum_cold_users} held-out "
        f"cold users beats **{row(rule.baseline)}** with 95% certainty, and its predictions are off by "
        f"at most {rule.maximum_prediction_bias:.0%} on average."
        + "".join(
            f"\n\n`{name}` tells the label and is vouched for as known when a request comes: {why}"
            for name, why in rule.known_at_request.items()
        )
    )


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
