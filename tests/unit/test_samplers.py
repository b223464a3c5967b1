"""The table of samplers tells the truth about diffusers' schedulers."""

from __future__ import annotations

import pytest

from mezzotint.errors import InvalidRequest
from mezzotint.samplers import SAMPLERS, Sampler, find_sampler

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
