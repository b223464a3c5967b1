"""What is served beside a model, of all three kinds together: LoRAs, ControlNets and embeddings.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mezzotint.core import ModelLimits, ServedEmbedding, ServedLora
from mezzotint.models.controlnets import FoundControlNet, find_controlnets
from mezzotint.models.embeddings import find_embeddings
from mezzotint.models.loras import find_loras
from mezzotint.models.named import Found

__all__ = ["Added", "find_added"]


@dataclass(frozen=True)
class Added:
    """The fields are those of `core.ADDED`."""

    loras: tuple[Found[ServedLora], ...] = ()
    controlnets: tuple[FoundControlNet, ...] = ()
    embeddings: tuple[Found[ServedEmbedding], ...] = ()

    def on(self, limits: ModelLimits) -> ModelLimits:
        """The limits of a model that is served with these."""
        return replace(
            limits,
            loras=tuple(each.served for each in self.loras),
            controlnets=tuple(each.served for each in self.controlnets),
            embeddings=tuple(each.served for each in self.embeddings),
        )


def find_added(
    path: Path,
    loras: Sequence[str] | None = (),
    controlnets: Sequence[str] = (),
    embeddings: Sequence[str] = (),
) -> Added:
    """Those in the folder of the model at `path`, and the given: PATH, or NAME=PATH.

    loras: with None not even the model's own are looked for.

    Raises:
        SettingInvalid: a path leads to none, or two of a kind have one name.
        ModelInvalid: a file cannot be read, or holds something else.
    """
    return Added(
        () if loras is None else find_loras(path, loras),
        find_controlnets(path, controlnets),
        find_embeddings(path, embeddings),
    )
