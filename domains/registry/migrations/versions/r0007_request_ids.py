"""Request ids are held across processes; the outbox needs no claims, and knows since when an event waits.

Revision 0007.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "request_ids",
        sa.Column("request_id", sa.String(length=200), nullable=False),
        sa.Column("domain", sa.String(length=48), nullable=False),
        sa.Column("user_id", sa.String(length=400), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("request_id", name="pk_request_ids"),
    )
    op.create_index("ix_request_ids_at", "request_ids", ["at"])
    with op.batch_alter_table("outbox") as table:
        table.drop_column("claimed_until")
        table.add_column(sa.Column("since", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()))
    with op.batch_alter_table("outbox") as table:
        table.alter_column("since", server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("outbox") as table:
        table.drop_column("since")
        table.add_column(sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=True))
    op.drop_index("ix_request_ids_at", "request_ids")
    op.drop_table("request_ids")
