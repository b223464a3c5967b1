"""The table of samplers tells the truth about diffusers' schedulers."""

from __future__ import annotations

from typing import Any

import pytest

from mezzotint.errors import InvalidRequest
from mezzotint.samplers import SAMPLERS, Sampler, find_sampler, sampler_configured

CONFIG = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_a_sampler_makes_the_evaluations_that_the_table_says(sampler: Sampler) -> None:
    import diffusers

    scheduler = getattr(diffusers, sampler.diffusers_class).from_config(CONFIG, **sampler.overrides)
    most = min(sampler.max_steps, 150)
    for steps in {1, 2, 3, 4, 5, 13, 20, 30, 47, 50, 99, 150} - set(range(most + 1, 151)):
        scheduler.set_timesteps(steps)
        assert len(scheduler.timesteps) == sampler.evaluations(steps), steps


ODD = {
    "karras": {"use_karras_sigmas": True, "algorithm_type": "dpmsolver++"},
    "sde": {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": False},
    "deis": {"algorithm_type": "deis", "solver_type": "logrho"},
    "third order": {"solver_order": 3},
    "beta": {"use_beta_sigmas": True},
    "lu": {"use_lu_lambdas": True},
    "Heun's": {"solver_type": "heun"},
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("name", [each.name for each in SAMPLERS if each.name.startswith("DPM++")])
def test_a_name_means_the_same_whatever_the_model_is_configured_with(name: str, odd: dict[str, Any]) -> None:
    import torch

    from mezzotint.backends.sampling import SamplingFactory

    def draw(config: dict[str, Any]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        sampling = SamplingFactory(config, torch.device("cpu")).make(name, 12, 1, generator, skipped=0)
        latents = torch.randn(1, 4, 4, 4, generator=generator) * sampling.initial_sigma
        while not sampling.finished:
            latents = sampling.advance(sampling.scale(latents) * 0.8, latents)
        return latents

    assert torch.equal(draw({**CONFIG, **odd}), draw(CONFIG))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"_class_name": "EulerAncestralDiscreteScheduler", "use_karras_sigmas": True}, "Euler a"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "DPM++ 2M"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True}, "DPM++ 2M Karras"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"}, "DPM++ 2M SDE"),
        ({"_class_name": "DPMSolverSDEScheduler", "use_karras_sigmas": True}, "DPM++ SDE Karras"),
        ({"_class_name": "PNDMScheduler"}, "PNDM"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "sample"}, "Euler"),
        ({"_class_name": "DEISMultistepScheduler", "algorithm_type": "deis"}, "Euler"),
        ({}, "Euler"),
    ],
)
def test_a_models_own_sampler_is_the_row_that_draws_so(config: dict[str, Any], name: str) -> None:
    assert sampler_configured(config).name == name


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_a_sampler_draws_from_what_the_model_predicts_or_is_refused(
    sampler: Sampler, prediction: str
) -> None:
    import torch

    from mezzotint.backends.sampling import SamplingFactory

    factory = SamplingFactory({**CONFIG, "prediction_type": prediction}, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    if prediction == "sample" and not sampler.takes_sample:
        with pytest.raises(InvalidRequest, match=r"try Euler$") as refusal:
            factory.make(sampler.name, 3, 1, generator, skipped=0)
        assert refusal.value.param == "scheduler"
        return
    sampling = factory.make(sampler.name, 3, 1, generator, skipped=0)
    latents = torch.randn(1, 4, 4, 4, generator=generator) * sampling.initial_sigma
    while not sampling.finished:
        latents = sampling.advance(sampling.scale(latents) * 0.5, latents)
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda sampler: sampler.name)
def test_names_and_aliases_match_in_any_case(sampler: Sampler) -> None:
    for name in (sampler.name, *sampler.aliases):
        assert find_sampler(f" {name.upper()} ") is sampler


def test_a_class_name_means_the_plain_sampler_of_its_class() -> None:
    assert find_sampler("DPMSolverMultistepScheduler").name == "DPM++ 2M"


def test_names_are_unique() -> None:
    names = [name.casefold() for sampler in SAMPLERS for name in (sampler.name, *sampler.aliases)]
    assert len(names) == len(set(names))


def test_an_unknown_sampler_is_refused_with_the_accepted_ones() -> None:
    with pytest.raises(InvalidRequest, match=r"Euler, Euler a, DPM\+\+ 2M") as refusal:
        find_sampler("Foo")
    assert refusal.value.param == "scheduler"
