"""A model's configuration files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mezzotint.errors import ModelInvalid
from mezzotint.samplers import sampler_configured

__all__ = ["VOCABULARY", "read_json", "sampler_of"]

# What a model says that it knows, if it does: words of one token each.
VOCABULARY = "vocabulary.json"


def read_json(path: Path) -> dict[str, Any]:
    """A model's configuration file.

    Raises:
        ModelInvalid: it is missing or not a JSON object.
    """
    name = f"{path.parent.name}/{path.name}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise ModelInvalid(f"the model lacks {name}") from None
    except ValueError:
        raise ModelInvalid(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise ModelInvalid(f"{name} is not a JSON object")
    return value


def sampler_of(path: Path) -> str:
    """The sampler of the scheduler that a model's folder is configured with.

    Raises:
        ModelInvalid: as `read_json`.
    """
    return sampler_configured(read_json(path / "scheduler/scheduler_config.json")).name
