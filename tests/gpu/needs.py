"""What these tests run on: a CUDA device, or the stand-in for one."""

from __future__ import annotations

import pytest
import torch

HAS_CUDA = torch.cuda.is_available()
GPU = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason="needs a CUDA device, and there is none here")
