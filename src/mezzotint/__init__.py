"""Mezzotint: Stable Diffusion XL, batched step by step.

from mezzotint import Engine, GenerationRequest

with Engine.load("demo") as engine:
    engine.generate(GenerationRequest("a fox on a blue background")).save("fox.png")
"""

from mezzotint.core import GenerationRequest, Image
from mezzotint.engine.engine import Engine
from mezzotint.errors import MezzotintError

__all__ = ["Engine", "GenerationRequest", "Image", "MezzotintError", "__version__"]
__version__ = "0.1.0.dev0"
