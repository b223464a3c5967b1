"""ControlNets: residuals for the UNet's blocks, for the rows whose requests ask for them.

A ControlNet (Zhang et al., 2023, arXiv:2302.05543) is a copy of the UNet's first half that has learnt to read
a picture beside the latents; what it makes is added to what the UNet's own first half makes. The arithmetic
is `StableDiffusionXLControlNetPipeline`'s. Rows with and without it share a pass: those without have zeros
added, which changes nothing, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mezzotint.backends.transfers import to_device
from mezzotint.core import Control, Pixels, ResolvedRequest
from mezzotint.imaging.edges import canny
from mezzotint.imaging.inputs import resize_image

__all__ = ["ControlNets", "EncodedControl", "Inputs"]

PREPROCESS: Mapping[str, Callable[[Pixels], Pixels]] = {"none": lambda image: image, "canny": canny}


@dataclass(frozen=True, eq=False)
class EncodedControl:
    """A row's ControlNet. encoded: its conditioning image after the ControlNet's first convolutions,
    1 × channels × latent height × latent width."""

    control: Control
    encoded: Tensor


@dataclass(frozen=True, eq=False)
class Inputs:
    """What the UNet and a ControlNet both read, one entry a row along dimension 0."""

    sample: Tensor
    timesteps: Tensor
    hidden: Tensor
    pooled: Tensor
    time_ids: Tensor

    def of(self, rows: Tensor | None) -> Inputs:
        """Those of some rows alone; None: of all."""
        if rows is None:
            return self
        return Inputs(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows of a pass that go through one ControlNet. `index` has their places on the device, unless it is
    all of them; scales: n × 1 × 1 × 1."""

    controls: tuple[tuple[int, EncodedControl], ...]
    # In the whole pass.
    rows: int
    index: Tensor | None
    encoded: Tensor
    scales: Tensor


class ControlNets:
    """Those of one model, by the names that requests know them by."""

    def __init__(
        self,
        nets: Mapping[str, tuple[Callable[..., Any], Callable[..., Any]]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """nets: as `tuned.tune_controlnets` parts them."""
        self._nets, self._device, self._dtype = nets, device, dtype
        # Of the last pass, by ControlNet: as long as the same rows are in the same places of as many.
        self._parts: dict[str, _Part] = {}

    def encode(self, request: ResolvedRequest) -> tuple[EncodedControl, ...]:
        """The request's controls, their images encoded at the size that is drawn."""
        return tuple(self._encode(each, request.width, request.height) for each in request.controls)

    def _encode(self, control: Control, width: int, height: int) -> EncodedControl:
        pixels = PREPROCESS[control.preprocessor](resize_image(control.image, width, height))
        picture = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        encode, _ = self._nets[control.name]
        return EncodedControl(control, encode(to_device(picture.to(self._dtype), self._device)))

    def residuals(self, controls: Sequence[Sequence[EncodedControl]], inputs: Inputs) -> dict[str, Any]:
        """What the UNet is given beside its inputs; nothing where no row has an active ControlNet.

        controls: for each row of the pass, those that are active in this evaluation.
        """
        whole: list[Tensor] = []
        for name, (_, net) in self._nets.items():
            rows = tuple(
                (row, each)
                for row, active in enumerate(controls)
                for each in active
                if each.control.name == name
            )
            if not rows:
                self._parts.pop(name, None)
                continue
            part = self._part(name, rows, len(controls))
            own = inputs.of(part.index)
            down, mid = net(
                own.sample,
                own.timesteps,
                encoder_hidden_states=own.hidden,
                controlnet_cond=part.encoded,
                added_cond_kwargs={"text_embeds": own.pooled, "time_ids": own.time_ids},
                return_dict=False,
            )
            parts = [(each * part.scales).to(each.dtype) for each in (*down, mid)]
            if part.index is None and not whole:
                whole = parts
                continue
            whole = whole or [each.new_zeros((len(controls), *each.shape[1:])) for each in parts]
            for total, each in zip(whole, parts, strict=True):
                if part.index is None:
                    total.add_(each)
                else:
                    total.index_add_(0, part.index, each)
        if not whole:
            return {}
        *down, mid = whole
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": mid}

    def forget(self) -> None:
        """Let go of the rows of the last pass."""
        self._parts.clear()

    def _part(self, name: str, controls: tuple[tuple[int, EncodedControl], ...], rows: int) -> _Part:
        part = self._parts.get(name)
        if part is None or (part.controls, part.rows) != (controls, rows):
            places = [row for row, _ in controls]
            index = None if len(places) == rows else to_device(torch.tensor(places), self._device)
            scales = torch.tensor([each.control.scale for _, each in controls], dtype=torch.float32)
            part = self._parts[name] = _Part(
                controls,
                rows,
                index,
                torch.cat([each.encoded for _, each in controls]),
                to_device(scales, self._device).view(-1, 1, 1, 1),
            )
        return part
