"""Feedback on its way to the online store: kept with the feedback itself, gone once the store holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select, update

from domains.registry.database import Verbs, now
from domains.registry.tables import outbox


@dataclass(frozen=True)
class Waiting:
    """An event that the online store may not hold yet.

    Args:
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


class Outbox(Verbs):
    """The verbs on the outbox."""

    def unpushed(self) -> int:
        """About how many events wait; exact where none was taken out of turn."""
        with self._database.read() as connection:
            first, last = connection.execute(select(func.min(outbox.c.id), func.max(outbox.c.id))).one()
        return 0 if first is None else int(last - first + 1)

    def claim_unpushed(self, most: int, *, for_s: float) -> list[Waiting]:
        """The oldest events that nobody is at, for this caller alone during ``for_s`` seconds."""
        free = or_(outbox.c.claimed_until.is_(None), outbox.c.claimed_until < now())
        columns = [column for column in outbox.c if column.name != "claimed_until"]
        chosen = select(*columns).where(free).order_by(outbox.c.id).limit(most)
        with self._database.read() as connection:
            if connection.execute(chosen.limit(1)).first() is None:
                return []
        with self._database.write(lock="feedback") as connection:
            rows = [Waiting(**row._asdict()) for row in connection.execute(chosen)]
            if rows:
                until = now() + timedelta(seconds=for_s)
                taken = outbox.c.id.in_([row.id for row in rows])
                connection.execute(update(outbox).where(taken).values(claimed_until=until))
        return rows

    def forget_unpushed(self, ids: Sequence[int]) -> None:
        """These events have reached the online store."""
        with self._database.write(lock="feedback") as connection:
            connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))

    def give_back_unpushed(self, ids: Sequence[int]) -> None:
        """End a claim: these events did not reach the online store."""
        with self._database.write(lock="feedback") as connection:
            connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(claimed_until=None))
