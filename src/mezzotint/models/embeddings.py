"""The embeddings (textual inversions, Gal et al., 2022, arXiv:2208.01618) that a model is served with: those
that lie in its folder, and files that are named.

No torch here: what may be named must be known at once. `reading_loras` reads their vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mezzotint.core import ServedEmbedding
from mezzotint.errors import ModelInvalid, SettingInvalid
from mezzotint.models.manifest import files_hash
from mezzotint.models.named import SUFFIX, Found, Kind, is_file, opened

__all__ = ["ENCODERS", "find_embeddings"]

# What a file calls the vectors of SDXL's two text encoders, in their order.
ENCODERS = ("clip_l", "clip_g")
# A window of SDXL's text encoders, without the marks of beginning and end.
MAX_VECTORS = 75
KIND = Kind("embeddings", f"{SUFFIX} files", is_file)


def find_embeddings(model: Path, given: Sequence[str] = ()) -> tuple[Found[ServedEmbedding], ...]:
    """Those in the folder `embeddings` of the model at `model`, and the `given`: PATH, or NAME=PATH.

    Raises:
        SettingInvalid: a path leads to no .safetensors file, or two have one name.
        ModelInvalid: a file is truncated, no safetensors file, or holds something else.
    """
    found = KIND.find(model, given)
    # A prompt's words have no case.
    if len({name.casefold() for name in found}) < len(found):
        raise SettingInvalid("embeddings: two names differ in case alone", param="embeddings")
    return tuple(Found(path, _described(name, path)) for name, path in found.items())


def _described(name: str, path: Path) -> ServedEmbedding:
    with opened(path, f"the embedding {path.name}") as file:
        shapes = [file.get_slice(each).get_shape() for each in ENCODERS if each in file.keys()]  # noqa: SIM118
        sha256 = files_hash(path)
    # As many of each, and some.
    counts = {shape[0] if len(shape) == 2 else 0 for shape in shapes}
    if len(shapes) != len(ENCODERS) or len(counts) != 1 or counts == {0}:
        raise ModelInvalid(
            f"{path.name} is no embedding for SDXL, which has as many vectors of {' as of '.join(ENCODERS)}"
        )
    vectors = int(shapes[0][0])
    if vectors > MAX_VECTORS:
        raise ModelInvalid(f"{path.name} has {vectors} vectors; a text encoder reads {MAX_VECTORS} at a time")
    return ServedEmbedding(name, sha256, vectors)
