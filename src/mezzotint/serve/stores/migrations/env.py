"""What alembic runs around the scripts: on the connection, and in the transaction, that `schema` gives it."""

from __future__ import annotations

from alembic import context

from mezzotint.serve.stores.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite can, once its driver does not commit by itself.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
