"""The one table of samplers: what a request's `scheduler` may name.

A *sampler* here is what diffusers calls a scheduler and A1111 a sampler: the rule that turns the model's
noise prediction into the next latents. (`engine/scheduler.py` schedules requests, a different thing.)
Names match without regard to case, by diffusers' class name or by A1111's. This module knows no torch: the
engine needs only how many evaluations of the UNet a sampler makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mezzotint.errors import InvalidRequest

__all__ = ["SAMPLERS", "Sampler", "find_sampler", "sampler_configured"]


@dataclass(frozen=True)
class Sampler:
    """One row of the table.

    `overrides` are laid over the model's own scheduler configuration when the diffusers class is built.
    `takes_sample`: it also draws from a UNet that predicts the clean latents, diffusers' "sample".
    `evaluations_per_step` is 2 for the second-order samplers, which evaluate the UNet twice in each step
    but the last. `extra_evaluations` counts PNDM's one repeated evaluation of its linear multistep start.
    """

    name: str
    diffusers_class: str
    aliases: tuple[str, ...] = ()
    overrides: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    evaluations_per_step: int = 1
    extra_evaluations: int = 0
    max_steps: int = 1000
    takes_sample: bool = True
    # DPMSolverSDEScheduler draws its Brownian path from a seed of its own, not from a generator.
    seeded_noise: bool = False

    def evaluations(self, steps: int, taken: int | None = None) -> int:
        """UNet evaluations for the last `taken` (≥1, all without it) of `steps` (≥1) denoising steps."""
        if steps == 1:
            return 1
        full = steps * self.evaluations_per_step - (self.evaluations_per_step - 1) + self.extra_evaluations
        return full - (0 if taken is None else self.first_evaluation(steps - taken))

    def first_evaluation(self, skipped: int) -> int:
        """The evaluation that comes first when `skipped` steps are left out: diffusers' `get_timesteps`."""
        return skipped * self.evaluations_per_step


def _overrides(**values: object) -> Mapping[str, object]:
    return MappingProxyType(values)


def _dpm(*, karras: bool, **values: object) -> Mapping[str, object]:
    """What a DPM++ sampler's name says: it holds whatever the model's own configuration has."""
    return _overrides(use_karras_sigmas=karras, use_exponential_sigmas=False, use_beta_sigmas=False, **values)


def _dpm_2m(*, karras: bool, sde: bool = False) -> Mapping[str, object]:
    return _dpm(
        karras=karras,
        use_lu_lambdas=False,
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
    )


SAMPLERS: tuple[Sampler, ...] = (
    Sampler("Euler", "EulerDiscreteScheduler"),
    Sampler("Euler a", "EulerAncestralDiscreteScheduler", ("Euler ancestral",), takes_sample=False),
    Sampler("DPM++ 2M", "DPMSolverMultistepScheduler", overrides=_dpm_2m(karras=False)),
    Sampler("DPM++ 2M Karras", "DPMSolverMultistepScheduler", overrides=_dpm_2m(karras=True)),
    Sampler("DPM++ 2M SDE", "DPMSolverMultistepScheduler", overrides=_dpm_2m(karras=False, sde=True)),
    Sampler("DPM++ 2M SDE Karras", "DPMSolverMultistepScheduler", overrides=_dpm_2m(karras=True, sde=True)),
    Sampler(
        "DPM++ SDE",
        "DPMSolverSDEScheduler",
        overrides=_dpm(karras=False),
        evaluations_per_step=2,
        takes_sample=False,
        seeded_noise=True,
    ),
    Sampler(
        "DPM++ SDE Karras",
        "DPMSolverSDEScheduler",
        overrides=_dpm(karras=True),
        evaluations_per_step=2,
        takes_sample=False,
        seeded_noise=True,
    ),
    Sampler("DDIM", "DDIMScheduler"),
    Sampler("UniPC", "UniPCMultistepScheduler"),
    Sampler("Heun", "HeunDiscreteScheduler", evaluations_per_step=2),
    # LCM picks its timesteps from the 50 of its distillation, so it cannot make more steps than those.
    Sampler("LCM", "LCMScheduler", max_steps=50),
    # Without its Runge-Kutta start, as Stable Diffusion's own configurations have it.
    Sampler(
        "PNDM",
        "PNDMScheduler",
        ("PLMS",),
        overrides=_overrides(skip_prk_steps=True),
        extra_evaluations=1,
        takes_sample=False,
    ),
)


def _by_name() -> dict[str, Sampler]:
    table: dict[str, Sampler] = {}
    for sampler in SAMPLERS:
        for name in (sampler.name, sampler.diffusers_class, *sampler.aliases):
            # The first row of a diffusers class is its plain form, which the bare class name means.
            table.setdefault(name.casefold(), sampler)
    return table


_BY_NAME = _by_name()


def sampler_configured(config: Mapping[str, object]) -> Sampler:
    """The row that comes next to a model's own scheduler configuration.

    Where there is none of its class that draws from what the model predicts, Euler, which does from all.
    """
    is_sde = str(config.get("algorithm_type")).startswith("sde-")
    said = {
        "use_karras_sigmas": bool(config.get("use_karras_sigmas")),
        "algorithm_type": "sde-dpmsolver++" if is_sde else "dpmsolver++",
    }
    predicts_sample = config.get("prediction_type") == "sample"
    rows = (
        each
        for each in SAMPLERS
        if each.diffusers_class == config.get("_class_name") and (each.takes_sample or not predicts_sample)
    )
    fitting = (
        row for row in rows if all(row.overrides.get(key, value) == value for key, value in said.items())
    )
    return next(fitting, SAMPLERS[0])


def find_sampler(name: str) -> Sampler:
    """The table's row for `name`.

    Raises:
        InvalidRequest: on `scheduler`, listing every accepted name.
    """
    sampler = _BY_NAME.get(name.strip().casefold())
    if sampler is None:
        accepted = ", ".join(each.name for each in SAMPLERS)
        raise InvalidRequest(
            f"unknown scheduler {name!r}; accepted are {accepted}, or the diffusers class name",
            param="scheduler",
        )
    return sampler
