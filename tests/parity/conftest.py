"""A backend on the tiny SDXL, diffusers' own pipeline on the same modules, and the ways to draw with each.

What is shown of one kind of backend is shown of both: of diffusers' modules, and of compiled graphs on the
strict stand-in for Neuron.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from PIL import Image as PilImage
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mezzotint.backends.base import Backend
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.core import GenerationRequest, Pixels, ResolvedRequest
from mezzotint.imaging.edges import canny
from mezzotint.models.compiling import Order, compile_model
from mezzotint.models.loading import DTYPES, load_backend
from mezzotint.resolving import resolve
from mezzotint.samplers import find_sampler
from tests.conftest import GRAPH_BATCH, GRAPH_SIZES
from tests.controlnets import write_controlnet, write_union
from tests.ip_adapters import SIDE, write_image_encoder, write_ip_adapter


@dataclass
class Studio:
    """One model, loaded twice: as our backend and as diffusers' pipeline.

    references: what the pipeline has drawn, for whoever asks again.
    """

    backend: DiffusersBackend
    pipeline: Any
    scheduler_config: dict[str, Any]
    references: dict[Any, Pixels] = field(default_factory=dict)
    controlnets: Sequence[str] = ()
    ip_adapters: Sequence[str] = ()
    image_encoder: str = ""

    def request(self, **fields: Any) -> ResolvedRequest:
        return resolve(
            GenerationRequest(**{"prompt": "a fox", "seed": 7, **fields}), self.backend.info.limits
        )

    def draw(self, *arrivals: tuple[int, ResolvedRequest]) -> list[Pixels]:
        """Draw requests together, each joining the pass of its number; each size has its passes."""
        waiting = {f"r{index}": arrival for index, arrival in enumerate(arrivals)}
        left: dict[str, int] = {}
        pixels: dict[str, Pixels] = {}
        turn = 0
        while waiting or left:
            for request_id in [key for key, (joins, _) in waiting.items() if joins <= turn]:
                request = waiting.pop(request_id)[1]
                self.backend.start(request_id, request)
                left[request_id] = request.evaluations
            for group in self._groups(left, arrivals):
                assert self.backend.step(group) == {}
                for request_id in group:
                    left[request_id] -= 1
                    if left[request_id] == 0:
                        del left[request_id]
                        pixels[request_id] = self.backend.decode(request_id)
                        self.backend.release(request_id)
            turn += 1
        return [pixels[f"r{index}"] for index in range(len(arrivals))]

    @staticmethod
    def _groups(left: dict[str, int], arrivals: Sequence[tuple[int, ResolvedRequest]]) -> list[list[str]]:
        groups: dict[tuple[int, int], list[str]] = {}
        for request_id in left:
            request = arrivals[int(request_id[1:])][1]
            groups.setdefault((request.width, request.height), []).append(request_id)
        return list(groups.values())

    def reference(self, request: ResolvedRequest) -> Pixels:
        """The request drawn alone by diffusers' own pipeline."""
        read = (*request.controls, *request.image_prompts)
        inputs = (request.image, request.mask, *(each.image for each in read))
        key = (request, *(None if each is None else each.tobytes() for each in inputs))
        if key not in self.references:
            self.references[key] = self._draw_reference(request)
        return self.references[key]

    def _draw_reference(self, request: ResolvedRequest) -> Pixels:
        sampler = find_sampler(request.scheduler)
        changes = dict(sampler.overrides)
        if sampler.seeded_noise:
            changes["noise_sampler_seed"] = request.seed
        scheduler = getattr(diffusers, sampler.diffusers_class)
        self.pipeline.scheduler = scheduler.from_config(self.scheduler_config, **changes)
        inputs = {} if request.image is None else {"strength": request.strength}
        if request.image is not None:
            inputs["image"] = PilImage.fromarray(request.image)
        if request.mask is not None:
            inputs["mask_image"] = PilImage.fromarray(request.mask)
        components = dict(self.pipeline.components)
        if request.controls:
            components["controlnet"], told = self._controlled(request)
            inputs |= told
        pipeline = _pipeline_for(request)(**components, add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        if request.image_prompts:
            inputs["ip_adapter_image"] = self._adapted(pipeline, request)
        # Image-to-image draws at the image's size.
        if request.image is None or request.mask is not None:
            inputs |= {"height": request.height, "width": request.width}
        image = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            **inputs,
        ).images[0]
        if request.image_prompts:
            pipeline.unload_ip_adapter()
        return np.asarray(image)

    def _adapted(self, pipeline: Any, request: ResolvedRequest) -> list[PilImage.Image]:
        """Has diffusers' pipeline read the request's image prompts; the pictures to be given it."""
        pipeline.register_modules(
            image_encoder=CLIPVisionModelWithProjection.from_pretrained(self.image_encoder),
            feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE),
        )
        paths = {Path(path).stem: Path(path) for path in self.ip_adapters}
        files = [paths[each.name] for each in request.image_prompts]
        pipeline.load_ip_adapter(
            [str(file.parent) for file in files],
            subfolder="",
            weight_name=[file.name for file in files],
            image_encoder_folder=None,
        )
        pipeline.set_ip_adapter_scale([each.scale for each in request.image_prompts])
        return [PilImage.fromarray(each.image) for each in request.image_prompts]

    def _controlled(self, request: ResolvedRequest) -> tuple[Any, dict[str, Any]]:
        """diffusers' ControlNets for a request, and what its pipelines are told of them."""
        paths = {Path(path).name: path for path in self.controlnets}
        modes = _modes(request)
        made = diffusers.ControlNetUnionModel if modes else diffusers.ControlNetModel
        nets = [made.from_pretrained(paths[each.name.partition("-")[0]]) for each in request.controls]
        edges = {"none": lambda image: image, "canny": canny}
        pictures = [PilImage.fromarray(edges[each.preprocessor](each.image)) for each in request.controls]
        told: dict[str, Any] = {
            "control_image": pictures,
            "controlnet_conditioning_scale": [each.scale for each in request.controls],
            "control_guidance_start": [each.start for each in request.controls],
            "control_guidance_end": [each.end for each in request.controls],
        }
        if modes:
            told["control_mode"] = modes
        if len(nets) == 1:
            told = {name: value[0] for name, value in told.items()}
        if request.image is None and not modes:
            # Where no picture is drawn from, diffusers calls these the image.
            told["image"] = told.pop("control_image")
        if len(nets) == 1:
            return nets[0], told
        return (MultiControlNetUnionModel if modes else diffusers.MultiControlNetModel)(nets), told


# Of ControlNet-Union: written down here too, for who mistakes a kind for another should be caught.
MODES = {"openpose": 0, "depth": 1, "softedge": 2, "canny": 3, "normal": 4, "segment": 5}


def _modes(request: ResolvedRequest) -> list[int]:
    """diffusers' numbers of the kinds of a ControlNet-Union, `union-KIND`, that hold a request."""
    names = [each.name.partition("-") for each in request.controls]
    return [MODES[kind] for _, _, kind in names if kind]


def _pipeline_for(request: ResolvedRequest) -> Any:
    kind = "" if not request.controls else "ControlNetUnion" if _modes(request) else "ControlNet"
    if request.image is None:
        return getattr(diffusers, f"StableDiffusionXL{kind}Pipeline")
    if request.mask is None:
        return getattr(diffusers, f"StableDiffusionXL{kind}Img2ImgPipeline")
    return getattr(diffusers, f"StableDiffusionXL{kind}InpaintPipeline")


def open_studio(
    model: str, backend: Backend | None = None, *, device: str = "cpu", dtype: str = "fp32"
) -> Studio:
    from mezzotint.models.locations import find_model

    backend = backend or load_backend(model, device=device, dtype=dtype, threads=1)
    assert isinstance(backend, DiffusersBackend)
    pipeline = diffusers.StableDiffusionXLPipeline.from_pretrained(
        find_model(model), dtype=DTYPES[dtype], local_files_only=True, add_watermarker=False
    ).to(device)
    return Studio(backend, pipeline, dict(pipeline.scheduler.config))


KINDS = ("modules", "graphs")


@pytest.fixture(scope="session")
def modules_studio(tiny_sdxl: Path, tiny_modules_backend: Backend) -> Studio:
    return open_studio(str(tiny_sdxl), tiny_modules_backend)


@pytest.fixture(scope="session")
def graphs_studio(modules_studio: Studio, tiny_graphs_backend: Backend) -> Studio:
    assert isinstance(tiny_graphs_backend, DiffusersBackend)
    return replace(modules_studio, backend=tiny_graphs_backend)


@pytest.fixture(params=KINDS)
def tiny_studio(request: pytest.FixtureRequest) -> Studio:
    studio: Studio = request.getfixturevalue(f"{request.param}_studio")
    return studio


@pytest.fixture(scope="session")
def inpainting_modules_studio(inpainting_sdxl: Path) -> Studio:
    return open_studio(str(inpainting_sdxl))


@pytest.fixture(scope="session")
def inpainting_graphs_studio(
    inpainting_modules_studio: Studio, inpainting_sdxl: Path, tmp_path_factory: pytest.TempPathFactory
) -> Studio:
    folder = str(tmp_path_factory.mktemp("graphs") / "inpainting")
    compile_model(Order(str(inpainting_sdxl), "cpu", GRAPH_SIZES[:1], GRAPH_BATCH, cores=2), folder)
    backend = load_backend(folder, device="neuron", stand_in=True, threads=1)
    assert isinstance(backend, DiffusersBackend)
    return replace(inpainting_modules_studio, backend=backend)


@pytest.fixture(params=KINDS)
def inpainting_studio(request: pytest.FixtureRequest) -> Studio:
    studio: Studio = request.getfixturevalue(f"inpainting_{request.param}_studio")
    return studio


@pytest.fixture(scope="session")
def controlnets(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two with random weights, `a` and `b`."""
    folder = tmp_path_factory.mktemp("controlnets")
    return [str(write_controlnet(folder / name, tiny_sdxl, seed=seed)) for seed, name in enumerate("ab")]


@pytest.fixture(scope="session")
def controls_studio(tiny_sdxl: Path, controlnets: list[str]) -> Studio:
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=controlnets)
    return replace(open_studio(str(tiny_sdxl), backend), controlnets=controlnets)


@pytest.fixture(scope="session")
def unions(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A ControlNet-Union with random weights, `union`."""
    return [str(write_union(tmp_path_factory.mktemp("unions") / "union", tiny_sdxl))]


@pytest.fixture(scope="session")
def unions_studio(tiny_sdxl: Path, unions: list[str]) -> Studio:
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, controlnets=unions)
    return replace(open_studio(str(tiny_sdxl), backend), controlnets=unions)


@pytest.fixture(scope="session")
def ip_adapters(tiny_sdxl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """`a`, `b` and `plus` with random weights, and their image encoder, as a backend is told of them."""
    folder = tmp_path_factory.mktemp("ip_adapters")
    files = [
        write_ip_adapter(folder / f"{name}.safetensors", tiny_sdxl, plus=name == "plus", seed=seed)
        for seed, name in enumerate(("a", "b", "plus"))
    ]
    encoder = write_image_encoder(folder / "image_encoder")
    return {"ip_adapters": [str(file) for file in files], "image_encoder": str(encoder)}


@pytest.fixture(scope="session")
def images_studio(tiny_sdxl: Path, ip_adapters: dict[str, Any]) -> Studio:
    backend = load_backend(str(tiny_sdxl), device="cpu", threads=1, **ip_adapters)
    return replace(open_studio(str(tiny_sdxl), backend), **ip_adapters)


@pytest.fixture(scope="session")
def bf16_studio(tiny_sdxl: Path) -> Studio:
    return open_studio(str(tiny_sdxl), dtype="bf16")


@pytest.fixture(scope="session")
def demo_studio() -> Studio:
    return open_studio("demo")


@pytest.fixture
def fresh_modules(tiny_sdxl: Path) -> Iterator[Callable[..., DiffusersBackend]]:
    """Makes backends of their own for tests that look into one or break one."""
    yield from making(str(tiny_sdxl), device="cpu")


@pytest.fixture(params=KINDS)
def fresh_backend(request: pytest.FixtureRequest) -> Iterator[Callable[..., DiffusersBackend]]:
    """The same, of each kind."""
    if request.param == "modules":
        yield from making(str(request.getfixturevalue("tiny_sdxl")), device="cpu")
    else:
        yield from making(str(request.getfixturevalue("small_graphs")), device="neuron", stand_in=True)


def making(model: str, **load: Any) -> Iterator[Callable[..., DiffusersBackend]]:
    made: list[DiffusersBackend] = []

    def make(**options: Any) -> DiffusersBackend:
        backend = load_backend(model, **{**load, "threads": 1, **options})
        assert isinstance(backend, DiffusersBackend)
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()
