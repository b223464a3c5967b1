"""Which models there are, where they lie, and how one is loaded.

`catalogue` names them, `locations` finds them on disk, `manifest` holds their files to their hashes,
`pulling` fetches them, `reading` reads them, and `loading` makes a backend of one. Only the last two import
torch, and this package imports neither.
"""

import os

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

# Read once, when torch starts. Its threads otherwise wait for each other by spinning, and when a decode or
# another process wants the same cores, a pass takes ten times as long as with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
