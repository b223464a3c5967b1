"""Previews: the picture's size, the format asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image as PilImage

from mezzotint.errors import InvalidRequest
from mezzotint.imaging.previews import encode_preview

PREVIEW = np.zeros((8, 12, 3), np.uint8)
PREVIEW[:, :6] = (250, 20, 40)


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_preview_is_a_file_of_the_pictures_size(format: str) -> None:
    with PilImage.open(io.BytesIO(encode_preview(PREVIEW, 96, 64, format))) as picture:
        assert (picture.format, picture.size) == (format.upper(), (96, 64))
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(pixels[32, 10] - (250, 20, 40)).max() < 12
    assert pixels[32, 85].max() < 12


def test_a_preview_in_a_format_that_is_not_written_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="gif"):
        encode_preview(PREVIEW, 96, 64, "gif")
