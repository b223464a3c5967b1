"""How fast is bought: the switches of one replica's speed. Plain data, which knows no torch.

`mezzotint.backends.tuned` puts them into effect; docs/performance.md says what each is expected to give, and
what was measured of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mezzotint.errors import SettingInvalid

__all__ = ["Attention", "Compile", "Quantisation", "Switch", "Tuning"]

Switch = Literal["auto", "on", "off"]
Compile = Literal["none", "blocks", "unet"]
Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
Quantisation = Literal["none", "int8", "fp8"]

_ACCEPTED: dict[str, tuple[str, ...]] = {
    "channels_last": get_args(Switch),
    "fused_projections": get_args(Switch),
    "attention": get_args(Attention),
    "compile": get_args(Compile),
    "cuda_graphs": get_args(Switch),
    "quantisation": get_args(Quantisation),
}


@dataclass(frozen=True)
class Tuning:
    """The switches. "auto" is on where a GPU computes and off on a CPU.

    channels_last: weights of UNet and VAE in the order that tensor cores read convolutions in.
    fused_projections: query, key and value of an attention as one matrix product.
    attention: the kernel of scaled dot products that is tried first; "auto" leaves it to torch, but for the
        VAE's on a GPU, whose head is too wide for the quick ones (`backends/wide_heads.py`).
    compile: nothing, the UNet's repeated blocks, or the whole UNet.
    compile_cache: a folder for what was compiled, so that the next start finds it; empty is torch's own,
        which a container forgets.
    cuda_graphs: replay a pass as one launch, for each shape, width and length of prompts that comes often.
    quantisation: matrix products of the UNet's transformers in int8 or fp8 (the extra `quantisation`).
    preview_vae: a folder with a small decoder (diffusers' `AutoencoderTiny`, such as madebyollin/taesdxl)
        for previews of the picture's own size; empty is a linear map, an eighth as wide.

    Raises:
        SettingInvalid: a value that is not accepted.
    """

    channels_last: Switch = "auto"
    fused_projections: Switch = "auto"
    attention: Attention = "auto"
    compile: Compile = "none"
    compile_cache: str = ""
    cuda_graphs: Switch = "auto"
    quantisation: Quantisation = "none"
    preview_vae: str = ""

    def __post_init__(self) -> None:
        for name, accepted in _ACCEPTED.items():
            value = getattr(self, name)
            if value not in accepted:
                raise SettingInvalid(f"{name} must be {_listed(accepted)}, not {value!r}", param=name)


def _listed(accepted: tuple[str, ...]) -> str:
    return f"{', '.join(accepted[:-1])} or {accepted[-1]}"
