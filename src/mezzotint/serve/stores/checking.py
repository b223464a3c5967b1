"""A look at the stores before anything else is started: what is wrong is said in a line, in a second."""

from __future__ import annotations

from mezzotint.config import Settings
from mezzotint.serve.stores.database import open_database
from mezzotint.serve.stores.images import open_images
from mezzotint.serve.stores.keys import KeyStore

__all__ = ["check_stores"]


async def check_stores(settings: Settings) -> bool:
    """Open and close every store, migrating the database; whether there is a key that is valid.

    Raises:
        SettingInvalid: a store cannot be used; the message names its setting.
    """
    async with (
        open_database(settings.database_url) as database,
        open_images(settings.image_store, settings.image_ttl_s, database.now),
    ):
        return any(key.is_valid(database.now()) for key in await KeyStore(database).list())
