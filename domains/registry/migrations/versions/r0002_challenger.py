"""The version that waits to be promoted is a column of its domain; training and challenger are no states any more.

Revision 0002, after 0001; 2026-11-29 07:05:00.000000.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

domains = sa.table("domains", sa.column("name"), sa.column("state"), sa.column("challenger"))
versions = sa.table(
    "versions",
    *(sa.column(name) for name in ("id", "domain", "level", "created_at")),
    sa.column("report", Json),
)


def upgrade() -> None:
    op.add_column("domains", sa.Column("challenger", sa.String(length=200), nullable=True))
    connection = op.get_bind()
    waiting = connection.execute(sa.select(domains.c.name).where(domains.c.state == "challenger")).scalars().all()
    for name in waiting:
        trained = sa.select(versions.c.id, versions.c.report).where(
            versions.c.domain == name, versions.c.level == "adapter"
        )
        newest = connection.execute(trained.order_by(versions.c.created_at.desc()).limit(1)).one_or_none()
        if newest is not None and (newest.report or {}).get("decision", {}).get("promote"):
            connection.execute(sa.update(domains).where(domains.c.name == name).values(challenger=newest.id))
    answering = "SELECT slot FROM live JOIN versions ON versions.id = live.version_id WHERE versions.level = 'adapter'"
    op.execute(f"UPDATE domains SET state = 'live' WHERE state IN ('training', 'challenger') AND name IN ({answering})")
    # Live says that a trained version answers: under a zero-shot one a domain is still to be launched.
    op.execute(
        "UPDATE domains SET state = 'data_ready' "
        f"WHERE state IN ('training', 'challenger', 'live') AND name NOT IN ({answering})"
    )


def downgrade() -> None:
    op.drop_column("domains", "challenger")
