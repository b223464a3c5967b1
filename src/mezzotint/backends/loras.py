"""LoRAs in a module's weights, in place, for as long as the passes that want them.

W' = W + scale · (alpha / rank) · B·A, summed over the active LoRAs (Hu et al., 2021,
arXiv:2106.09685). In place, because what was compiled or recorded over a weight then stays true, and a pass
with LoRAs takes as long as one without. Always from a copy of W, because taking off what was added would
leave its rounding behind, and a picture would depend on what was drawn before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mezzotint.core import Lora
from mezzotint.errors import ModelInvalid

__all__ = ["AdaptedModule", "LoraWeights", "LowRank"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one weight.

    down (A): rank × inputs, of a convolution × the kernel's height × width.
    up (B): outputs × rank, of a convolution × 1 × 1.
    scaling: alpha / rank.
    """

    down: Tensor
    up: Tensor
    scaling: float = 1.0

    def fits(self, weight: Tensor) -> bool:
        outputs, *inputs = weight.shape
        return (
            self.down.ndim == self.up.ndim == weight.ndim
            and [*self.down.shape[1:]] == inputs
            and self.up.shape[0] == outputs
            and self.up[0].numel() == self.down.shape[0]
        )

    def add_to(self, weight: Tensor, scale: float) -> None:
        """`weight`: in float32, of the shape that this is of."""
        up, down = self.up.flatten(1).float(), self.down.flatten(1).float()
        weight.view(len(weight), -1).addmm_(up, down, alpha=scale * self.scaling)

    def to(self, device: torch.device) -> LowRank:
        return LowRank(self.down.to(device), self.up.to(device), self.scaling)


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """One LoRA: the changes of a UNet and of both text encoders, by the paths of their modules."""

    unet: Mapping[str, LowRank]
    text_encoders: tuple[Mapping[str, LowRank], Mapping[str, LowRank]]


class AdaptedModule:
    """A module and its LoRAs, by name. Keeps a copy of the weights that they change."""

    def __init__(self, module: nn.Module, loras: Mapping[str, Mapping[str, LowRank]]) -> None:
        """Raises: ModelInvalid: one of them changes what the module does not have."""
        self._weights: dict[str, Tensor] = {}
        self._loras: dict[str, dict[str, LowRank]] = {}
        for name, changes in loras.items():
            for path, each in changes.items():
                weight = self._weights.setdefault(path, _weight_of(module, path, name))
                if not each.fits(weight):
                    raise ModelInvalid(f"the LoRA {name} does not fit this model: {path} has another shape")
            if changes:
                device = next(module.parameters()).device
                self._loras[name] = {path: each.to(device) for path, each in changes.items()}
        self._originals = {path: weight.detach().clone() for path, weight in self._weights.items()}
        # None after a change that did not come to its end.
        self._active: tuple[Lora, ...] | None = ()

    def affected_by(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """Those of them that change this module."""
        return tuple(lora for lora in loras if lora.name in self._loras)

    @torch.inference_mode()
    def activate(self, loras: Sequence[Lora]) -> None:
        """From now on these and no others."""
        wanted = self.affected_by(loras)
        if wanted == self._active:
            return
        paths = self._paths(wanted) | (
            self._weights.keys() if self._active is None else self._paths(self._active)
        )
        self._active = None
        for path in paths:
            weight = self._originals[path]
            changes = [(lora, self._loras[lora.name].get(path)) for lora in wanted]
            if any(change is not None for _, change in changes):
                # A copy of its own even where it is float32 already, rows first, for views.
                weight = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
                for lora, change in changes:
                    if change is not None:
                        change.add_to(weight, lora.scale)
            self._weights[path].copy_(weight)
        self._active = wanted

    def _paths(self, loras: Sequence[Lora]) -> set[str]:
        return {path for lora in loras for path in self._loras[lora.name]}


def _weight_of(module: nn.Module, path: str, name: str) -> Tensor:
    try:
        weight = module.get_submodule(path).weight
    except AttributeError:
        weight = None
    if not isinstance(weight, Tensor):
        raise ModelInvalid(f"the LoRA {name} does not fit this model, which has no {path}")
    return weight
