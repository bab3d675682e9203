"""Feedback on its way to the online store: kept with the feedback itself, gone once the store holds it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Select, delete, exists, func, select, text

from domains.registry.database import Verbs, now
from domains.registry.tables import feedback, outbox, predictions

_LAST_FEEDBACK = text("SELECT value FROM counters WHERE name = 'feedback'")


@dataclass(frozen=True)
class Waiting:
    """An event that the online store may not hold.

    Args:
        id: of the feedback; grows in the order in which feedback was kept.
        ranked: a ranking of this user, which the event answers, was on record.
    """

    id: int
    domain: str
    user_id: str
    item_id: str
    action: str
    value: float | None
    at: datetime
    ranked: bool


@dataclass(frozen=True)
class OutboxSize:
    """How much waits, and how long the oldest has waited, in seconds."""

    events: int
    oldest_s: float


class Outbox(Verbs):
    """The verbs on the outbox."""

    def unpushed(self, most: int | None = None) -> int:
        """How many events wait; counts no further than ``most``."""
        ids = select(outbox.c.id).limit(most).subquery()
        with self._database.read() as connection:
            return int(connection.execute(select(func.count()).select_from(ids)).scalar_one())

    def outbox_size(self) -> OutboxSize:
        """How much waits, and for how long."""
        with self._database.read() as connection:
            oldest = func.min(outbox.c.since, type_=outbox.c.since.type)
            events, since = connection.execute(select(func.count(), oldest)).one()
        return OutboxSize(int(events), 0.0 if since is None else max(0.0, (now() - since).total_seconds()))

    def pushed_up_to(self) -> int:
        """Feedback up to this id has left the outbox."""
        with self._database.read() as connection:
            # In this order: what is kept between the two reads has a higher id.
            last = int(connection.execute(_LAST_FEEDBACK).scalar_one())
            first = connection.execute(select(func.min(outbox.c.id))).scalar_one()
        return last if first is None else int(first) - 1

    def waiting(self, domains: Collection[str], most: int) -> list[Waiting]:
        """The oldest events of these domains that wait."""
        columns = [column for column in outbox.c if column.name != "since"]
        chosen = select(*columns).where(outbox.c.domain.in_(domains)).order_by(outbox.c.id).limit(most)
        return self._as_waiting(chosen)

    def kept_between(self, after: int, until: int, domains: Collection[str], most: int) -> list[Waiting]:
        """Feedback of these domains with an id above ``after`` and up to ``until``, oldest first, pushed or not."""
        known: ColumnElement[bool] = exists().where(
            predictions.c.request_id == feedback.c.request_id, predictions.c.user_id == feedback.c.user_id
        )
        columns = [column for column in outbox.c if column.name not in ("since", "ranked")]
        chosen = select(*(feedback.c[column.name] for column in columns), known.label("ranked"))
        chosen = chosen.where(feedback.c.id > after, feedback.c.id <= until, feedback.c.domain.in_(domains))
        return self._as_waiting(chosen.where(feedback.c.user_id.is_not(None)).order_by(feedback.c.id).limit(most))

    def forget_unpushed(self, ids: Sequence[int]) -> None:
        """These events have reached the online store."""
        with self._database.write(lock="feedback") as connection:
            connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))

    def forget_unserved(self, domains: Collection[str], before: datetime) -> int:
        """Delete events that wait since before then and belong to none of these domains; returns how many."""
        old = outbox.c.since < before, outbox.c.domain.not_in(domains)
        with self._database.read() as connection:
            if connection.execute(select(outbox.c.id).where(*old).limit(1)).first() is None:
                return 0
        with self._database.write(lock="feedback") as connection:
            return connection.execute(delete(outbox).where(*old)).rowcount

    def _as_waiting(self, chosen: Select) -> list[Waiting]:
        with self._database.read() as connection:
            return [Waiting(**row._asdict()) for row in connection.execute(chosen)]
