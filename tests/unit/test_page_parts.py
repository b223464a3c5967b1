"""The page's pure parts: a drawing's state, what a picture says of itself, masks, sentences, HTML."""

from __future__ import annotations

import io
import math
import os
import re
import struct
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from mezzotint import errors
from mezzotint.backends.fake import FAKE_LIMITS
from mezzotint.core import (
    UPSCALERS,
    Control,
    GenerationRequest,
    Hires,
    ImagePrompt,
    Lora,
    ServedControlNet,
    ServedIpAdapter,
    UsedControl,
    UsedImagePrompt,
)
from mezzotint.errors import InvalidRequest, MezzotintError, SettingInvalid
from mezzotint.imaging.metadata import control_settings, prompt_settings
from mezzotint.resolving import resolve
from mezzotint.serve.api.styles import PRESETS
from mezzotint.ui import cards, receipts
from mezzotint.ui.drawing import Drawing
from mezzotint.ui.editing import BEYOND, PAINTED, WHOLE, is_too_large, prepare_edit, read_canvas, upload_of
from mezzotint.ui.form import STYLES, JobRequest, filled, read_kept, read_seed, read_whole
from mezzotint.ui.guides import (
    FOLLOWED,
    READ,
    Guide,
    Look,
    guide_as_sent,
    guide_in_words,
    look_as_sent,
    nearest_shape,
    prepare_picture,
    reading_for,
    upright_size,
)
from mezzotint.ui.offer import Offer, OfferedLora, read_offer
from mezzotint.ui.receipts import Recipe, read_recipe, recipe_of_told
from mezzotint.ui.sentences import INTERNAL, SENTENCES, Notice, notice_of, sentence_of
from mezzotint.ui.service import Refused, Unreachable
from mezzotint.ui.settings import DEFAULT_API, UiSettings, service_address
from mezzotint.ui.stages import choice_of, read_choice
from tests.pictures import endless_png

JOB = {
    "id": "job_1",
    "state": "queued",
    "created_at": 1_700_000_000.0,
    "n": 2,
    "seeds": [7, 8],
    "size": "128x96",
    "images": [],
}
RECEIPT = {
    "prompt": "an owl", "negative_prompt": None, "seed": 7, "scheduler": "Euler", "steps": 20,
    "guidance_scale": 5.0, "width": 128, "height": 96, "model": "sdxl", "revision": "r", "backend": "b",
    "dtype": "float32",
}  # fmt: skip
LINES = np.zeros((8, 8, 3), np.uint8)
HOSTILE = '<img src=x onerror="alert(1)">'


def told(**changes: Any) -> dict[str, Any]:
    return {
        "models": [{"id": "sdxl"}],
        "sizes": {
            "default": "1024x1024", "min": 256, "max": 2048, "max_pixels": 1536 * 1536, "multiple_of": 8,
            "served": None,
        },
        "defaults": {"steps": 30, "guidance_scale": 5.0, "scheduler": "Euler"},
        "samplers": [{"name": "Euler"}, {"name": "Euler a"}],
        "limits": {"steps": 150, "guidance_scale": 50.0, "images": 10, "prompt_characters": 10_000},
        **changes,
    }  # fmt: skip


def with_hires(**changes: Any) -> Offer:
    limits = {**told()["limits"], "hires_scale": 4.0, "hires_upscalers": UPSCALERS}
    return read_offer(told(**{"limits": limits, "features": {"hires": True}, **changes}))


@pytest.fixture
def offer() -> Offer:
    return read_offer(told())


class TestDrawing:
    def test_as_many_pictures_as_no_request_has_are_not_all_shown_while_it_is_asked_for(self) -> None:
        shown = cards.drawings_list([Drawing.asked_for("owls", 10**12, "128x96")], searching=False, more=0)
        assert shown.count("mz-blank") == 10

    def test_it_follows_its_job_to_the_end(self) -> None:
        drawing = Drawing.of_job(JOB, "two owls")
        drawing.take("running", {}, "2")
        news = {"progress": 0.5, "steps": [10, 4], "total_steps": 20, "position": None, "eta_s": 3.2}
        drawing.take("progress", news, "3")
        assert (drawing.state, drawing.progress, drawing.steps, drawing.heard) == ("running", 0.5, 10, "3")
        drawing.take("preview", {"index": 1, "url": "http://elsewhere/v1/images/files/00-ab.png"}, "4")
        assert drawing.previews == {1: "00-ab.png"}
        drawing.take("image", {"index": 1, "seed": 8, "url": "http://elsewhere/x.png"}, "5")
        assert (drawing.finished, drawing.previews) == ({1}, {})
        images = [{"index": 0, "seed": 7}, {"index": 1, "seed": 8}]
        drawing.take("done", {**JOB, "state": "done", "images": images}, "6")
        assert (drawing.state, drawing.finished, drawing.seed) == ("done", {0, 1}, 7)

    def test_a_preview_whose_link_names_no_file_is_left_out(self) -> None:
        drawing = Drawing.of_job(JOB, "two owls")
        drawing.take("preview", {"index": 0, "url": "http://elsewhere/../../etc/passwd"})
        assert drawing.previews == {}

    def test_what_a_browser_keeps_of_it_comes_back(self) -> None:
        drawing = Drawing.of_job(
            {**JOB, "state": "failed", "error": {"code": "c", "message": "m"}}, "two owls"
        )
        drawing.seed = 2**63 - 1
        back = Drawing.of_kept(drawing.kept())
        assert back is not None
        assert back.kept() == drawing.kept()
        assert back.seed == 2**63 - 1

    @pytest.mark.parametrize(
        "kept",
        [
            None,
            "job_1",
            {},
            {**JOB, "prompt": "p", "at": 1.0, "id": "../../keys"},
            {**JOB, "prompt": 7, "at": 1.0},
            {**JOB, "prompt": "p", "at": 1.0, "n": 10**9},
            {**JOB, "prompt": "p", "at": "yesterday"},
            {**JOB, "prompt": "p", "at": float("nan")},
            {**JOB, "prompt": "p", "at": float("inf")},
            {**JOB, "prompt": "p", "at": 10**400},
        ],
    )
    def test_what_is_no_drawing_in_a_browsers_storage_is_left_out(self, kept: object) -> None:
        assert Drawing.of_kept(kept) is None

    @pytest.mark.parametrize(
        ("state", "finished", "expected"),
        [
            ([], [0], ("queued", set())),
            ({}, [0], ("queued", set())),
            ("done", [[0], {}, 1, 9, None], ("done", {1})),
            ("done", 7, ("done", set())),
        ],
    )
    def test_what_is_malformed_of_a_drawing_in_a_browsers_storage_is_left_out(
        self, state: object, finished: object, expected: tuple[str, set[int]]
    ) -> None:
        kept = {**JOB, "prompt": "p", "at": 1.0, "state": state, "finished": finished}
        drawing = Drawing.of_kept(kept)
        assert drawing is not None
        assert (drawing.state, drawing.finished) == expected


class TestReceipts:
    def test_a_picture_of_a1111_fills_the_form(self, offer: Offer) -> None:
        text = (
            "a castle, <lora:x:0.5>\nat night\nNegative prompt: fog\nSteps: 22, Sampler: DPM++ 2M, "
            'Schedule type: Karras, CFG scale: 6.5, Seed: 99, Size: 832x1216, Model: "a, b", Version: v1.10'
        )
        recipe = read_recipe(with_parameters(text))
        assert recipe is not None
        assert (recipe.prompt, recipe.loras) == ("a castle,\nat night", (Lora("x", 0.5),))
        assert (recipe.negative_prompt, recipe.steps, recipe.guidance) == ("fog", 22, 6.5)
        assert (recipe.scheduler, recipe.seed, recipe.size) == ("DPM++ 2M Karras", 99, "832x1216")

    def test_where_the_service_cannot_do_it_its_own_value_stands_and_that_is_said(self, offer: Offer) -> None:
        recipe = read_recipe(
            with_parameters("a castle\nSteps: 400, Sampler: Euler a, Seed: 1, Size: 100x100")
        )
        assert recipe is not None
        values, said = filled(recipe, offer)
        assert (values["steps"], values["size"], values["scheduler"]) == (30, "1024x1024", "Euler a")
        assert "steps 400" in said
        assert "size 100x100" in said

    def test_what_a_picture_does_not_tell_is_not_what_stood_in_the_form_before(self, offer: Offer) -> None:
        recipe = read_recipe(with_parameters("a castle\nSteps: 22, Sampler: Restart, Seed: -1"))
        assert recipe is not None
        values, said = filled(recipe, offer)
        assert (values["seed"], values["scheduler"], values["guidance"]) == ("", "Euler", 5.0)
        assert "scheduler Restart" in said

    def test_of_a_picture_made_from_another_it_is_said_that_its_settings_do_not_repeat_it(
        self, offer: Offer
    ) -> None:
        plain = Recipe("a castle", steps=20)
        assert "another picture" not in filled(plain, offer)[1]
        assert "It was drawn from another picture" in filled(replace(plain, strength=0.6), offer)[1]

    def test_a_line_of_settings_that_has_no_end_is_read_once(self) -> None:
        # Read again from each letter on, so many would take minutes.
        recipe = receipts._parse("a castle\nSteps: 22," + "a" * 400_000)
        assert recipe is not None
        assert (recipe.steps, recipe.scheduler) == (22, None)

    def test_a_file_that_says_nothing_has_no_recipe(self) -> None:
        assert read_recipe(png(Image.new("RGB", (8, 8)))) is None
        assert read_recipe(endless_png(with_parameters("a castle"))) is None
        assert read_recipe(b"no picture") is None


class TestEditing:
    picture = Image.new("RGB", (64, 32), "red")
    blank = Image.new("RGBA", (64, 32))

    def test_what_is_painted_over_is_transparent_in_the_mask(self) -> None:
        layer = Image.new("RGBA", (64, 32))
        layer.paste((225, 29, 72, 40), (0, 0, 16, 32))
        edit = prepare_edit({"background": self.picture, "layers": [layer]}, PAINTED, (0, 0, 0, 0))
        alpha = np.asarray(Image.open(io.BytesIO(edit.mask or b"")).getchannel("A"))
        assert (alpha[:, :16] == 0).all()
        assert (alpha[:, 16:] == 255).all()

    def test_beyond_its_edges_the_picture_grows_and_only_what_is_new_is_redrawn(self) -> None:
        edit = prepare_edit({"background": self.picture, "layers": []}, BEYOND, (0.5, 0, 0, 1))
        grown = Image.open(io.BytesIO(edit.image))
        assert grown.size == (96, 64)
        alpha = np.asarray(Image.open(io.BytesIO(edit.mask or b"")).getchannel("A"))
        assert alpha.shape == (64, 96)
        assert (alpha[:, :32] == 0).all()
        assert (alpha[32:] == 0).all()
        assert (alpha[:24, 40:] == 255).all()

    def test_all_of_it_has_no_mask(self) -> None:
        edit = prepare_edit({"background": self.picture, "layers": []}, WHOLE, (0, 0, 0, 0))
        assert edit.mask is None
        assert Image.open(io.BytesIO(edit.image)).size == (64, 32)

    @pytest.mark.parametrize("mode", [WHOLE, PAINTED])
    def test_a_sketch_on_the_empty_canvas_is_the_picture(self, mode: str) -> None:
        stroke = Image.new("RGBA", (64, 32))
        stroke.paste("red", (0, 0, 16, 32))
        edit = prepare_edit({"background": None, "layers": [stroke], "composite": stroke}, mode, (0, 0, 0, 0))
        pixels = np.asarray(Image.open(io.BytesIO(edit.image)))
        assert (pixels[:, :16] == (255, 0, 0)).all()
        assert (pixels[:, 16:] == 255).all()
        assert edit.mask is None

    @pytest.mark.parametrize(("width", "is_refused"), [(50_000, False), (50_001, True), (600_000, True)])
    def test_a_picture_of_too_many_pixels_is_known_by_its_header(
        self, width: int, is_refused: bool, tmp_path: Path
    ) -> None:
        file = bytearray(png(Image.new("1", (8, 8))))
        file[16:24] = struct.pack(">II", width, 1000)
        file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
        (tmp_path / "large.png").write_bytes(file)
        assert is_too_large(str(tmp_path / "large.png")) == is_refused

    @pytest.mark.parametrize(
        ("picture", "words"),
        [
            ({"path": "large.png"}, "more than 50,000,000 pixels"),
            ({"path": "notes.txt"}, "cannot be read"),
            ({"path": "endless.png"}, "cannot be read"),
            ({"path": "../own.png"}, "not kept any more"),
            ({"path": "gone.png"}, "not kept any more"),
        ],
    )
    @pytest.mark.parametrize("where", ["background", "composite", "layers"])
    def test_what_a_browser_says_is_in_the_editor_is_no_more_than_an_upload_that_can_be_read(
        self,
        where: str,
        picture: dict[str, str],
        words: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        uploads = tmp_path / "uploads"
        uploads.mkdir()
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
        monkeypatch.chdir(uploads)
        (tmp_path / "own.png").write_bytes(png(self.picture))
        large = bytearray(png(Image.new("1", (8, 8))))
        large[16:24] = struct.pack(">II", 50_001, 1000)
        large[29:33] = struct.pack(">I", zlib.crc32(large[12:29]))
        (uploads / "large.png").write_bytes(large)
        (uploads / "notes.txt").write_text("no picture")
        (uploads / "endless.png").write_bytes(endless_png(png(self.picture)))
        with pytest.raises(ValueError, match=words):
            read_canvas({where: [picture] if where == "layers" else picture})

    @pytest.mark.parametrize(
        ("value", "mode", "words"),
        [
            ({"background": None, "layers": [blank], "composite": blank}, WHOLE, "Choose a picture"),
            (None, WHOLE, "Choose a picture"),
            ({"background": None, "layers": []}, PAINTED, "Choose a picture"),
            ({"background": picture, "layers": []}, PAINTED, "Paint over"),
            ({"background": picture, "layers": []}, BEYOND, "which side"),
        ],
    )
    def test_what_is_still_missing_is_said(self, value: object, mode: str, words: str) -> None:
        assert words in prepare_edit(value, mode, (0, 0, 0, 0)).missing

    @pytest.mark.parametrize("margin", [-1, 1e9, math.nan, None])
    def test_no_picture_grows_by_more_than_itself(self, margin: Any) -> None:
        grown = prepare_edit({"background": self.picture, "layers": []}, BEYOND, (margin, 0, 0, 0))
        assert grown.missing == "Left, Top, Right and Bottom take 0 to 1."


class TestOffer:
    def test_the_shapes_are_those_the_model_was_made_for(self, offer: Offer) -> None:
        assert dict(offer.sizes) == {
            "Square 1024×1024": "1024x1024",
            "Landscape 1152×896": "1152x896",
            "Portrait 896×1152": "896x1152",
            "Landscape 1216×832": "1216x832",
            "Portrait 832×1216": "832x1216",
            "Wide 1344×768": "1344x768",
            "Tall 768×1344": "768x1344",
        }
        assert all(offer.accepts(size) for _, size in offer.sizes)

    def test_where_only_some_shapes_are_served_no_other_is_offered(self) -> None:
        sizes = {**told()["sizes"], "served": ["1024x1024", "1536x640"]}
        offer = read_offer(told(sizes=sizes))
        assert [size for _, size in offer.sizes] == ["1024x1024", "1536x640"]
        assert not offer.accepts("1216x832")

    def test_every_shape_of_the_small_models_is_drawn(self) -> None:
        limits = FAKE_LIMITS
        sizes = {"default": "128x128", "min": limits.min_size, "max": 256, "max_pixels": 256 * 256}
        offer = read_offer(told(sizes={**sizes, "multiple_of": 8, "served": None}))
        assert [size for _, size in offer.sizes] == ["128x128", "160x96", "96x160"]
        assert all(offer.accepts(size) for _, size in offer.sizes)

    def test_loras_are_offered_once_the_service_lists_any(self, offer: Offer) -> None:
        assert offer.loras == ()
        assert read_offer(told(loras=[{"name": "ink"}])).loras == (OfferedLora("ink", "ink"),)

    def test_a_lora_of_few_steps_brings_its_settings_along(self) -> None:
        own = {"steps": 4, "guidance_scale": 1.0, "scheduler": "LCM"}
        offer = read_offer(told(loras=[{"name": "few", "title": "Few", "defaults": own}, {"name": "ink"}]))
        assert offer.defaults_with({"few", "ink"}) == (4, 1.0, "LCM")
        assert offer.defaults_with({"ink"}) == (offer.steps, offer.guidance, offer.scheduler)

    def test_a_pictures_loras_fill_the_form_where_they_are_served(self) -> None:
        offer = read_offer(told(loras=[{"name": "ink"}]))
        recipe = read_recipe(with_parameters("a castle <lora:ink:0.5> <lora:oil:1>\nSteps: 4, Seed: 1"))
        assert recipe is not None
        values, said = filled(recipe, offer)
        assert (values["prompt"], values["loras"], values["lora_scale"]) == ("a castle", ["ink"], 0.5)
        assert "LoRA oil" in said

    @pytest.mark.parametrize(
        ("prompt", "settings", "expected"),
        [
            ("a (castle:1.2)", "", True),
            ("a (castle:1.2)", ", Emphasis: No norm", True),
            ("a (castle:1.2)", ", Emphasis: None", False),
            # Where there are none, the form stays as it is.
            ("a castle <lora:ink:0.5>", "", None),
        ],
    )
    def test_brackets_weigh_words_where_they_did_in_the_picture(
        self, offer: Offer, prompt: str, settings: str, expected: bool | None
    ) -> None:
        recipe = read_recipe(with_parameters(f"{prompt}\nSteps: 4, Seed: 1{settings}"))
        assert recipe is not None
        assert filled(recipe, offer)[0].get("emphasis") is expected


class TestSecondStage:
    A1111 = "a castle\nSteps: 22, Sampler: Euler, Size: 768x768, Denoising strength: 0.7, "

    def test_so_many_times_larger_is_offered_as_the_service_draws_any_of_its_shapes(self) -> None:
        # 2048x2048 has more pixels than it draws.
        assert with_hires().hires_scales == (1.25, 1.5)
        small = {"default": "512x512", "min": 256, "max": 1024, "max_pixels": 1024**2, "multiple_of": 8}
        assert with_hires(sizes=small).hires_scales == (1.25, 1.5, 2.0)
        assert with_hires(sizes=small, limits={**told()["limits"], "hires_scale": 1.5}).hires_scales == (
            1.25,
            1.5,
        )
        compiled = {**told()["sizes"], "served": ["1024x1024", "1536x1536"]}
        assert with_hires(sizes=compiled).hires_scales == (1.5,)
        assert with_hires(sizes={**compiled, "served": ["1024x1024"]}).hires_scales == ()

    def test_a_service_that_does_not_tell_of_it_is_asked_for_none(self, offer: Offer) -> None:
        for older in (offer, with_hires(features={}), with_hires(features={"hires": False})):
            assert older.hires_scales == ()
            assert not older.takes("hires", "1.5")
            assert older.usual["hires"] == ""

    @pytest.mark.parametrize(
        "hires",
        [
            Hires(1.5),
            Hires(2.0, 1 / 3),
            Hires(4.0, 0.7, 10),
            Hires(1.1 + 1e-15, None, 150),
            *(Hires(2.0, upscaler=each) for each in UPSCALERS),
        ],
    )
    def test_what_stands_in_the_form_is_all_of_it(self, hires: Hires) -> None:
        assert read_choice(choice_of(hires)) == hires

    @pytest.mark.parametrize("text", ["", None, 1.5, "two", "2/0.7/10/1", "2/-1", "2 0.7", "2///latent"])
    def test_what_is_no_choice_is_no_second_stage(self, text: object) -> None:
        assert read_choice(text) is None

    @pytest.mark.parametrize(
        ("settings", "choice"),
        [
            ("Hires upscale: 2, Hires steps: 10, Hires upscaler: Lanczos", "2/0.7/10"),
            ("Hires upscale: 1.5, Hires upscaler: None", "1.5/0.7"),
            ("Hires upscale: 2, Hires upscaler: Latent", "2/0.7//Latent"),
            # As many as the first's are the first's, whatever they are made in the form.
            ("Hires upscale: 1.3, Hires steps: 22", "1.3/0.7"),
        ],
    )
    def test_a_picture_of_a1111_of_two_stages_fills_the_form(self, settings: str, choice: str) -> None:
        recipe = read_recipe(with_parameters(self.A1111 + settings))
        assert recipe is not None
        values, said = filled(recipe, with_hires())
        assert (values["size"], values["steps"], values["hires"]) == ("768x768", 22, choice)
        # Its strength is the second stage's.
        assert said == "The settings of the picture are in the form."

    @pytest.mark.parametrize(
        ("settings", "choice", "left_out"),
        [
            ("Hires upscale: 2, Hires upscaler: 4x-UltraSharp", "2/0.7", "hires upscaler 4x-UltraSharp"),
            ("Hires resize: 1024x1536, Hires upscaler: Lanczos", "", "hires resize 1024x1536"),
            # 1920x1920 has more pixels than are drawn.
            ("Hires upscale: 2.5", "", "a second stage of 2.5×, strength 0.7"),
            ("Hires upscale: 1", "", "a second stage of 1×, strength 0.7"),
            ("Hires upscale: 2, Hires steps: 999", "", "a second stage of 2×, strength 0.7, 999 steps"),
        ],
    )
    def test_what_a1111_draws_in_a_second_stage_and_the_service_does_not_is_said(
        self, settings: str, choice: str, left_out: str
    ) -> None:
        recipe = read_recipe(with_parameters(self.A1111 + settings))
        assert recipe is not None
        values, said = filled(recipe, with_hires())
        assert values["hires"] == choice
        assert f"The service does not draw with {left_out}: it has its own values there." in said
        assert "another picture" not in said

    def test_a_picture_of_ours_brings_its_own_along_and_one_of_one_stage_turns_it_off(self) -> None:
        sizes = {**told()["sizes"], "default": "128x128", "min": 64}
        for hires, choice in (
            ({"scale": 1.5, "strength": 0.3, "steps": 20}, "1.5/0.3"),
            ({"scale": 2.0, "strength": 0.5, "steps": 10}, "2/0.5/10"),
            ({"scale": 2.0, "strength": 0.5, "steps": 10, "upscaler": "Latent"}, "2/0.5/10/Latent"),
            (None, ""),
        ):
            recipe = recipe_of_told({**RECEIPT, "hires": hires})
            assert recipe is not None
            values, said = filled(recipe, with_hires(sizes=sizes))
            assert (values["hires"], values["size"]) == (choice, "128x96")
            assert said == "The settings of the picture are in the form."

    def test_a_number_that_the_form_has_no_words_for_is_left_out(self) -> None:
        recipe = recipe_of_told({**RECEIPT, "hires": {"scale": 1.5, "strength": 1e-5, "steps": 20}})
        assert recipe is not None
        values, said = filled(recipe, with_hires(sizes={**told()["sizes"], "min": 64}))
        assert values["hires"] == ""
        assert "does not draw with a second stage of 1.5×, strength 1e-05:" in said

    def test_a_service_that_tells_of_no_upscalers_is_asked_for_none(self) -> None:
        older = with_hires(limits={**told()["limits"], "hires_scale": 4.0})
        assert (older.takes("hires", "1.5"), older.takes("hires", "1.5///Latent")) == (True, False)
        recipe = recipe_of_told({**RECEIPT, "hires": {"scale": 1.5, "steps": 20, "upscaler": "Latent"}})
        assert recipe is not None
        assert "a second stage of 1.5×, Latent:" in filled(recipe, older)[1]
        for hires, body in (
            (Hires(1.5), {"scale": 1.5}),
            (Hires(1.5, upscaler="Latent"), {"scale": 1.5, "upscaler": "Latent"}),
        ):
            assert JobRequest("an owl", size="96x64", hires=hires).body()["hires"] == body

    def test_of_a_service_without_it_a_pictures_second_stage_is_said_to_be_left_out(self) -> None:
        recipe = recipe_of_told({**RECEIPT, "hires": {"scale": 1.5, "strength": 0.3, "steps": 20}})
        assert recipe is not None
        values, said = filled(recipe, read_offer(told(sizes={**told()["sizes"], "min": 64})))
        assert values["hires"] == ""
        assert "does not draw with a second stage of 1.5×, strength 0.3:" in said

    def test_it_is_asked_for_where_the_picture_is_drawn_from_words(self) -> None:
        request = JobRequest("an owl", size="128x96", hires=Hires(1.5))
        assert request.body()["hires"] == {"scale": 1.5}
        assert request.drawn_size == "192x144"
        told_all = replace(request, hires=Hires(2.0, 0.5, 10)).body()["hires"]
        assert told_all == {"scale": 2.0, "strength": 0.5, "steps": 10}
        assert "hires" not in replace(request, image=b"picture").body()
        assert replace(request, hires=None).drawn_size == "128x96"
        assert replace(request, size="").drawn_size == ""

    def test_the_opened_picture_has_its_own_size_and_says_what_was_drawn(self) -> None:
        receipt = {**RECEIPT, "hires": {"scale": 1.5, "strength": 0.3, "steps": 20}}
        html = cards.opened_picture("job_1", 0, receipt)
        assert 'width="192" height="144"' in html
        assert "<dd>192×144</dd>" in html
        assert "<dt>Second stage</dt><dd>1.5×, strength 0.3, 20 steps, from 128×96</dd>" in html
        assert "Second stage" not in cards.opened_picture("job_1", 0, RECEIPT)

    @pytest.mark.parametrize(
        ("hires", "said"),
        [
            (Hires(4.0), "Second stage of 4 makes 512x512 2048x2048: width must be"),
            (Hires(9.0), "Second stage must be above 1 and at most 4, not 9"),
            (Hires(2.0, 2.0), "Second stage's strength must be above 0 and at most 1"),
            (Hires(2.0, None, 0), "Second stage's steps must be"),
        ],
    )
    def test_what_the_service_refuses_of_it_is_said_in_the_forms_words(self, hires: Hires, said: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            resolve(GenerationRequest("an owl", width=512, height=512, hires=hires), FAKE_LIMITS)
        sentence = sentence_of(refused.value.code, refused.value.message)
        assert sentence.startswith(said)
        assert "hires" not in sentence


CONTROL = {
    "name": "canny", "preprocessor": "canny", "scale": 0.8, "start": 0.1, "end": 0.9,
    "image_sha256": "i" * 64, "sha256": "c" * 64,
}  # fmt: skip
GUIDE = Guide("canny", "canny", 0.8, 0.1, 0.9)
NOT_GUIDED = {
    "guide": "", "guide_reads": "canny", "guide_scale": 1.0, "guide_start": 0.0, "guide_end": 1.0,
}  # fmt: skip


def with_controlnets(*names: str) -> Offer:
    nets = [{"name": name, "sha256": "c" * 64} for name in names]
    return read_offer(
        told(
            controlnets=nets, preprocessors=["none", "canny"], sizes={**told()["sizes"], "min": 64},
        )
    )  # fmt: skip


def as_sent(file: Path, shape: str = "") -> Image.Image:
    return Image.open(io.BytesIO(prepare_picture(str(file), FOLLOWED, shape)))


def guide_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name.startswith("guide_") or name == "guide"}


class TestEmbeddings:
    def test_the_page_names_those_that_there_are(self) -> None:
        words = [{"name": f"word{number}", "vectors": 1} for number in range(25)]
        said = read_offer(told(embeddings=words)).words
        assert said is not None
        assert said.endswith("word18, word19 and 5 more")
        assert read_offer(told()).words is None

    def test_the_opened_picture_says_which_were_read(self) -> None:
        read = {**RECEIPT, "embeddings": [{"name": "<b>ink", "sha256": "a" * 64}]}
        assert "<dt>Embeddings</dt><dd>&lt;b&gt;ink</dd>" in cards.opened_picture("job_1", 0, read)
        assert "Embeddings" not in cards.opened_picture("job_1", 0, RECEIPT)


class TestGuide:
    def test_it_is_offered_by_a_service_that_has_controlnets_and_by_no_other(self, offer: Offer) -> None:
        assert with_controlnets("canny", "depth").controlnets == ("canny", "depth")
        assert offer.controlnets == ()
        assert offer.usual["guide"] == ""
        assert not offer.follows(GUIDE)

    def test_it_is_asked_for_with_its_picture(self) -> None:
        request = JobRequest("an owl", guide=GUIDE, guiding=b"lines")
        asked = {"name": "canny", "preprocessor": "canny", "scale": 0.8, "start": 0.1, "end": 0.9}
        assert request.body()["controls"] == [{**asked, "image": "bGluZXM="}]
        changed = replace(request, image=b"picture", mask=b"mask", loras=[Lora("ink")]).body()
        assert {"controls", "image", "mask", "loras"} <= changed.keys()
        larger = replace(request, size="128x96", hires=Hires(1.5)).body()
        assert {"controls", "size", "hires"} <= larger.keys()
        assert "controls" not in replace(request, guide=None).body()
        # The service wants to hear that there are no words.
        assert replace(request, prompt="").body()["prompt"] == ""

    def test_a_picture_of_ours_brings_its_own_along_without_the_picture(self) -> None:
        recipe = recipe_of_told({**RECEIPT, "controls": [CONTROL]})
        assert recipe is not None
        assert recipe.guides == (GUIDE,)
        values, said = filled(recipe, with_controlnets("canny"))
        assert guide_of(values) == {
            "guide": "canny", "guide_reads": "canny", "guide_scale": 0.8,
            "guide_start": 0.1, "guide_end": 0.9,
        }  # fmt: skip
        assert "which is not part of its settings: give it again under Guiding picture." in said
        assert (
            "see that the one under Guiding picture is the same."
            in filled(recipe, with_controlnets("canny"), is_guided=True)[1]
        )

    def test_a_picture_that_followed_none_turns_it_off(self) -> None:
        recipe = recipe_of_told(RECEIPT)
        assert recipe is not None
        values, said = filled(recipe, with_controlnets("canny"), is_guided=True)
        assert guide_of(values) == NOT_GUIDED
        assert "uiding picture" not in said

    @pytest.mark.parametrize(
        "changes",
        [
            {"name": "pose"},
            {"name": ["canny"]},
            {"preprocessor": "depth"},
            {"scale": 2.5},
            {"scale": "1"},
            {"scale": float("nan")},
            {"start": 0.5, "end": 0.5},
            {"end": None},
        ],
    )
    def test_what_the_service_does_not_follow_is_said_and_left_out(self, changes: dict[str, Any]) -> None:
        recipe = recipe_of_told({**RECEIPT, "controls": [{**CONTROL, **changes}]})
        assert recipe is not None
        for offer in (with_controlnets("canny"), None):
            values, said = filled(recipe, offer)
            assert guide_of(values) == NOT_GUIDED
            assert "does not draw with ControlNet " in said
            assert "give it again" not in said

    def test_of_several_the_form_takes_the_first_and_says_so(self) -> None:
        recipe = recipe_of_told({**RECEIPT, "controls": [CONTROL, {**CONTROL, "name": "depth"}]})
        assert recipe is not None
        values, said = filled(recipe, with_controlnets("canny", "depth"))
        assert values["guide"] == "canny"
        assert "The form has one ControlNet at a time: it is without depth." in said

    def test_what_our_pictures_say_to_a1111_is_read_again(self) -> None:
        text = control_settings(UsedControl(**{**CONTROL, "sha256": "0123abcd" * 8}))  # type: ignore[arg-type]
        recipe = read_recipe(with_parameters(f'\nSteps: 22, Seed: 1, ControlNet 0: "{text}", Version: v1.10'))
        assert recipe is not None
        assert (recipe.prompt, recipe.steps, recipe.seed) == ("", 22, 1)
        assert recipe.guides == (GUIDE,)

    def test_a_picture_of_a1111_brings_what_is_served_along(self) -> None:
        foreign = "Module: depth_midas, Model: control_v11f1p_sd15_depth [cfd03158], Weight: 0.5"
        recipe = read_recipe(
            with_parameters(
                f'a castle\nSteps: 22, ControlNet 0: "{foreign}", '
                'ControlNet 1: "Module: none, Model: canny [0123abcd], Weight: 0.5", Seed: 1'
            )
        )
        assert recipe is not None
        assert recipe.guides[1] == Guide("canny", "none", 0.5)
        values, said = filled(recipe, with_controlnets("canny"))
        assert (values["guide"], values["guide_reads"], values["guide_scale"]) == ("canny", "none", 0.5)
        assert "does not draw with ControlNet control_v11f1p_sd15_depth:" in said

    def test_of_a_strangers_file_no_more_are_read_than_a_request_has(self) -> None:
        many = [{**CONTROL, "scale": number / 10_000} for number in range(10_000)]
        recipe = recipe_of_told({**RECEIPT, "controls": many})
        assert recipe is not None
        assert len(recipe.guides) == 4

    @pytest.mark.parametrize("number", [math.nan, math.inf, "1", None, [1]])
    def test_what_a_browser_sends_for_a_number_is_one(self, number: object) -> None:
        with pytest.raises(ValueError, match="must be numbers"):
            guide_as_sent("canny", "canny", number, 0, 1)
        assert guide_as_sent("canny", "canny", 1, 0, 1) == Guide("canny", "canny", 1.0, 0.0, 1.0)

    def test_a_picture_that_is_no_upload_is_refused_whatever_a_browser_says(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        uploads, secret = tmp_path / "uploads", tmp_path / "secret.png"
        uploads.mkdir()
        for path in (secret, uploads / "own.png"):
            Image.new("RGB", (64, 64)).save(path)
        (uploads / "link.png").symlink_to(secret)
        os.mkfifo(uploads / "fifo")
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
        assert upload_of({"path": str(uploads / "own.png")}) == str(uploads / "own.png")
        assert upload_of(None) is None
        for forged in (
            secret,
            uploads / "../secret.png",
            uploads / "link.png",
            uploads / "fifo",
            5,
            "\0",
            [1],
        ):
            place = str(forged) if isinstance(forged, Path) else forged
            for picture in (place, {"path": place}):
                with pytest.raises(ValueError, match="not kept any more"):
                    upload_of(picture)

    def test_greys_of_sixteen_bits_are_greys(self, tmp_path: Path) -> None:
        """As depths are mostly kept."""
        Image.fromarray(np.full((64, 64), 30_000, np.uint16)).save(tmp_path / "depth.png")
        made = as_sent(tmp_path / "depth.png", "64x64")
        assert made.convert("RGB").getpixel((5, 5)) == (116, 116, 116)

    def test_the_opened_picture_says_what_it_followed(self) -> None:
        whole = {**CONTROL, "name": "depth", "preprocessor": "none", "scale": 1.0, "start": 0.0, "end": 1.0}
        assert guide_in_words(whole) == "the picture as it is, strength 1"
        html = cards.opened_picture("job_1", 0, {**RECEIPT, "prompt": "", "controls": [CONTROL, whole]})
        row = "<dt>ControlNet canny</dt><dd>its edges, strength 0.8, from 0.1 until 0.9</dd>"
        assert row in html
        assert 'alt="From a picture alone"' in html

    @pytest.mark.parametrize(
        ("control", "said"),
        [
            (Control("pose", LINES), "ControlNet: there is no ControlNet 'pose'; served are canny."),
            (Control("canny", LINES, scale=3), "Guide strength must be 0…2 for canny, not 3."),
            (
                Control("canny", LINES, start=0.5, end=0.5),
                "Guide from must be below the end of canny, 0.5, not 0.5.",
            ),
        ],
    )
    def test_what_the_service_refuses_of_it_is_said_in_the_forms_words(
        self, control: Control, said: str
    ) -> None:
        limits = replace(FAKE_LIMITS, controlnets=(ServedControlNet("canny", ""),))
        with pytest.raises(InvalidRequest) as refused:
            resolve(GenerationRequest("an owl", controls=(control,)), limits)
        assert sentence_of(refused.value.code, refused.value.message) == f"{said} Change it and draw again."
        assert sentence_of("invalid_value", "controls[0].image is required").startswith(
            "Picture to follow is"
        )

    def test_its_picture_is_cropped_to_the_shape_and_not_stretched(self, tmp_path: Path) -> None:
        picture = Image.new("RGB", (64, 32), "red")
        picture.paste("blue", (16, 0, 48, 32))
        picture.save(tmp_path / "wide.png")
        for shape, size, corner in (("96x96", (32, 32), (0, 0, 255)), ("", (64, 32), (255, 0, 0))):
            prepared = as_sent(tmp_path / "wide.png", shape)
            assert (prepared.size, prepared.getpixel((0, 0))) == (size, corner)
        assert as_sent(tmp_path / "wide.png", "1x9999").size == (1, 32)

    def test_a_photograph_that_lies_on_its_side_is_followed_upright(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (64, 32)).save(tmp_path / "lying.jpeg", exif=exif)
        assert upright_size(str(tmp_path / "lying.jpeg"), FOLLOWED) == "32x64"
        assert as_sent(tmp_path / "lying.jpeg").size == (32, 64)

    def test_what_is_transparent_of_it_is_white_and_what_is_large_is_made_smaller(
        self, tmp_path: Path
    ) -> None:
        Image.new("RGBA", (4096, 64)).save(tmp_path / "clear.png")
        prepared = as_sent(tmp_path / "clear.png")
        assert (prepared.size, prepared.getpixel((0, 0))) == ((2048, 32), (255, 255, 255))

    @pytest.mark.parametrize("cut", [0, 60, 200])
    def test_a_file_that_cannot_be_read_gets_a_sentence(self, tmp_path: Path, cut: int) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        file = tmp_path / "broken.png"
        file.write_bytes(png(Image.fromarray(noise))[:cut])
        with pytest.raises(ValueError, match="That file cannot be read as a picture"):
            prepare_picture(str(file), FOLLOWED, "64x64")

    @pytest.mark.parametrize("format", ["GIF", "BMP"])
    def test_a_file_of_another_kind_gets_the_same_sentence(self, tmp_path: Path, format: str) -> None:
        Image.new("RGB", (8, 8)).save(tmp_path / "picture.png", format)
        for read in (upright_size, prepare_picture):
            with pytest.raises(ValueError, match="That file cannot be read as a picture"):
                read(str(tmp_path / "picture.png"), FOLLOWED)

    def test_what_is_not_there_or_too_large_is_said(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for place, wanted, kept in (
            (
                FOLLOWED,
                "Choose the picture to follow under Guiding picture",
                "The guiding picture is not kept",
            ),
            (READ, "Choose the picture to read under Image prompt", "picture to read is not kept"),
        ):
            with pytest.raises(ValueError, match=wanted):
                prepare_picture(None, place)
            with pytest.raises(ValueError, match=kept):
                prepare_picture(str(tmp_path / "gone.png"), place)
        monkeypatch.setattr("mezzotint.ui.editing.MAX_PIXELS", 10)
        Image.new("RGB", (8, 8)).save(tmp_path / "large.png")
        for read in (upright_size, prepare_picture):
            with pytest.raises(ValueError, match="more than 10 pixels"):
                read(str(tmp_path / "large.png"), FOLLOWED)

    def test_the_shape_is_the_one_that_crops_least(self, offer: Offer) -> None:
        shapes = [size for _, size in offer.sizes]
        assert nearest_shape("3000x2000", shapes) == "1216x832"
        assert nearest_shape("500x500", shapes) == "1024x1024"
        assert nearest_shape("400x3000", shapes) == "768x1344"
        # What is chosen comes first.
        assert nearest_shape("500x500", ["768x768", *shapes]) == "768x768"

    def test_edges_are_for_what_was_made_for_edges(self) -> None:
        assert reading_for("xinsir-Canny", "canny") == "canny"
        assert reading_for("canny", "none") == "none"
        assert reading_for("depth", "canny") == "none"
        assert reading_for("", "canny") == "canny"


PROMPT = {"name": "plus", "scale": 0.6, "image_sha256": "i" * 64, "sha256": "0123abcd" * 8}
LOOK = Look("plus", 0.6)
READS_NONE = {"adapter": "", "adapter_scale": 1.0}


def with_adapters(*names: str) -> Offer:
    adapters = [{"name": name, "sha256": "a" * 64} for name in names]
    return read_offer(told(ip_adapters=adapters, sizes={**told()["sizes"], "min": 64}))


def look_of(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name.startswith("adapter")}


class TestLook:
    def test_it_is_offered_by_a_service_that_has_ip_adapters_and_by_no_other(self, offer: Offer) -> None:
        assert with_adapters("plus", "plain").adapters == ("plus", "plain")
        assert offer.adapters == ()
        assert offer.usual["adapter"] == ""
        assert not offer.reads(LOOK)

    def test_it_is_asked_for_with_its_picture_and_without_a_word(self) -> None:
        request = JobRequest("", look=LOOK, seen=b"photo")
        assert not request.is_wordless
        assert request.body()["image_prompts"] == [{"name": "plus", "scale": 0.6, "image": "cGhvdG8="}]
        none = replace(request, look=None)
        assert none.is_wordless
        assert "image_prompts" not in none.body()

    def test_a_picture_of_ours_brings_its_own_along_without_the_picture(self) -> None:
        recipe = recipe_of_told({**RECEIPT, "image_prompts": [PROMPT]})
        assert recipe is not None
        values, said = filled(recipe, with_adapters("plus"))
        assert look_of(values) == {"adapter": "plus", "adapter_scale": 0.6}
        assert "which is not part of its settings: give it again under Image prompt." in said
        assert "see that the one under Image prompt is the same." in filled(
            recipe, with_adapters("plus"), has_seen=True
        )[1]  # fmt: skip
        assert "mage prompt" not in filled(replace(recipe, looks=()), with_adapters("plus"), has_seen=True)[1]

    @pytest.mark.parametrize(
        "changes",
        [{"name": "face"}, {"name": ["plus"]}, {"scale": 2.5}, {"scale": "1"}, {"scale": math.nan}],
    )
    def test_what_the_service_does_not_read_is_said_and_left_out(self, changes: dict[str, Any]) -> None:
        recipe = recipe_of_told({**RECEIPT, "image_prompts": [{**PROMPT, **changes}]})
        assert recipe is not None
        for offer in (with_adapters("plus"), None):
            values, said = filled(recipe, offer)
            assert look_of(values) == READS_NONE
            assert "does not draw with IP-Adapter " in said
            assert "give it again" not in said

    def test_of_several_the_form_takes_the_first_of_as_many_as_a_request_has(self) -> None:
        many = [PROMPT, {**PROMPT, "name": "plain"}, *[PROMPT] * 1000]
        recipe = recipe_of_told({**RECEIPT, "image_prompts": many})
        assert recipe is not None
        assert len(recipe.looks) == 4
        values, said = filled(recipe, with_adapters("plain", "plus"))
        assert values["adapter"] == "plus"
        assert "The form has one IP-Adapter at a time: it is without plain and plus and plus." in said

    def test_what_our_pictures_say_to_a1111_is_read_again(self) -> None:
        units = [control_settings(UsedControl(**CONTROL)), prompt_settings(UsedImagePrompt(**PROMPT))]  # type: ignore[arg-type]
        told = ", ".join(f'ControlNet {number}: "{unit}"' for number, unit in enumerate(units))
        recipe = read_recipe(with_parameters(f"an owl\nSteps: 22, {told}, Seed: 1"))
        assert recipe is not None
        assert (recipe.guides, recipe.looks) == ((GUIDE,), (LOOK,))

    @pytest.mark.parametrize("number", [math.nan, "1", None])
    def test_what_a_browser_sends_for_a_number_is_one(self, number: object) -> None:
        with pytest.raises(ValueError, match="Image prompt strength must be a number"):
            look_as_sent("plus", number)
        assert look_as_sent("plus", 1) == Look("plus", 1.0)

    @pytest.mark.parametrize(
        ("prompt", "said"),
        [
            (ImagePrompt("face", LINES), "IP-Adapter: there is no IP-Adapter 'face'; served are plus."),
            (ImagePrompt("plus", LINES, scale=3), "Image prompt strength must be 0…2 for plus, not 3."),
        ],
    )
    def test_what_the_service_refuses_of_it_is_said_in_the_forms_words(
        self, prompt: ImagePrompt, said: str
    ) -> None:
        limits = replace(FAKE_LIMITS, ip_adapters=(ServedIpAdapter("plus", "", 224),))
        with pytest.raises(InvalidRequest) as refused:
            resolve(GenerationRequest("an owl", image_prompts=(prompt,)), limits)
        assert sentence_of(refused.value.code, refused.value.message) == f"{said} Change it and draw again."
        said = sentence_of("invalid_value", "image_prompts[0].image is required")
        assert said.startswith("Picture to read is")

    def test_the_opened_picture_says_what_read_it(self) -> None:
        html = cards.opened_picture("job_1", 0, {**RECEIPT, "image_prompts": [PROMPT]})
        assert "<dt>IP-Adapter plus</dt><dd>0.6</dd>" in html


class TestKept:
    def test_what_a_browser_kept_of_the_form_comes_back(self) -> None:
        kept = {"prompt": "an owl", "n": 3, "seed": "7", "loras": ["ink"], "style": "anime", "emphasis": True}
        kept |= {"hires": "1.5/0.3", "guide": "canny", "guide_reads": "none", "guide_scale": 0.5}
        kept |= {"adapter": "plus", "adapter_scale": 0.5}
        assert read_kept(kept) == kept

    @pytest.mark.parametrize(
        "kept",
        [
            None,
            "form",
            {"prompt": 7, "n": "3", "loras": "ink", "emphasis": "on", "hires": 1.5},
            {"loras": [7], "tab": "edit"},
        ],
    )
    def test_what_is_no_value_of_the_form_is_left_out(self, kept: object) -> None:
        assert read_kept(kept) == {}

    @pytest.mark.parametrize(
        ("field", "good", "bad"),
        [
            ("size", "64x64", "9x9"),
            ("n", 10, 11),
            ("steps", 150, 151),
            ("guidance", 0, -1),
            ("scheduler", "Euler", "Restart"),
            ("hires", "", "9"),
            ("hires", "1.7/0.5/10", "1.7/0/10"),
            ("hires", "2", "twice"),
            ("model", "sdxl", "other"),
            ("loras", ["ink"], ["oil"]),
            ("guide", "canny", "pose"),
            ("guide", "", "depth"),
            ("adapter", "plus", "face"),
            ("adapter", "", ["plus"]),
        ],
    )
    def test_what_the_service_would_not_draw_with_is_told_apart(
        self, field: str, good: object, bad: object
    ) -> None:
        nets = [{"name": "canny"}]
        sizes = {**told()["sizes"], "min": 64}
        adapters = [{"name": "plus"}]
        offer = with_hires(loras=[{"name": "ink"}], controlnets=nets, ip_adapters=adapters, sizes=sizes)
        assert offer.takes(field, good)
        assert not offer.takes(field, bad)


class TestWish:
    def test_what_was_left_open_is_not_sent(self) -> None:
        body = JobRequest("an owl").body()
        assert body == {"prompt": "an owl", "n": 1, "partial_images": 3, "output_format": "png"}

    def test_the_styles_are_those_the_service_knows(self) -> None:
        assert set(STYLES) == set(PRESETS)

    def test_a_seed_is_a_whole_number_or_nothing(self) -> None:
        assert read_seed("  ") is None
        assert read_seed(" 42 ") == 42
        for text in ("-1", "1.5", "owl", str(2**63)):
            with pytest.raises(ValueError, match="Seed takes a whole number"):
                read_seed(text)

    def test_what_is_counted_is_whole(self) -> None:
        assert read_whole("Steps", None) is None
        assert repr(read_whole("Steps", 2.0)) == "2"
        for value in (2.5, 0.1):
            with pytest.raises(ValueError, match="Steps takes a whole number"):
                read_whole("Steps", value)


class TestSentences:
    # Of this process's own start, or of a caller that has gone: no answer of the service.
    NEVER_ANSWERED = frozenset(
        {"cancelled", "deploy_failed", "model_invalid", "setting_invalid", "output_unwritable"}
    )
    # What only a program that calls the service can do wrong.
    NOT_OF_A_PAGE = frozenset({"body_too_slow", "headers_too_large", "idempotency_conflict"})

    def test_every_error_of_the_service_has_a_sentence_and_nothing_else_has(self) -> None:
        named = [getattr(errors, name) for name in errors.__all__]
        kinds = {each.code for each in named if isinstance(each, type) and each is not MezzotintError}
        assert kinds == set(SENTENCES) | self.NEVER_ANSWERED | self.NOT_OF_A_PAGE

    @pytest.mark.parametrize("code", [*SENTENCES, "internal_error", "something_new"])
    def test_a_sentence_begins_and_ends_as_one_and_names_no_code(self, code: str) -> None:
        sentence = sentence_of(code, "steps must be at most 150")
        assert re.fullmatch(r"[A-Z].*[.]", sentence)
        assert "_" not in sentence

    @pytest.mark.parametrize(
        ("field", "label"),
        [
            ("num_inference_steps", "Steps"),
            ("strength", "How far from it"),
            ("hires.strength", "Second stage's strength"),
            ("n", "Pictures"),
        ],
    )
    def test_what_the_service_says_of_a_field_is_said_in_the_forms_words(
        self, field: str, label: str
    ) -> None:
        said = sentence_of("invalid_value", f"{field} must be in it, not n5")
        assert said == f"{label} must be in it, not n5. Change it and draw again."

    def test_of_a_service_that_starts_or_stops_is_said_what_goes_on_and_what_to_ask_again(self) -> None:
        said = sentence_of("model_loading", "every replica is being replaced")
        assert "starting or stopping" in said
        assert "goes on by itself" in said
        assert "again in a moment" in said

    def test_the_wait_comes_along(self) -> None:
        notice = notice_of(Refused(429, "rate_limit_exceeded", "slow", 12.4))
        assert notice.wait_s == 12.4
        assert "Try again in 12 s." in cards.notice_box(notice)

    def test_silence_is_told_calmly(self) -> None:
        assert "goes on by itself" in notice_of(Unreachable("refused")).text
        assert sentence_of("internal_error", "") == INTERNAL


class TestHtml:
    def test_whatever_comes_from_outside_is_escaped(self) -> None:
        drawing = Drawing.of_job({**JOB, "state": "failed"}, HOSTILE)
        drawing.code, drawing.said = "invalid_value", HOSTILE
        running = Drawing.of_job({**JOB, "id": "job_2", "state": "running"}, HOSTILE)
        running.previews = {0: HOSTILE}
        receipt = {"prompt": HOSTILE, "width": 8, "height": 8, "seed": HOSTILE, "model": HOSTILE}
        pages = (
            cards.drawings_list([drawing, running], searching=False, more=0),
            cards.notice_box(Notice(HOSTILE)),
            cards.banner(Notice(HOSTILE)),
            cards.opened_picture("job_1", 0, receipt),
            cards.said_aloud([drawing]),
            cards.word(HOSTILE, "#prompt"),
        )
        for page in pages:
            assert "<img src=x" not in page
            assert 'onerror="' not in page

    def test_what_the_receipt_warns_of_is_on_the_card_and_in_the_opened_picture(self) -> None:
        receipt = {"prompt": "an owl", "width": 8, "height": 8, "warnings": ["negative_prompt: 9 tokens cut"]}
        images = [{"index": index, "seed": 7, "receipt": receipt} for index in range(2)]
        drawing = Drawing.of_job({**JOB, "state": "done", "images": images}, "an owl")
        kept = Drawing.of_kept(drawing.kept())
        assert kept is not None
        for html in (
            cards.drawings_list([kept], searching=False, more=0),
            cards.opened_picture("job_1", 0, receipt),
        ):
            assert html.count("Leave out: 9 tokens cut.") == 1

    def test_a_days_end_is_the_readers(self) -> None:
        # What was an hour ago was before midnight where it is half past twelve at night now.
        now = datetime.now(UTC)
        since_midnight = timedelta(hours=now.hour, minutes=now.minute, seconds=now.second)
        zone = timezone(timedelta(minutes=30) - since_midnight)
        drawing = Drawing("job_1", "an owl", 1, (8, 8), time.time() - 3600, state="done")
        assert "Yesterday" in cards.drawings_list([drawing], searching=False, more=0, zone=zone)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"state": "queued", "position": 3, "eta_s": 12.2}, "Waiting: 3 ahead, about 12 s"),
            ({"state": "queued", "position": 0, "eta_s": None}, "Waiting: next"),
            (
                {"state": "running", "steps": 4, "total_steps": 20, "eta_s": 240.0},
                "Step 4 of 20, about 4 min",
            ),
            ({"state": "running", "cancelling": True}, "Stopping …"),
            ({"state": "lost"}, "The service does not keep this drawing any more."),
        ],
    )
    def test_how_far_a_drawing_is_is_said_in_words(self, changes: dict[str, Any], words: str) -> None:
        drawing = Drawing("job_1", "an owl", 1, (8, 8), time.time(), **changes)
        assert cards.progress_text(drawing) == words


@pytest.mark.parametrize(
    ("given", "environment", "address"),
    [
        (None, {}, DEFAULT_API),
        ("https://pictures.example/", {"MEZZOTINT_API": "http://other"}, "https://pictures.example"),
        (None, {"MEZZOTINT_API": "http://other:1/base/"}, "http://other:1/base"),
        (None, {"SERVICE_NAME": "sdxl.default.svc:8000"}, "http://sdxl.default.svc:8000"),
        (None, {"SERVICE_NAME": "http://sdxl:8000", "MODEL_ENDPOINT": "/imagine"}, "http://sdxl:8000"),
        (None, {"MODEL_ENDPOINT": "http://sdxl:8000/imagine"}, "http://sdxl:8000"),
        (None, {"MODEL_ENDPOINT": "sdxl:8000"}, "http://sdxl:8000"),
        (None, {"SERVICE_NAME": "ui", "MODEL_ENDPOINT": "https://sdxl.example"}, "https://sdxl.example"),
    ],
)
def test_the_service_is_found_by_flag_variable_and_the_old_variables(
    given: str | None, environment: dict[str, str], address: str
) -> None:
    assert service_address(given, environment) == address


@pytest.mark.parametrize(
    "url", ["ftp://x", "no url", "http://", "http://a:b@c", "http://x/?q=1", "http://x:99999"]
)
def test_an_address_that_is_none_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(SettingInvalid, match="--api takes the service's"):
        service_address(url, {})


@pytest.mark.parametrize("key", ["mk-…", "mk-1\nmk-2"])
def test_a_key_that_cannot_be_sent_is_refused_at_the_start(key: str) -> None:
    with pytest.raises(SettingInvalid, match="the page's key takes letters"):
        UiSettings(key=key)


def with_parameters(text: str) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", text)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
