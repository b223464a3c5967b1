"""What waits past its deadline is found without reading all that waits."""

from __future__ import annotations

from alembic import op

revision = "0001.1"
down_revision = "0001"


def upgrade() -> None:
    op.create_index("ix_jobs_deadline", "jobs", ["state", "deadline"])


def downgrade() -> None:
    op.drop_index("ix_jobs_deadline", "jobs")
