"""Users of the pages; entries of the audit log are only ever added.

Revision 0006, after 0005; 2026-11-29 09:10:00.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Whoever holds a connection of Graft's can neither change an entry nor make a young one disappear. The number of days
# is that of ``domains/registry/retention_verbs.py`` at the time of this revision.
REFUSAL = "entries of the audit log are only added"
KEPT_DAYS = 365

POSTGRESQL = (
    f"""CREATE FUNCTION refuse_audit_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP = 'DELETE' THEN
            IF OLD.at < now() - interval '{KEPT_DAYS} days' THEN RETURN OLD; END IF;
        END IF;
        RAISE EXCEPTION '{REFUSAL}';
    END$$""",
    """CREATE TRIGGER audit_only_grows BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION refuse_audit_change()""",
    """CREATE TRIGGER audit_is_not_emptied BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_audit_change()""",
)
SQLITE = (
    f"CREATE TRIGGER audit_refuses_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END",
    f"""CREATE TRIGGER audit_refuses_delete BEFORE DELETE ON audit
    WHEN OLD.at >= strftime('%Y-%m-%d %H:%M:%f', 'now', '-{KEPT_DAYS} days')
    BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END""",
)


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("domains", Json, nullable=False),
        sa.Column("password", sa.Text(), nullable=True),
        sa.Column("session", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("name", name="pk_users"),
    )
    for statement in POSTGRESQL if op.get_bind().dialect.name == "postgresql" else SQLITE:
        op.execute(statement)


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER audit_only_grows ON audit")
        op.execute("DROP TRIGGER audit_is_not_emptied ON audit")
        op.execute("DROP FUNCTION refuse_audit_change()")
    else:
        for change in ("update", "delete"):
            op.execute(f"DROP TRIGGER audit_refuses_{change}")
    op.drop_table("users")
