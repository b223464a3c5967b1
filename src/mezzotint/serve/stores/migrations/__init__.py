"""How the tables came to be what they are: alembic's scripts, run at start-up by `schema.upgrade`."""
