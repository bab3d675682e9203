"""What was answered and what users did with it: two append-only logs, joined by request and item.

Rows are keyed, so sending one again adds nothing. Feedback may arrive before the prediction that it answers: it waits
without an id until its domain is known, so a reader that pages by id never misses it. Rows are checked before any lock
is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Row, Table, and_, bindparam, delete, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from domains.errors import Conflict, InvalidData
from domains.registry.database import Verbs, advance, finite, in_utc, now
from domains.registry.request_ids import Asked, asked_under, holders, portions, told_under
from domains.registry.tables import domains, feedback, outbox, predictions
from domains.registry.tables import request_ids as claims


class FeedbackConflict(Conflict):
    """It contradicts what the log holds; ``details["field"]`` names the field of the request."""


class PredictionLog(Verbs):
    """The verbs on the two logs."""

    def log_predictions(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add answers that are new by (request_id, item_id), and give feedback that waited for them its domain and id.

        Each row needs request_id, domain, user_id and item_id; may have score, position, model_version, served_by and
        ``at`` (a datetime, or microseconds since 1970 UTC); what else it has is stored in ``detail``. Rows whose
        request is on record for another user or domain are left out: an id names the first ranking that used it.

        Raises:
            InvalidData: a required value is missing or not text; names the row and the field.
        """
        if rows:
            checked = _checked(rows, predictions, ("request_id", "domain", "user_id", "item_id"))
            with self._database.write(lock="feedback") as connection:
                first = {
                    name: (one.domain, one.user_id) for name, one in holders(connection, _requests(checked)).items()
                }
                for row in checked:
                    first.setdefault(row["request_id"], (row["domain"], row["user_id"]))
                checked = [row for row in checked if first[row["request_id"]] == (row["domain"], row["user_id"])]
                if checked:
                    _insert_new(connection, predictions, checked)
                    _release_waiting(connection, checked)
                    for some in portions(_requests(checked)):
                        connection.execute(delete(claims).where(claims.c.request_id.in_(some)))

    def log_feedback(self, rows: Sequence[Mapping[str, Any]], *, push: bool = False) -> int:
        """Add feedback that is new by (request_id, item_id, action) and count the new rows.

        Each row needs request_id, item_id and action; may have domain and user_id (else those of the prediction),
        ``value`` or ``label`` (such as a rating or a dwell time) and ``at``; what else it has is stored in ``detail``.

        Args:
            push: put what is new into the outbox as well, in the same transaction. A row's ``ranked`` says that the
                caller knows its ranking though the log may not hold it yet.

        Raises:
            InvalidData: a required value is missing or not text; names the row and the field.
            FeedbackConflict: the prediction is another user's or domain's, or the key is held with another value;
                nothing is added.
        """
        if not rows:
            return 0
        named = [
            {
                **{k: v for k, v in row.items() if k not in ("label", "ranked")},
                "value": row.get("value", row.get("label")),
            }
            for row in rows
        ]
        checked = _checked(named, feedback, ("request_id", "item_id", "action"))
        with self._database.write(lock="feedback") as connection:
            known = asked_under(connection, _requests(checked))
            held_by = told_under(connection, _requests(checked)) | known
            for row in checked:
                _join(row, held_by.get(row["request_id"]))
            last = advance(connection, "feedback", by=len(checked))
            for position, row in enumerate(checked):
                # Taken under the lock that is held until the commit, so ids become visible in their order.
                row["id"] = last - len(checked) + 1 + position if row["domain"] else None
            held = _held_values(connection, checked)
            new = []
            for position, row in enumerate(checked):
                key = _key(row)
                if key not in held:
                    held[key] = row["value"]
                    new.append(position)
                elif push and held[key] != row["value"]:
                    problem = f"was recorded with the value {held[key]}, which stays"
                    raise FeedbackConflict(f"events.{position}.value: {problem}", field=f"events.{position}.value")
            added = [checked[position] for position in new]
            if added:
                connection.execute(insert(feedback), added)
            if push and added:
                connection.execute(
                    insert(outbox),
                    [
                        {name: row[name] for name in ("id", "domain", "user_id", "item_id", "action", "value", "at")}
                        | {"ranked": bool(rows[position].get("ranked")) or row["request_id"] in known, "since": now()}
                        for position, row in zip(new, added, strict=True)
                    ],
                )
            return len(added)

    def feedback(self, domain: str, after_id: int = 0, limit: int = 10_000) -> list[dict[str, Any]]:
        """Feedback of a domain with the score, position, model_version and served_by of its prediction, oldest first,
        from after ``after_id``: page with the last ``id``."""
        columns = [predictions.c[name] for name in ("score", "position", "model_version", "served_by")]
        same = and_(*(feedback.c[name] == predictions.c[name] for name in ("request_id", "item_id", "user_id")))
        chosen = select(feedback, *columns).select_from(feedback.outerjoin(predictions, same))
        chosen = chosen.where(feedback.c.domain == domain, feedback.c.id > after_id)
        with self._database.read() as connection:
            return [row._asdict() for row in connection.execute(chosen.order_by(feedback.c.id).limit(limit))]

    def forget_answers(self, before: datetime, *, batch: int = 2_000) -> int:
        """Delete answers and feedback older than ``before``, some at a time so that no request waits; returns how many.

        It may be stopped at any moment and goes on with the next call.
        """
        deleted = 0
        with self._database.read() as connection:
            names = list(connection.execute(select(domains.c.name)).scalars())
        for domain in (*names, None):
            while True:
                with self._database.write(lock="feedback") as connection:
                    some = _delete_older(connection, domain, before, limit=batch)
                deleted += some
                if not some:
                    break
        return deleted


def _checked(rows: Iterable[Mapping[str, Any]], table: Table, required: tuple[str, ...]) -> list[dict[str, Any]]:
    return [_checked_row(row, number, table, required) for number, row in enumerate(rows, start=1)]


def _checked_row(row: Mapping[str, Any], number: int, table: Table, required: tuple[str, ...]) -> dict[str, Any]:
    checked: dict[str, Any] = {column.name: row.get(column.name) for column in table.columns if column.name != "id"}
    for column in table.columns:
        limit = getattr(column.type, "length", None)
        value = checked.get(column.name)
        if limit is None or (value is None and column.name not in required):
            continue
        # PostgreSQL stores no NUL in text and measures what SQLite does not: refused alike on both.
        if not isinstance(value, str) or not value or len(value) > limit or "\x00" in value:
            problem = f"{column.name} must be text of 1 to {limit} characters"
            raise InvalidData(f"row {number}: {problem}", row=number, field=column.name)
    for name, kind in (("score", float), ("value", float), ("position", int)):
        if checked.get(name) is not None:
            try:
                checked[name] = finite(kind(checked[name]))
            except (TypeError, ValueError, OverflowError):
                raise InvalidData(f"row {number}: {name} must be a number", row=number, field=name) from None
    checked["at"] = _time(row.get("at"), number)
    known = {column.name for column in table.columns}
    checked["detail"] = {**(row.get("detail") or {}), **{key: row[key] for key in row if key not in known}}
    return checked


def _time(at: Any, number: int) -> datetime:
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


def _release_waiting(connection: Connection, answers: list[dict[str, Any]]) -> None:
    """Give feedback to these answers that came before them its domain, its user and its id."""
    known = {row["request_id"]: (row["domain"], row["user_id"]) for row in answers}
    waiting = _waiting(connection, set(known))
    if not waiting:
        return
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
    this_row = and_(
        feedback.c.request_id == bindparam("of_request"),
        feedback.c.item_id == bindparam("of_item"),
        feedback.c.action == bindparam("of_action"),
    )
    values: dict[str, Any] = {name: bindparam(name) for name in ("id", "domain", "user_id")}
    connection.execute(update(feedback).where(this_row).values(values), changes)


def _waiting(connection: Connection, request_ids: set[str]) -> list[Row[Any]]:
    """Feedback to these requests that has no id yet."""
    rows: list[Row[Any]] = []
    for some in portions(request_ids):
        waits = feedback.c.request_id.in_(some) & feedback.c.id.is_(None)
        rows += connection.execute(select(feedback).where(waits)).all()
    return rows


def _requests(rows: Iterable[Mapping[str, Any]]) -> set[str]:
    return {row["request_id"] for row in rows}


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["request_id"], row["item_id"], row["action"]


def _join(row: dict[str, Any], asked: Asked | None) -> None:
    """Give feedback the user and the domain of its ranking."""
    for name in ("user_id", "domain") if asked is not None else ():
        mine = getattr(asked, name)
        if row[name] is not None and row[name] != mine:
            raise FeedbackConflict(f"{name}: the request {row['request_id']!r} has another {name}", field=name)
        row[name] = mine


def _held_values(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str], float | None]:
    """The values of what the log holds under the keys of these rows."""
    found: dict[tuple[str, str, str], float | None] = {}
    key = (feedback.c.request_id, feedback.c.item_id, feedback.c.action)
    for start in range(0, len(rows), 200):
        some = sorted({_key(row) for row in rows[start : start + 200]})
        for held in connection.execute(select(*key, feedback.c.value).where(tuple_(*key).in_(some))):
            found[(held.request_id, held.item_id, held.action)] = held.value
    return found


def _delete_older(connection: Connection, domain: str | None, before: datetime, *, limit: int) -> int:
    """Delete up to so many answers, and as many rows of feedback, that are older; returns how many rows went.

    ``domain`` None means feedback whose request never became known. Both tables are read along their indices.
    """
    deleted = 0
    for table, order in ((predictions, predictions.c.at), (feedback, feedback.c.id)):
        key = list(table.primary_key.columns)
        old = select(*key).where(table.c.domain == domain, table.c.at < before).order_by(order).limit(limit)
        deleted += connection.execute(delete(table).where(tuple_(*key).in_(old))).rowcount
    return deleted
