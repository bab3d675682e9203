"""Alembic's entry: works on the connection and in the transaction that ``domains.registry.migrations`` gives it."""

from typing import Literal

from alembic import context
from sqlalchemy import JSON

from domains.registry.database import UtcTime
from domains.registry.migrations import VERSION_TABLE
from domains.registry.tables import METADATA


def render(kind: str, thing: object, _: object) -> str | Literal[False]:
    """Spell the project's own column types as plain ones, so that old revisions never import today's code."""
    if kind == "type" and isinstance(thing, UtcTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(thing, JSON):
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    version_table=VERSION_TABLE,
    render_as_batch=True,
    render_item=render,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
