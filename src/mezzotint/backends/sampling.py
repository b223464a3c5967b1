"""One request's sampler: a diffusers scheduler object, its timesteps, and how far it has come.

Knows nothing of UNets, prompts or batches. Source of the arithmetic: diffusers' schedulers themselves, of
which each request owns one, so that any mix of samplers and steps can share a forward pass.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import diffusers
import torch

from mezzotint.backends.transfers import WithoutWaiting
from mezzotint.errors import InvalidRequest
from mezzotint.samplers import Sampler, find_sampler

__all__ = ["Sampling", "SamplingFactory"]

MAX_PROTOTYPES = 64


class Sampling:
    """The state of one request between its evaluations, of which the first is number `first`."""

    def __init__(
        self,
        scheduler: Any,
        generator: torch.Generator,
        first: int,
        device: torch.device | None,
    ) -> None:
        """`device`: where the latents are, None when it is the CPU that the scheduler's numbers are on."""
        self._scheduler = scheduler
        self._device = device
        self._timesteps = list(scheduler.timesteps)[first:]
        # The UNet turns timesteps into float32 in any case; as plain numbers a batch of them is one copy.
        self._numbers = [float(timestep) for timestep in self._timesteps]
        self._extra: dict[str, Any] = {}
        accepted = inspect.signature(scheduler.step).parameters
        if "eta" in accepted:
            self._extra["eta"] = 0.0
        if "generator" in accepted:
            self._extra["generator"] = generator
        self._done = 0

    @property
    def initial_sigma(self) -> float | torch.Tensor:
        """The standard deviation of the noise that the first evaluation expects."""
        sigma: float | torch.Tensor = self._scheduler.init_noise_sigma
        return sigma

    @property
    def finished(self) -> bool:
        return self._done == len(self._timesteps)

    @property
    def progress(self) -> tuple[int, int]:
        """Evaluations done, and those that there are."""
        return self._done, len(self._timesteps)

    @property
    def timestep(self) -> float:
        """Where the next evaluation stands between 999 (noise) and 0."""
        return self._numbers[self._done]

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """The clean latents under as much of `noise` as the next evaluation expects; after the last, none."""
        if self.finished:
            return clean
        # The scheduler would take its tables to the latents' device and wait for what it reads there. But
        # what it does is linear: asked on the CPU for 1 and 0, and 0 and 1, it tells its two factors.
        one, zero = torch.ones(1, dtype=clean.dtype), torch.zeros(1, dtype=clean.dtype)
        timestep = self._timesteps[self._done].reshape(1)
        signal = self._scheduler.add_noise(one, zero, timestep)
        disturbance = self._scheduler.add_noise(zero, one, timestep)
        noisy: torch.Tensor = signal.squeeze() * clean + disturbance.squeeze() * noise
        return noisy

    def scale(self, latents: torch.Tensor) -> torch.Tensor:
        """The latents as the UNet's next evaluation wants them: of about unit variance."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self._timesteps[self._done])
        return scaled

    def advance(self, noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The latents after the evaluation that predicted `noise`."""
        timestep = self._timesteps[self._done]
        with nullcontext() if self._device is None else WithoutWaiting(self._device):
            moved: torch.Tensor = self._scheduler.step(
                noise, timestep, latents, **self._extra, return_dict=False
            )[0]
        self._done += 1
        return moved

    def predict_clean(self, scaled: torch.Tensor, noise: torch.Tensor, timestep: float) -> torch.Tensor:
        """The clean latents that `noise`, predicted for the `scaled` input, amounts to.

        With x̂ = √ᾱ·x0 + √(1-ᾱ)·ε (Ho et al., 2020, eq. 4), and v = √ᾱ·ε - √(1-ᾱ)·x0 (Salimans and Ho,
        2022): every sampler of the table gives the UNet an x̂ of this form.
        """
        kind = self._scheduler.config.prediction_type
        signal, disturbance = self._signal_and_noise(timestep)
        if kind == "v_prediction":
            return signal * scaled - disturbance * noise
        if kind == "sample":
            return noise
        return (scaled - disturbance * noise) / signal

    def _signal_and_noise(self, timestep: float) -> tuple[float, float]:
        """√ᾱ and √(1-ᾱ) at a timestep that may lie between two trained ones: log σ is interpolated."""
        alphas = self._scheduler.alphas_cumprod
        low = min(max(int(timestep), 0), len(alphas) - 1)
        high = min(low + 1, len(alphas) - 1)
        part = min(max(timestep - low, 0.0), 1.0)
        log_sigmas = [0.5 * math.log((1 - a) / a) for a in (_inside(alphas[low]), _inside(alphas[high]))]
        sigma = math.exp(log_sigmas[0] * (1 - part) + log_sigmas[1] * part)
        return 1 / math.sqrt(1 + sigma**2), sigma / math.sqrt(1 + sigma**2)


def _inside(alpha: torch.Tensor) -> float:
    # A model trained to zero terminal signal has ᾱ = 0 at its last timestep.
    return min(max(float(alpha), 1e-6), 1 - 1e-6)


class SamplingFactory:
    """Makes `Sampling`s from the model's own scheduler configuration. Not thread-safe.

    Setting a scheduler up can take tens of milliseconds and depends on nothing but sampler and steps, so
    each request gets a copy of one kept for that.
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        """`device`: where the latents are."""
        self._config = dict(config)
        self._device = None if device.type == "cpu" else device
        self._prototypes: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def make(self, name: str, steps: int, seed: int, generator: torch.Generator, *, skipped: int) -> Sampling:
        """A sampler at the step after the `skipped` ones (0…steps - 1) of `steps`.

        Raises:
            InvalidRequest: on `steps`, when diffusers does not divide the model's timesteps into so many; on
                `scheduler`, when the sampler takes another prediction than the model's.
        """
        sampler = find_sampler(name)
        if self._config.get("prediction_type") == "sample" and not sampler.takes_sample:
            raise InvalidRequest(
                f"scheduler: this model predicts clean latents, from which {sampler.name} does not draw; "
                "try Euler",
                param="scheduler",
            )
        scheduler = copy.deepcopy(self._prototype(sampler, steps))
        if sampler.seeded_noise:
            scheduler.noise_sampler_seed = seed
        first = sampler.first_evaluation(skipped)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        return Sampling(scheduler, generator, first, self._device)

    def _prototype(self, sampler: Sampler, steps: int) -> Any:
        key = (sampler.name, steps)
        if key in self._prototypes:
            self._prototypes.move_to_end(key)
            return self._prototypes[key]
        scheduler = self._divided(sampler, steps)
        if scheduler is None:
            fewer = next(count for count in range(steps - 1, 0, -1) if self._divided(sampler, count))
            raise InvalidRequest(
                f"steps: this model's timesteps cannot be divided into {steps}; try {fewer}", param="steps"
            )
        self._prototypes[key] = scheduler
        if len(self._prototypes) > MAX_PROTOTYPES:
            self._prototypes.popitem(last=False)
        return scheduler

    def _divided(self, sampler: Sampler, steps: int) -> Any | None:
        """diffusers' scheduler of so many steps, or None where it cannot make so many.

        "trailing" spacing accumulates rounding errors, and at a few numbers makes one step too many.
        """
        scheduler = getattr(diffusers, sampler.diffusers_class).from_config(self._config, **sampler.overrides)
        # On the CPU: only single numbers are read from what it holds, and those need no device.
        scheduler.set_timesteps(steps, device="cpu")
        return scheduler if len(scheduler.timesteps) == sampler.evaluations(steps) else None
