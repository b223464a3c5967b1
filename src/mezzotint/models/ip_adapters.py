"""The IP-Adapters that a model is served with, and the image encoder that they read pictures by.

No torch here: what may be asked for must be known at once. `reading_ip_adapters` reads their weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mezzotint.core import ServedIpAdapter
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.models.json_files import read_json
from mezzotint.models.manifest import files_hash
from mezzotint.models.named import READ, SUFFIX, Found, Kind, is_file, opened

__all__ = ["IMAGE", "KIND", "FoundIpAdapter", "find_ip_adapters", "image_encoder_of"]

logger = logging.getLogger(__name__)

KIND = Kind("ip_adapters", f"{SUFFIX} files", is_file)
# A model's own image encoder, as diffusers calls its folder.
ENCODER = "image_encoder"
# Before the names of the weights that make tokens of what the encoder sees.
IMAGE = "image_proj."
# The weight whose last dimension is what is read of the encoder, of either kind, and what its configuration
# calls that: all it sees, or its last layer but one.
PLAIN, PLUS = ("proj.weight", "projection_dim"), ("proj_in.weight", "hidden_size")
# Of kinds that are not served: the full ones, which read every patch, and FaceID's, which read faces.
FULL, FACE = f"{IMAGE}proj.3.weight", f"{IMAGE}proj.2.weight"


@dataclass(frozen=True)
class FoundIpAdapter(Found[ServedIpAdapter]):
    """is_plus: it reads the encoder's last layer but one."""

    is_plus: bool = False


def image_encoder_of(model: Path, given: str) -> Path:
    """The folder of the image encoder: that which is given, or the model's own.

    Raises:
        SettingInvalid: there is none.
    """
    folder = Path(given).expanduser() if given else model / ENCODER
    if not (folder / "config.json").is_file():
        told = f"and {folder} has no config.json" if given else "which ip_adapters need, and there is none"
        raise SettingInvalid(
            f"image_encoder must be a folder with a CLIPVisionModelWithProjection, {told}",
            param="image_encoder",
        )
    return folder


def find_ip_adapters(model: Path, given: Sequence[str], image_encoder: str) -> tuple[FoundIpAdapter, ...]:
    """Those in the folder `ip_adapters` of the model at `model`, and the `given`: PATH, or NAME=PATH.

    image_encoder: as `image_encoder_of` takes it. Where there is none, the model's own come to nothing: they
        come unasked, and many a command has no use for them.

    Raises:
        SettingInvalid: a path leads to no .safetensors file or no encoder, two have one name, or there is no
            encoder for those that are given.
        ModelInvalid: a file is none, of a kind that is not served, or for another encoder.
    """
    found = KIND.find(model, given)
    if not found:
        if image_encoder:
            # Nobody hears later that the path is wrong.
            image_encoder_of(model, image_encoder)
        return ()
    if not (given or image_encoder or (model / ENCODER).exists()):
        logger.warning("the IP-Adapters %s are not served: they need an image_encoder", ", ".join(found))
        return ()
    encoder = image_encoder_of(model, image_encoder)
    config = read_json(encoder / "config.json")
    try:
        encoder_sha256 = files_hash(encoder, READ)
    except OSError:
        raise ModelInvalid(f"the image encoder {encoder.name} is unreadable") from None
    return tuple(_described(name, path, config, encoder_sha256) for name, path in found.items())


def _described(name: str, path: Path, encoder: Mapping[str, Any], encoder_sha256: str) -> FoundIpAdapter:
    shapes = _shapes(path)
    if FULL in shapes:
        raise ModelInvalid(f"{path.name} is a full IP-Adapter; those served are plain ones, and plus")
    if FACE in shapes:
        raise ModelInvalid(
            f"{path.name} is an IP-Adapter FaceID, which reads faces as insightface finds them; those served "
            "are plain ones, and plus"
        )
    for weight, option in (PLAIN, PLUS):
        shape = shapes.get(IMAGE + weight)
        if shape is None:
            continue
        side, own = encoder.get("image_size"), encoder.get(option)
        # A number alone has no last dimension.
        reads = shape[-1] if shape else 1
        if not isinstance(side, int) or own != reads:
            raise ModelInvalid(
                f"{path.name} is for another image encoder: it reads {reads} numbers, "
                f"and the {option} of this one is {own}"
            )
        served = ServedIpAdapter(name, files_hash(path), side, encoder_sha256)
        return FoundIpAdapter(path, served, (weight, option) == PLUS)
    raise ModelInvalid(f"{path.name} is no IP-Adapter: it holds neither {PLAIN[0]} nor {PLUS[0]} of {IMAGE}")


def _shapes(path: Path) -> dict[str, list[int]]:
    with opened(path, f"the IP-Adapter {path.name}") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
