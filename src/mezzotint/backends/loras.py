"""LoRAs in a module's weights, in place, for as long as the passes that want them.

W' = W + Σ scale · Δ(W), summed over the active LoRAs, where Δ is what its file says: of a LoRA
alpha/rank · B·A (Hu et al., 2021, arXiv:2106.09685), of the others the class below that is named for it.
In place, because what was compiled or recorded over a weight then stays true, and a pass with LoRAs takes as
long as one without. Always from a copy of W, because taking off what was added would leave its rounding
behind, and a picture would depend on what was drawn before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor, nn

from mezzotint.core import Lora
from mezzotint.errors import ModelInvalid

__all__ = ["AdaptedModule", "Change", "Decomposed", "Full", "Hadamard", "Kronecker", "LoraWeights", "LowRank"]


class Change(ABC):
    """How one weight, or one bias, is changed. Keeps what its file holds and no more."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """What is added to the model's own `weight` at scale 1: outputs × all the rest, in float32."""

    def add_to(self, total: Tensor, weight: Tensor, scale: float) -> None:
        """`total`: outputs × all the rest, in float32."""
        total.add_(self.delta(weight), alpha=scale)

    def fits(self, weight: Tensor) -> bool:
        try:
            # Computes shapes and no numbers.
            shape = self.to("meta").delta(weight.to("meta")).shape
        except (RuntimeError, IndexError):
            return False
        return shape == _rows(weight).shape

    def to(self, device: torch.device | str) -> Self:
        own = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        moved = {name: value.to(device) for name, value in own.items() if isinstance(value, Tensor | Change)}
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class Full(Change):
    """All of it, as it is: LyCORIS' `full`, and the changes of biases and norms."""

    weight: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        return _rows(self.weight.float())


@dataclass(frozen=True, eq=False)
class LowRank(Change):
    """B·A, or of a convolution what three in a row make of it, by Tucker (LyCORIS, arXiv:2309.14859).

    down (A): rank × inputs, of a convolution × the kernel's height × width.
    up (B): outputs × rank, of a convolution × 1 × 1.
    core: rank × rank × height × width, of a convolution whose down has none of these.
    """

    down: Tensor
    up: Tensor
    scaling: float = 1.0
    core: Tensor | None = None

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        if self.core is None:
            return (self.scaling * up) @ down
        return torch.einsum("or,rsk,si->oik", self.scaling * up, self.core.float().flatten(2), down).flatten(
            1
        )

    def add_to(self, total: Tensor, weight: Tensor, scale: float) -> None:
        if self.core is None:
            # Without a matrix of the weight's size in between, a third of the time. Most are of this kind.
            up, down = self.up.float().flatten(1), self.down.float().flatten(1)
            total.addmm_(up, down, alpha=scale * self.scaling)
        else:
            super().add_to(total, weight, scale)


@dataclass(frozen=True, eq=False)
class Hadamard(Change):
    """LoHa: two of low rank multiplied number by number (FedPara, arXiv:2108.06098)."""

    first: Change
    second: Change
    scaling: float = 1.0

    def delta(self, weight: Tensor) -> Tensor:
        return self.scaling * self.first.delta(weight) * self.second.delta(weight)


@dataclass(frozen=True, eq=False)
class Kronecker(Change):
    """LoKr: each number of the first times all of the second, which has a convolution's kernel."""

    first: Change
    second: Change
    scaling: float = 1.0

    def delta(self, weight: Tensor) -> Tensor:
        return torch.kron(self.scaling * self.first.delta(weight), self.second.delta(weight))


@dataclass(frozen=True, eq=False)
class Decomposed(Change):
    """DoRA: the direction of W + Δ, of a length that was learnt (Liu et al., 2024, arXiv:2402.09353).

    magnitude: outputs × 1 × 1, or of an older LyCORIS 1 × inputs × 1.
    """

    change: Change
    magnitude: Tensor

    def delta(self, weight: Tensor) -> Tensor:
        own = weight.float().reshape(*weight.shape[:2], -1)
        changed = own + self.change.delta(weight).view(own.shape)
        along = [number for number, size in enumerate(self.magnitude.shape) if size == 1]
        length = changed.norm(dim=along, keepdim=True) + torch.finfo(torch.float32).eps
        decomposed: Tensor = changed * (self.magnitude.float() / length)
        return (decomposed - own).flatten(1)


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """One LoRA: the changes of a UNet and of both text encoders, by the paths of their parameters."""

    unet: Mapping[str, Change]
    text_encoders: tuple[Mapping[str, Change], Mapping[str, Change]]


class AdaptedModule:
    """A module and its LoRAs, by name. Keeps a copy of the weights that they change."""

    def __init__(self, module: nn.Module, loras: Mapping[str, Mapping[str, Change]]) -> None:
        """Raises: ModelInvalid: one of them changes what the module does not have."""
        self._weights: dict[str, Tensor] = {}
        self._loras: dict[str, dict[str, Change]] = {}
        for name, changes in loras.items():
            for path, each in changes.items():
                weight = self._weights.setdefault(path, _parameter_of(module, path, name))
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
            original = weight = self._originals[path]
            changes = [(lora, self._loras[lora.name].get(path)) for lora in wanted]
            if any(change is not None for _, change in changes):
                # A copy of its own even where it is float32 already, rows first, for views.
                weight = weight.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
                for lora, change in changes:
                    if change is not None:
                        change.add_to(_rows(weight), original, lora.scale)
            self._weights[path].copy_(weight)
        self._active = wanted

    def _paths(self, loras: Sequence[Lora]) -> set[str]:
        return {path for lora in loras for path in self._loras[lora.name]}


def _rows(weight: Tensor) -> Tensor:
    """Outputs × all the rest."""
    return weight.reshape(weight.shape[0], -1)


def _parameter_of(module: nn.Module, path: str, name: str) -> Tensor:
    owner, _, own = path.rpartition(".")
    try:
        parameter = getattr(module.get_submodule(owner), own)
    except AttributeError:
        parameter = None
    if not isinstance(parameter, Tensor):
        raise ModelInvalid(f"the LoRA {name} does not fit this model, which has no {path}")
    return parameter
