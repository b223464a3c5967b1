"""What is served beside a model, of all kinds together: LoRAs, ControlNets, embeddings and IP-Adapters.

No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mezzotint.core import ModelLimits, ServedEmbedding, ServedLora
from mezzotint.models.controlnets import FoundControlNet, find_controlnets
from mezzotint.models.embeddings import find_embeddings
from mezzotint.models.ip_adapters import FoundIpAdapter, find_ip_adapters, image_encoder_of
from mezzotint.models.loras import find_loras
from mezzotint.models.named import Found

__all__ = ["Added", "find_added"]


@dataclass(frozen=True)
class Added:
    """The fields are those of `core.ADDED`, and the folder of the image encoder, where anything reads it."""

    loras: tuple[Found[ServedLora], ...] = ()
    controlnets: tuple[FoundControlNet, ...] = ()
    embeddings: tuple[Found[ServedEmbedding], ...] = ()
    ip_adapters: tuple[FoundIpAdapter, ...] = ()
    image_encoder: Path | None = None

    def on(self, limits: ModelLimits) -> ModelLimits:
        """The limits of a model that is served with these."""
        return replace(
            limits,
            loras=tuple(each.served for each in self.loras),
            controlnets=tuple(each.served for each in self.controlnets),
            embeddings=tuple(each.served for each in self.embeddings),
            ip_adapters=tuple(each.served for each in self.ip_adapters),
        )


def find_added(
    path: Path,
    loras: Sequence[str] | None = (),
    controlnets: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    image_encoder: str = "",
) -> Added:
    """Those in the folder of the model at `path`, and the given: PATH, or NAME=PATH.

    loras: with None not even the model's own are looked for.
    image_encoder: a folder; empty is the model's own.

    Raises:
        SettingInvalid: a path leads to none, or two of a kind have one name.
        ModelInvalid: a file cannot be read, or holds something else.
    """
    adapters = find_ip_adapters(path, ip_adapters, image_encoder)
    return Added(
        () if loras is None else find_loras(path, loras),
        find_controlnets(path, controlnets),
        find_embeddings(path, embeddings),
        adapters,
        image_encoder_of(path, image_encoder) if adapters else None,
    )
