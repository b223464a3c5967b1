"""What a device or torch raises, as this project's errors; the log has the whole of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mezzotint.errors import GenerationFailed, MezzotintError

__all__ = ["failure", "failures_of", "not_finite"]

logger = logging.getLogger(__name__)


@contextmanager
def failures_of(what: str) -> Iterator[None]:
    """Turn whatever torch raises into this project's error, and tell the log the whole of it."""
    try:
        yield
    except MezzotintError:
        raise
    except Exception as error:
        raise failure(what, error) from error


def failure(what: str, error: Exception) -> GenerationFailed:
    """`error` as this project's, and the whole of it in the log."""
    logger.error("%s failed", what, exc_info=error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _tells_of_memory(str(error)):
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return GenerationFailed(f"{what} ran out of memory; try a smaller size")
    return GenerationFailed(f"{what} failed ({type(error).__name__})")


def not_finite() -> GenerationFailed:
    """A picture's latents hold infinities or no numbers."""
    return GenerationFailed("the model's prediction for this picture was not a finite number")


def _tells_of_memory(message: str) -> bool:
    # torch's CPU allocator and Neuron's runtime report by message alone.
    return any(words in message for words in ("not enough memory", "Allocation Failure", "NRT_RESOURCE"))
