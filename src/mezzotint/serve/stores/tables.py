"""The tables, as the newest migration leaves them. Times are seconds since 1970, by the database's clock."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    UniqueConstraint,
    false,
)

__all__ = ["job_events", "job_images", "jobs", "keys", "leases", "metadata", "rates", "usage"]

metadata = MetaData()
# SQLite counts up only a column that is exactly INTEGER, which there holds 64 bits.
Sequence = BigInteger().with_variant(Integer, "sqlite")
# 53 bits: a float of 4 bytes knows the time to two minutes.
Seconds = Float(53)

keys = Table(
    "keys",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("created", Seconds, nullable=False),
    Column("expires", Seconds),
    Column("revoked", Seconds),
    Column("requests_per_minute", Integer),
    Column("concurrent_images", Integer),
    Column("compute_s_per_day", Seconds),
    Column("models", JSON(none_as_null=True)),
    Column("max_priority", String(16), nullable=False),
    Column("is_admin", Boolean, nullable=False),
)

# One row for a key with limits. Locking it puts the key's admissions one after another.
rates = Table(
    "rates",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("paid_until", Seconds, nullable=False),
)

# Images that are being drawn for a key with a limit of them. What a killed gateway leaves behind expires.
leases = Table(
    "leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("key_id", String(16), nullable=False),
    Column("images", Integer, nullable=False),
    Column("expected_end", Seconds, nullable=False),
    Column("expires", Seconds, nullable=False),
    Index("ix_leases_key_id", "key_id"),
)

# hour: hours since 1970.
usage = Table(
    "usage",
    metadata,
    Column("key_id", String(16), primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("requests", Integer, nullable=False),
    Column("images", Integer, nullable=False),
    Column("compute_s", Seconds, nullable=False),
    Column("rejected", Integer, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("sequence", Sequence, primary_key=True, autoincrement=True),
    Column("id", String(40), nullable=False, unique=True),
    Column("caller", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("request", JSON, nullable=False),
    Column("n", Integer, nullable=False),
    Column("created", Seconds, nullable=False),
    Column("not_before", Seconds, nullable=False),
    Column("deadline", Seconds),
    Column("started", Seconds),
    Column("finished", Seconds),
    Column("error", JSON(none_as_null=True)),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("owner", String(64), nullable=False, server_default=""),
    Column("lease_ends", Seconds),
    Column("lost", Integer, nullable=False, server_default="0"),
    Column("idempotency_key", String(255)),
    Column("fingerprint", String(64), nullable=False, server_default=""),
    UniqueConstraint("caller", "idempotency_key", name="uq_jobs_idempotency"),
    Index("ix_jobs_claim", "state", "priority", "caller", "sequence"),
    Index("ix_jobs_deadline", "state", "deadline"),
    Index("ix_jobs_caller", "caller", "sequence"),
    Index("ix_jobs_finished", "finished"),
    sqlite_autoincrement=True,
)

job_images = Table(
    "job_images",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("receipt", JSON, nullable=False),
)

job_events = Table(
    "job_events",
    metadata,
    Column("id", Sequence, primary_key=True, autoincrement=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    Column("created", Seconds, nullable=False),
    Index("ix_job_events_job_id", "job_id", "id"),
    # A row's number must never be used again: listeners go by it.
    sqlite_autoincrement=True,
)
