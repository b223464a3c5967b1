"""Which models there are, where they lie, and how one is loaded.

`catalogue` names them, `locations` finds them on disk, `manifest` holds their files to their hashes,
`pulling` fetches them, `reading` reads them, and `loading` makes a backend of one. Only the last two import
torch, and this package imports neither.
"""

from mezzotint.models.catalogue import CATALOGUE, CatalogueEntry
from mezzotint.models.locations import (
    CheckReport,
    ListedModel,
    check,
    describe,
    find_model,
    limits_of,
    list_models,
    models_home,
)
from mezzotint.models.manifest import write_manifest
from mezzotint.models.pulling import pull

__all__ = [
    "CATALOGUE",
    "CatalogueEntry",
    "CheckReport",
    "ListedModel",
    "check",
    "describe",
    "find_model",
    "limits_of",
    "list_models",
    "models_home",
    "pull",
    "write_manifest",
]
