"""What was answered and what users did with it: two append-only logs, joined by request and item.

Rows are keyed, so sending one again adds nothing. Feedback may arrive before the prediction that it answers: it waits
without an id until its domain is known, so a reader that pages by id never misses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Table, and_, bindparam, delete, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from domains.errors import InvalidData
from domains.registry.database import advance, finite, in_utc, now
from domains.registry.tables import feedback as feedback_table
from domains.registry.tables import predictions

_ROWS_PER_LOOKUP = 500


def prepare_predictions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for ``log_predictions``, checked before any lock is taken.

    Each needs request_id, domain, user_id and item_id; may have score, position, model_version, served_by and ``at``
    (a datetime, or microseconds since 1970 UTC); what else it has is kept in ``detail``.

    Raises:
        InvalidData: a required value is missing or not text; names the row and the field.
    """
    return [
        _shaped(row, number, predictions, ("request_id", "domain", "user_id", "item_id"))
        for number, row in _numbered(rows)
    ]


def prepare_feedback(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for ``log_feedback``, checked before any lock is taken.

    Each needs request_id, item_id and action; may have domain and user_id (else those of the prediction), ``value`` or
    ``label`` (such as a rating or a dwell time) and ``at``; what else it has is kept in ``detail``.

    Raises:
        InvalidData: a required value is missing or not text; names the row and the field.
    """
    named = [
        {**{k: v for k, v in row.items() if k != "label"}, "value": row.get("value", row.get("label"))} for row in rows
    ]
    return [
        _shaped(row, number, feedback_table, ("request_id", "item_id", "action")) for number, row in _numbered(named)
    ]


def log_predictions(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Add rows that are new by (request_id, item_id), and give feedback that waited for them its domain and id."""
    _insert_new(connection, predictions, rows)
    waiting = _waiting(connection, {row["request_id"] for row in rows})
    if waiting:
        known = {row["request_id"]: (row["domain"], row["user_id"]) for row in rows}
        last = advance(connection, "feedback", by=len(waiting))
        changes = [
            {
                "of_request": key.request_id,
                "of_item": key.item_id,
                "of_action": key.action,
                "id": last - len(waiting) + 1 + position,
                "domain": known[key.request_id][0],
                "user_id": key.user_id or known[key.request_id][1],
            }
            for position, key in enumerate(waiting)
        ]
        table = feedback_table.c
        key = and_(
            table.request_id == bindparam("of_request"),
            table.item_id == bindparam("of_item"),
            table.action == bindparam("of_action"),
        )
        connection.execute(
            update(feedback_table)
            .where(key)
            .values(id=bindparam("id"), domain=bindparam("domain"), user_id=bindparam("user_id")),
            changes,
        )


def log_feedback(connection: Connection, rows: list[dict[str, Any]]) -> int:
    """Add rows that are new by (request_id, item_id, action) and count them."""
    known = answered(connection, {row["request_id"] for row in rows})
    for row in rows:
        domain, user_id = known.get(row["request_id"], (None, None))
        row["domain"] = row["domain"] or domain
        row["user_id"] = row["user_id"] or user_id
    last = advance(connection, "feedback", by=len(rows))
    for position, row in enumerate(rows):
        # Taken under the lock that is held until the commit, so ids become visible in their order.
        row["id"] = last - len(rows) + 1 + position if row["domain"] else None
    return _insert_new(connection, feedback_table, rows)


def feedback(connection: Connection, domain: str, *, after_id: int, limit: int) -> list[dict[str, Any]]:
    """Feedback of a domain with the score, position, model_version and served_by of its prediction, by id."""
    given, answered = feedback_table.c, predictions.c
    columns = [answered.score, answered.position, answered.model_version, answered.served_by]
    joined = feedback_table.outerjoin(
        predictions, and_(given.request_id == answered.request_id, given.item_id == answered.item_id)
    )
    chosen = select(feedback_table, *columns).select_from(joined).where(given.domain == domain, given.id > after_id)
    return [dict(row._mapping) for row in connection.execute(chosen.order_by(given.id).limit(limit))]


def forget(connection: Connection, domain: str | None, before: datetime, *, limit: int) -> int:
    """Delete up to so many answers, and as many rows of feedback, that are older; says how many rows went.

    ``domain`` None means feedback whose request never became known. Both tables are read along their indices.
    """
    gone = 0
    for table, order in ((predictions, predictions.c.at), (feedback_table, feedback_table.c.id)):
        key = list(table.primary_key.columns)
        old = select(*key).where(table.c.domain == domain, table.c.at < before).order_by(order).limit(limit)
        gone += connection.execute(delete(table).where(tuple_(*key).in_(old))).rowcount
    return gone


def _numbered(rows: Iterable[dict[str, Any]]) -> Iterable[tuple[int, dict[str, Any]]]:
    return enumerate(rows, start=1)


def _shaped(row: Mapping[str, Any], number: int, table: Table, required: tuple[str, ...]) -> dict[str, Any]:
    shaped: dict[str, Any] = {column.name: row.get(column.name) for column in table.columns if column.name != "id"}
    for column in table.columns:
        limit = getattr(column.type, "length", None)
        value = shaped.get(column.name)
        if limit is None or (value is None and column.name not in required):
            continue
        # PostgreSQL keeps no NUL in text and measures what SQLite does not: refused alike on both.
        if not isinstance(value, str) or not value or len(value) > limit or "\x00" in value:
            problem = f"{column.name} must be text of 1 to {limit} characters"
            raise InvalidData(f"row {number}: {problem}", row=number, field=column.name)
    for name, kind in (("score", float), ("value", float), ("position", int)):
        if shaped.get(name) is not None:
            try:
                shaped[name] = finite(kind(shaped[name]))
            except (TypeError, ValueError, OverflowError):
                raise InvalidData(f"row {number}: {name} must be a number", row=number, field=name) from None
    shaped["at"] = _moment(row.get("at"), number)
    known = {column.name for column in table.columns}
    shaped["detail"] = {**(row.get("detail") or {}), **{key: row[key] for key in row if key not in known}}
    return shaped


def _moment(at: Any, number: int) -> datetime:
    if at is None:
        return now()
    if isinstance(at, datetime):
        return in_utc(at)
    try:
        return datetime.fromtimestamp(int(at) / 1e6, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        problem = "at must be a datetime or microseconds since 1970 UTC"
        raise InvalidData(f"row {number}: {problem}", row=number, field="at") from None


def _insert_new(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> int:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing().returning(table.c.request_id)
    return len(connection.execute(statement, rows).all())


def answered(connection: Connection, request_ids: set[str]) -> dict[str, tuple[str, str]]:
    """The domain and the user of each of these requests that the log knows."""
    columns = (predictions.c.request_id, predictions.c.domain, predictions.c.user_id)
    found: dict[str, tuple[str, str]] = {}
    for some in _portions(request_ids):
        chosen = select(*columns).where(predictions.c.request_id.in_(some)).distinct()
        found |= {row.request_id: (row.domain, row.user_id) for row in connection.execute(chosen)}
    return found


def _waiting(connection: Connection, request_ids: set[str]) -> list[Any]:
    """Feedback to these requests that has no id yet."""
    rows: list[Any] = []
    for some in _portions(request_ids):
        waits = feedback_table.c.request_id.in_(some) & feedback_table.c.id.is_(None)
        rows += connection.execute(select(feedback_table).where(waits)).all()
    return rows


def _portions(request_ids: set[str]) -> Iterable[list[str]]:
    ordered = sorted(request_ids)
    return (ordered[start : start + _ROWS_PER_LOOKUP] for start in range(0, len(ordered), _ROWS_PER_LOOKUP))
