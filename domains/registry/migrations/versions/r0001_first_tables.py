"""First tables: domains, ingests, versions, runs, promotions, live pointers, audit, predictions and feedback.

Revision 0001, the first; 2026-11-21 13:02:35.917030.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

Json = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
RowNumber = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", RowNumber, autoincrement=True, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("what", sa.String(length=40), nullable=False),
        sa.Column("domain", sa.String(length=48), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("details", Json, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_domain", "audit", ["domain"], unique=False)
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.bulk_insert(
        sa.table("counters", sa.column("name", sa.String), sa.column("value", sa.BigInteger)),
        [{"name": name, "value": 0} for name in ("domain_number", "generation", "feedback")],
    )
    op.create_table(
        "domains",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("name", sa.String(length=48), nullable=False),
        sa.Column("role", sa.String(length=10), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("spec", Json, nullable=False),
        sa.Column("counts", Json, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_domains"),
        sa.UniqueConstraint("name", name="uq_domains_name"),
    )
    op.create_table(
        "feedback",
        sa.Column("request_id", sa.String(length=200), nullable=False),
        sa.Column("item_id", sa.String(length=400), nullable=False),
        sa.Column("action", sa.String(length=60), nullable=False),
        sa.Column("id", sa.BigInteger(), nullable=True),
        sa.Column("domain", sa.String(length=48), nullable=True),
        sa.Column("user_id", sa.String(length=400), nullable=True),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("detail", Json, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "item_id", "action", name="pk_feedback"),
    )
    op.create_index("ix_feedback_domain_id", "feedback", ["domain", "id"], unique=False)
    op.create_table(
        "predictions",
        sa.Column("request_id", sa.String(length=200), nullable=False),
        sa.Column("item_id", sa.String(length=400), nullable=False),
        sa.Column("domain", sa.String(length=48), nullable=False),
        sa.Column("user_id", sa.String(length=400), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("position", sa.Integer(), nullable=True),
        sa.Column("model_version", sa.String(length=200), nullable=True),
        sa.Column("served_by", sa.String(length=20), nullable=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("detail", Json, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "item_id", name="pk_predictions"),
    )
    op.create_index("ix_predictions_domain_at", "predictions", ["domain", "at"], unique=False)
    op.create_table(
        "ingests",
        sa.Column("domain", sa.String(length=48), nullable=False),
        sa.Column("ingest_id", sa.String(length=200), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name="fk_ingests_domain"),
        sa.PrimaryKeyConstraint("domain", "ingest_id", name="pk_ingests"),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=60), nullable=False),
        sa.Column("domain", sa.String(length=48), nullable=True),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("step", sa.Text(), nullable=False),
        sa.Column("detail", Json, nullable=False),
        sa.Column("params", Json, nullable=False),
        sa.Column("result", Json, nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("flow_run_id", sa.String(length=200), nullable=True),
        sa.Column("started_by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name="fk_runs_domain"),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_domain_started_at", "runs", ["domain", "started_at"], unique=False)
    op.create_index("ix_runs_started_at", "runs", ["started_at"], unique=False)
    op.create_table(
        "versions",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("domain", sa.String(length=48), nullable=True),
        sa.Column("backbone_id", sa.String(length=200), nullable=True),
        sa.Column("level", sa.String(length=20), nullable=True),
        sa.Column("artifact", sa.Text(), nullable=False),
        sa.Column("metrics", Json, nullable=False),
        sa.Column("report", Json, nullable=False),
        sa.Column("certificate", Json, nullable=False),
        sa.Column("config", Json, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(kind = 'adapter') = (backbone_id IS NOT NULL)", name="ck_versions_adapters_name_their_backbone"
        ),
        sa.CheckConstraint("(kind = 'backbone') = (domain IS NULL)", name="ck_versions_backbones_have_no_domain"),
        sa.ForeignKeyConstraint(["backbone_id"], ["versions.id"], name="fk_versions_backbone_id"),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name="fk_versions_domain"),
        sa.PrimaryKeyConstraint("id", name="pk_versions"),
    )
    op.create_index("ix_versions_domain", "versions", ["domain"], unique=False)
    op.create_table(
        "promotions",
        sa.Column("id", RowNumber, autoincrement=True, nullable=False),
        sa.Column("domain", sa.String(length=48), nullable=True),
        sa.Column("from_version", sa.String(length=200), nullable=True),
        sa.Column("to_version", sa.String(length=200), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=20), nullable=False),
        sa.Column("rests_on", RowNumber, nullable=True),
        sa.ForeignKeyConstraint(["domain"], ["domains.name"], name="fk_promotions_domain"),
        sa.ForeignKeyConstraint(["from_version"], ["versions.id"], name="fk_promotions_from_version"),
        sa.ForeignKeyConstraint(["rests_on"], ["promotions.id"], name="fk_promotions_rests_on"),
        sa.ForeignKeyConstraint(["to_version"], ["versions.id"], name="fk_promotions_to_version"),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_index("ix_promotions_domain", "promotions", ["domain"], unique=False)
    op.create_table(
        "live",
        sa.Column("slot", sa.String(length=48), nullable=False),
        sa.Column("version_id", sa.String(length=200), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("moved_by", RowNumber, nullable=False),
        sa.Column("rests_on", RowNumber, nullable=False),
        sa.ForeignKeyConstraint(["moved_by"], ["promotions.id"], name="fk_live_moved_by"),
        sa.ForeignKeyConstraint(["rests_on"], ["promotions.id"], name="fk_live_rests_on"),
        sa.ForeignKeyConstraint(["version_id"], ["versions.id"], name="fk_live_version_id"),
        sa.PrimaryKeyConstraint("slot", name="pk_live"),
    )


def downgrade() -> None:
    op.drop_table("live")
    op.drop_table("promotions")
    op.drop_table("versions")
    op.drop_table("runs")
    op.drop_table("ingests")
    op.drop_table("predictions")
    op.drop_table("feedback")
    op.drop_table("domains")
    op.drop_table("counters")
    op.drop_table("audit")
