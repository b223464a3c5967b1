"""The first tables: keys, rates, leases, usage, jobs with their pictures and events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

SEQUENCE = sa.BigInteger().with_variant(sa.Integer, "sqlite")
SECONDS = sa.Float(53)


def upgrade() -> None:
    _create_access()
    _create_jobs()


def _create_access() -> None:
    op.create_table(
        "keys",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created", SECONDS, nullable=False),
        sa.Column("expires", SECONDS),
        sa.Column("revoked", SECONDS),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("concurrent_images", sa.Integer),
        sa.Column("compute_s_per_day", SECONDS),
        sa.Column("models", sa.JSON),
        sa.Column("max_priority", sa.String(16), nullable=False),
        sa.Column("is_admin", sa.Boolean, nullable=False),
    )
    op.create_table(
        "rates",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("paid_until", SECONDS, nullable=False),
    )
    op.create_table(
        "leases",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("key_id", sa.String(16), nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("expected_end", SECONDS, nullable=False),
        sa.Column("expires", SECONDS, nullable=False),
    )
    op.create_index("ix_leases_key_id", "leases", ["key_id"])
    op.create_table(
        "usage",
        sa.Column("key_id", sa.String(16), primary_key=True),
        sa.Column("hour", sa.Integer, primary_key=True),
        sa.Column("requests", sa.Integer, nullable=False),
        sa.Column("images", sa.Integer, nullable=False),
        sa.Column("compute_s", SECONDS, nullable=False),
        sa.Column("rejected", sa.Integer, nullable=False),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("sequence", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(40), nullable=False, unique=True),
        sa.Column("caller", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("request", sa.JSON, nullable=False),
        sa.Column("n", sa.Integer, nullable=False),
        sa.Column("created", SECONDS, nullable=False),
        sa.Column("not_before", SECONDS, nullable=False),
        sa.Column("deadline", SECONDS),
        sa.Column("started", SECONDS),
        sa.Column("finished", SECONDS),
        sa.Column("error", sa.JSON),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("owner", sa.String(64), nullable=False, server_default=""),
        sa.Column("lease_ends", SECONDS),
        sa.Column("lost", sa.Integer, nullable=False, server_default="0"),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("fingerprint", sa.String(64), nullable=False, server_default=""),
        sa.UniqueConstraint("caller", "idempotency_key", name="uq_jobs_idempotency"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_claim", "jobs", ["state", "priority", "caller", "sequence"])
    op.create_index("ix_jobs_caller", "jobs", ["caller", "sequence"])
    op.create_index("ix_jobs_finished", "jobs", ["finished"])
    op.create_table(
        "job_images",
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("receipt", sa.JSON, nullable=False),
    )
    op.create_table(
        "job_events",
        sa.Column("id", SEQUENCE, primary_key=True, autoincrement=True),
        sa.Column("job_id", sa.String(40), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("data", sa.JSON, nullable=False),
        sa.Column("created", SECONDS, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_job_events_job_id", "job_events", ["job_id", "id"])
