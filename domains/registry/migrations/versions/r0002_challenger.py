"""The version that waits to be promoted is a column of its domain; training and challenger are no states any more.

Revision 0002, after 0001; 2026-11-29 07:05:00.000000.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("domains", sa.Column("challenger", sa.String(length=200), nullable=True))
    answering = "SELECT slot FROM live JOIN versions ON versions.id = live.version_id WHERE versions.level = 'adapter'"
    passing = "state IN ('training', 'challenger')"
    op.execute(f"UPDATE domains SET state = 'live' WHERE {passing} AND name IN ({answering})")
    op.execute(f"UPDATE domains SET state = 'data_ready' WHERE {passing}")


def downgrade() -> None:
    op.drop_column("domains", "challenger")
