"""The claims of tests/parity on a CUDA device: the same tests, given the studios of this folder."""

from __future__ import annotations

from tests.gpu.needs import GPU
from tests.parity.test_batching import (
    test_all_samplers_in_one_batch_draw_what_diffusers_draws_alone,
    test_each_way_to_leave_the_negative_prompt_out_is_its_own_picture,
    test_sizes_that_are_not_square_or_round_draw_what_diffusers_draws,
    test_the_demo_model_draws_what_diffusers_draws_with_every_sampler,
    test_the_fewest_steps_draw_what_diffusers_draws,
    test_the_same_request_alone_is_the_same_to_the_byte,
)
from tests.parity.test_bf16 import test_all_samplers_in_one_batch_draw_nearly_what_diffusers_draws
from tests.parity.test_controls import (
    test_company_that_comes_and_goes_changes_nothing,
    test_it_draws_what_diffusers_does,
    test_those_with_and_without_share_passes_and_change_nothing_in_each_other,
)
from tests.parity.test_image_inputs import (
    test_every_sampler_with_and_without_image_and_mask_shares_passes,
)
from tests.parity.test_image_prompts import (
    test_each_case_draws_what_diffusers_does,
    test_rows_of_all_adapters_and_of_none_share_passes_and_draw_what_diffusers_draws_alone,
    test_rows_without_are_the_same_to_the_byte_beside_one_that_has,
)
from tests.parity.test_inpainting_models import test_samplers_share_passes_whatever_there_is_of_image_and_mask
from tests.parity.test_latent_stages import (
    test_from_enlarged_latents_beside_others_it_is_what_diffusers_draws,
)
from tests.parity.test_unions import (
    test_each_kind_draws_its_own,
    test_rows_of_all_kinds_and_of_none_share_passes_and_draw_what_diffusers_draws_alone,
)
from tests.parity.test_windows import test_texts_of_all_lengths_share_passes_and_draw_what_each_draws_alone

__all__ = [
    "test_all_samplers_in_one_batch_draw_nearly_what_diffusers_draws",
    "test_all_samplers_in_one_batch_draw_what_diffusers_draws_alone",
    "test_company_that_comes_and_goes_changes_nothing",
    "test_each_case_draws_what_diffusers_does",
    "test_each_kind_draws_its_own",
    "test_each_way_to_leave_the_negative_prompt_out_is_its_own_picture",
    "test_every_sampler_with_and_without_image_and_mask_shares_passes",
    "test_from_enlarged_latents_beside_others_it_is_what_diffusers_draws",
    "test_it_draws_what_diffusers_does",
    "test_rows_of_all_adapters_and_of_none_share_passes_and_draw_what_diffusers_draws_alone",
    "test_rows_of_all_kinds_and_of_none_share_passes_and_draw_what_diffusers_draws_alone",
    "test_rows_without_are_the_same_to_the_byte_beside_one_that_has",
    "test_samplers_share_passes_whatever_there_is_of_image_and_mask",
    "test_sizes_that_are_not_square_or_round_draw_what_diffusers_draws",
    "test_texts_of_all_lengths_share_passes_and_draw_what_each_draws_alone",
    "test_the_demo_model_draws_what_diffusers_draws_with_every_sampler",
    "test_the_fewest_steps_draw_what_diffusers_draws",
    "test_the_same_request_alone_is_the_same_to_the_byte",
    "test_those_with_and_without_share_passes_and_change_nothing_in_each_other",
]
pytestmark = GPU
