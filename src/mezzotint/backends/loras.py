"""LoRAs in a module's weights, put on and taken off in place, between passes.

W' = W + scale · (alpha / rank) · B·A, summed over the LoRAs that are worn (Hu et al., 2021,
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

__all__ = ["LoraWeights", "LowRank", "Wearing"]


@dataclass(frozen=True, eq=False)
class LowRank:
    """A change of one weight.

    down (A): rank × inputs, of a convolution × the kernel's height × width.
    up (B): outputs × rank, of a convolution × 1 × 1.
    strength: alpha / rank.
    """

    down: Tensor
    up: Tensor
    strength: float = 1.0

    def fits(self, weight: Tensor) -> bool:
        outputs, *inputs = weight.shape
        return (
            self.down.ndim == self.up.ndim == weight.ndim
            and [*self.down.shape[1:]] == inputs
            and self.up.shape[0] == outputs
            and self.up[0].numel() == self.down.shape[0]
        )

    def change(self, scale: float) -> Tensor:
        """In float32, as a matrix: outputs × everything else."""
        up, down = self.up.flatten(1).float(), self.down.flatten(1).float()
        return (scale * self.strength) * (up @ down)

    def to(self, device: torch.device) -> LowRank:
        return LowRank(self.down.to(device), self.up.to(device), self.strength)


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """One LoRA: the changes of a UNet and of both text encoders, by the paths of their modules."""

    unet: Mapping[str, LowRank]
    text_encoders: tuple[Mapping[str, LowRank], Mapping[str, LowRank]]


class Wearing:
    """A module and the LoRAs that it can wear, by name. Keeps a copy of the weights that they change."""

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
        self._worn: tuple[Lora, ...] | None = ()

    def of(self, loras: Sequence[Lora]) -> tuple[Lora, ...]:
        """Those of them that change this module."""
        return tuple(lora for lora in loras if lora.name in self._loras)

    @torch.inference_mode()
    def wear(self, loras: Sequence[Lora]) -> None:
        """From now on these and no others."""
        wanted = self.of(loras)
        if wanted == self._worn:
            return
        paths = self._paths(wanted) | (
            self._weights.keys() if self._worn is None else self._paths(self._worn)
        )
        self._worn = None
        for path in paths:
            original = self._originals[path]
            changes = [
                self._loras[lora.name][path].change(lora.scale)
                for lora in wanted
                if path in self._loras[lora.name]
            ]
            if changes:
                changed = original.float() + torch.stack(changes).sum(0).view(original.shape)
                self._weights[path].copy_(changed)
            else:
                self._weights[path].copy_(original)
        self._worn = wanted

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
