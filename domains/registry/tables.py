"""The registry's tables; rows never leave this package. Changing one needs a migration, and a test says so."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB

from domains.registry.database import UtcTime

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Json = JSON().with_variant(JSONB(), "postgresql")
# SQLite counts rows by itself only in a column that is exactly INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")

counters = Table(
    "counters",
    METADATA,
    Column("name", String(40), primary_key=True),
    Column("value", BigInteger, nullable=False),
)

domains = Table(
    "domains",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("name", String(48), nullable=False, unique=True),
    Column("role", String(10), nullable=False),
    Column("state", String(20), nullable=False),
    # The version that passed its gate and waits to be promoted. No foreign key: versions refer to domains already.
    Column("challenger", String(200), nullable=True),
    Column("spec", Json, nullable=False),
    Column("counts", Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
)

ingests = Table(
    "ingests",
    METADATA,
    Column("domain", ForeignKey("domains.name"), primary_key=True),
    Column("ingest_id", String(200), primary_key=True),
    Column("at", UtcTime, nullable=False),
)

versions = Table(
    "versions",
    METADATA,
    Column("id", String(200), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("domain", ForeignKey("domains.name"), nullable=True, index=True),
    Column("backbone_id", ForeignKey("versions.id"), nullable=True),
    Column("level", String(20), nullable=True),
    Column("artifact", Text, nullable=False),
    Column("metrics", Json, nullable=False),
    Column("report", Json, nullable=False),
    Column("certificate", Json, nullable=False),
    Column("config", Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    # Since when its files may be deleted: it can go live no more, unless it is published again.
    Column("collected_at", UtcTime, nullable=True),
    CheckConstraint("(kind = 'backbone') = (domain IS NULL)", name="backbones_have_no_domain"),
    CheckConstraint("(kind = 'adapter') = (backbone_id IS NOT NULL)", name="adapters_name_their_backbone"),
)

runs = Table(
    "runs",
    METADATA,
    Column("id", String(200), primary_key=True),
    Column("kind", String(60), nullable=False),
    Column("domain", ForeignKey("domains.name"), nullable=True),
    Column("state", String(20), nullable=False),
    Column("progress", Float, nullable=False),
    Column("step", Text, nullable=False),
    Column("detail", Json, nullable=False),
    Column("params", Json, nullable=False),
    Column("result", Json, nullable=False),
    Column("error", Text, nullable=True),
    Column("started_at", UtcTime, nullable=False, index=True),
    Column("finished_at", UtcTime, nullable=True),
    Column("flow_run_id", String(200), nullable=True),
    Column("started_by", Text, nullable=False),
    Index("ix_runs_domain_started_at", "domain", "started_at"),
)

promotions = Table(
    "promotions",
    METADATA,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("domain", ForeignKey("domains.name"), nullable=True, index=True),
    Column("from_version", ForeignKey("versions.id"), nullable=True),
    # Of a withdrawal: the version that was taken down, as nothing follows it.
    Column("to_version", ForeignKey("versions.id"), nullable=False),
    Column("who", Text, nullable=False),
    Column("why", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("kind", String(20), nullable=False),
    # The promotion that a roll back of this one returns to; a linked list, so rolling back twice goes two back.
    Column("rests_on", ForeignKey("promotions.id"), nullable=True),
)

live = Table(
    "live",
    METADATA,
    # A domain's name, or the empty string for the shared model: a primary key cannot be null.
    Column("slot", String(48), primary_key=True),
    Column("version_id", ForeignKey("versions.id"), nullable=False),
    Column("generation", BigInteger, nullable=False),
    Column("since", UtcTime, nullable=False),
    # The promotion or roll back that moved the pointer here, and the promotion that it rests on.
    Column("moved_by", ForeignKey("promotions.id"), nullable=False),
    Column("rests_on", ForeignKey("promotions.id"), nullable=False),
)

audit = Table(
    "audit",
    METADATA,
    Column("id", RowNumber, primary_key=True, autoincrement=True),
    Column("at", UtcTime, nullable=False),
    Column("who", Text, nullable=False),
    Column("what", String(40), nullable=False),
    Column("domain", String(48), nullable=True, index=True),
    Column("why", Text, nullable=False),
    Column("details", Json, nullable=False),
)

api_keys = Table(
    "api_keys",
    METADATA,
    Column("id", String(40), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("domains", Json, nullable=False),
    Column("verbs", Json, nullable=False),
    Column("per_minute", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("rotated_at", UtcTime, nullable=True),
    Column("revoked_at", UtcTime, nullable=True),
)

# Who may sign in to the pages. A name that was removed stays, so that the audit log's names keep their meaning.
users = Table(
    "users",
    METADATA,
    Column("name", String(100), primary_key=True),
    Column("role", String(10), nullable=False),
    Column("domains", Json, nullable=False),
    # scrypt, with its salt and its costs; null for somebody whom only an identity provider vouches for.
    Column("password", Text, nullable=True),
    # What was handed out under an earlier number no longer counts: a sign out and a new password end all sessions.
    Column("session", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("removed_at", UtcTime, nullable=True),
)

# The two logs grow with traffic, so they carry no foreign keys: a bulk insert checks nothing it need not.
predictions = Table(
    "predictions",
    METADATA,
    Column("request_id", String(200), primary_key=True),
    Column("item_id", String(400), primary_key=True),
    Column("domain", String(48), nullable=False),
    Column("user_id", String(400), nullable=False),
    Column("score", Float, nullable=True),
    Column("position", Integer, nullable=True),
    Column("model_version", String(200), nullable=True),
    Column("served_by", String(20), nullable=True),
    Column("at", UtcTime, nullable=False),
    Column("detail", Json, nullable=False),
    Index("ix_predictions_domain_at", "domain", "at"),
)

feedback = Table(
    "feedback",
    METADATA,
    Column("request_id", String(200), primary_key=True),
    Column("item_id", String(400), primary_key=True),
    Column("action", String(60), primary_key=True),
    # Grows in the order of commits; null until the domain is known, so a reader that pages by id misses nothing.
    Column("id", BigInteger, nullable=True),
    Column("domain", String(48), nullable=True),
    Column("user_id", String(400), nullable=True),
    Column("value", Float, nullable=True),
    Column("at", UtcTime, nullable=False),
    Column("detail", Json, nullable=False),
    Index("ix_feedback_domain_id", "domain", "id"),
)

# Who asks under an id that the caller chose, until the predictions of the request are written down.
request_ids = Table(
    "request_ids",
    METADATA,
    Column("request_id", String(200), primary_key=True),
    Column("domain", String(48), nullable=False),
    Column("user_id", String(400), nullable=False),
    Column("at", UtcTime, nullable=False, index=True),
)

# Written in the transaction that keeps the feedback, deleted once the online store holds the event: short at all times.
outbox = Table(
    "outbox",
    METADATA,
    # Of the feedback; so what is below the lowest id has reached the online store.
    Column("id", RowNumber, primary_key=True),
    Column("domain", String(48), nullable=False),
    Column("user_id", String(400), nullable=False),
    Column("item_id", String(400), nullable=False),
    Column("action", String(60), nullable=False),
    Column("value", Float, nullable=True),
    Column("at", UtcTime, nullable=False),
    # Whether a ranking of this user is on record that the event answers.
    Column("ranked", Boolean, nullable=False),
    Column("since", UtcTime, nullable=False),
)
