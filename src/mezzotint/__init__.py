"""Mezzotint: Stable Diffusion XL, batched step by step.

from mezzotint import Engine, GenerationRequest

with Engine.load("demo") as engine:
    engine.generate(GenerationRequest("a fox on a blue background")).save("fox.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mezzotint.core import GenerationRequest, Image
    from mezzotint.engine.engine import Engine
    from mezzotint.errors import MezzotintError

__all__ = ["Engine", "GenerationRequest", "Image", "MezzotintError", "__version__"]
__version__ = "0.1.0.dev0"

HOMES = {
    "Engine": "mezzotint.engine.engine",
    "GenerationRequest": "mezzotint.core",
    "Image": "mezzotint.core",
    "MezzotintError": "mezzotint.errors",
}


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: the command line has something to do before the first heavy import.
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
