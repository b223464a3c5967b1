"""Brings a database's tables up to this version's.

A revision is named after the oldest schema whose code can use its tables, and a number: "0001.2" only adds to
"0001", say an index, or a column with a default. So during an upgrade, and after one that was taken back, an
older version works with the newer one's tables.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from mezzotint.errors import SettingInvalid

__all__ = ["upgrade"]

# Any number, the same in every version: PostgreSQL's advisory locks have no names.
MIGRATION_LOCK = 4_173_201


def upgrade(connection: Connection) -> None:
    """Run the migrations that are missing, in the connection's transaction. Of several at once, one does.

    Raises:
        SettingInvalid: the database is of a later version, whose tables this one cannot use.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None or current in known:
        if current != scripts.get_current_head():
            command.upgrade(config, "head")
    elif current.partition(".")[0] not in known:
        raise SettingInvalid(
            f"MEZZOTINT_DATABASE_URL: the database is of a later Mezzotint (schema {current})",
            param="MEZZOTINT_DATABASE_URL",
        )
