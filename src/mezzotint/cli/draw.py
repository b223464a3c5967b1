"""`mezzotint draw`: pictures on this machine, without a server."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from mezzotint.cli.known import limits_of_installed
from mezzotint.cli.options import Device, Dtype, Json, Model, StandIn
from mezzotint.cli.outputs import output_paths
from mezzotint.core import (
    Control,
    Done,
    Failed,
    GenerationRequest,
    Hires,
    Image,
    ImagePrompt,
    ModelLimits,
    Pixels,
    Preprocessor,
    Progress,
    Queued,
)
from mezzotint.engine.engine import Engine
from mezzotint.errors import GenerationFailed, InvalidRequest, os_error_text
from mezzotint.imaging.formats import check_output
from mezzotint.imaging.size import parse_size
from mezzotint.imaging.uploads import read_upload
from mezzotint.models import controlnets, ip_adapters
from mezzotint.models.loras import read_choices
from mezzotint.resolving import resolve
from mezzotint.tuning import Compile, Tuning

if TYPE_CHECKING:
    from mezzotint.cli.progress import Bars

__all__ = ["draw"]

MAX_IMAGES = 100


def draw(
    prompt: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to draw.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            help="A .png, .jpg or .webp file, or a folder. With -n, {i} in it is the image's number."
            " [default: plate-SEED.png]",
        ),
    ] = None,
    model: Model = "demo",
    seed: Annotated[int | None, typer.Option(help="Draws the same picture again. [default: random]")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Denoising steps. [default: the model's]", show_default=False)
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale, 0 to 50; at most 1 turns it off.")
    ] = None,
    size: Annotated[str | None, typer.Option(metavar="WxH", help="Pixels, multiples of 8.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="NAME", help="The sampler, such as 'DPM++ 2M'.")
    ] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to steer away from.")] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LORA", help="A LoRA of the model's own or a .safetensors file; LORA:0.8 for less of it."
        ),
    ] = None,
    controlnet: Annotated[
        str | None,
        typer.Option(
            metavar="NET",
            help="Hold it to --control-image by a ControlNet of the model's own or at a path;"
            " NET:0.8 for less of it.",
        ),
    ] = None,
    control_image: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The picture that --controlnet reads.")
    ] = None,
    preprocessor: Annotated[
        str, typer.Option(metavar="WHAT", help="What is made of it first: none, or canny, its edges.")
    ] = "none",
    ip_adapter: Annotated[
        str | None,
        typer.Option(
            metavar="ADAPTER",
            help="Read --image-prompt by an IP-Adapter of the model's own or a .safetensors file;"
            " ADAPTER:0.6 for less of it.",
        ),
    ] = None,
    image_prompt: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The picture that --ip-adapter reads.")
    ] = None,
    image_encoder: Annotated[
        str,
        typer.Option(
            metavar="FOLDER",
            help="What IP-Adapters read pictures by. [default: the model's own]",
            show_default=False,
        ),
    ] = "",
    embedding: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="A textual inversion that the prompts name, or NAME=PATH."),
    ] = None,
    emphasis: Annotated[
        bool, typer.Option("--emphasis", help="A1111's grammar: (words:1.3), [words], BREAK.")
    ] = False,
    hires: Annotated[
        float | None,
        typer.Option(metavar="SCALE", help="Draw it so many times larger, in a second stage; above 1, to 4."),
    ] = None,
    number: Annotated[
        int, typer.Option("-n", help=f"Images, 1 to {MAX_IMAGES}, with seeds counting up.")
    ] = 1,
    as_json: Json = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    compile: Annotated[
        str, typer.Option(metavar="WHAT", help="Compile first: none, blocks or unet.")
    ] = "none",
    stand_in: StandIn = False,
) -> None:
    """Draw pictures on this machine."""
    width, height = (None, None) if size is None else parse_size(size)
    loras, files = read_choices(lora or ())
    controls, nets = _controls(controlnet, control_image, preprocessor)
    prompts, adapters = _image_prompts(ip_adapter, image_prompt)
    request = GenerationRequest(
        prompt=" ".join(prompt),
        negative_prompt=negative,
        width=width,
        height=height,
        steps=steps,
        guidance_scale=guidance,
        scheduler=scheduler,
        seed=seed,
        loras=loras,
        controls=controls,
        image_prompts=prompts,
        emphasis=emphasis,
        hires=None if hires is None else Hires(hires),
    )
    added: dict[str, Any] = {
        "loras": files,
        "controlnets": nets,
        "embeddings": embedding or (),
        "ip_adapters": adapters,
        "image_encoder": image_encoder,
    }
    requests = _numbered(request, number, limits_of_installed(model, **added))
    paths = _checked_paths(output, requests)
    # Tuning says what it accepts.
    tuning = Tuning(compile=cast("Compile", compile))
    load = {"model": model, "device": device, "dtype": dtype, "tuning": tuning, "stand_in": stand_in}
    images = _draw_all(requests, **load, **added)
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    _report(images, paths, as_json=as_json)


def _controls(
    net: str | None, image: Path | None, preprocessor: str
) -> tuple[tuple[Control, ...], tuple[str, ...]]:
    """What the picture is held to, and the path of a ControlNet that is not the model's own."""
    if net is None or image is None:
        _refuse_alone(net, "--controlnet", "--control-image")
        _refuse_alone(image, "--control-image", "--controlnet")
        _refuse_alone(None if preprocessor == "none" else preprocessor, "--preprocessor", "--controlnet")
        return (), ()
    choice = controlnets.KIND.read_choice(net, "--controlnet")
    pixels = _read(image, "--control-image")
    # Whether there is such a preprocessor, the request's check says.
    control = Control(choice.name, pixels, cast("Preprocessor", preprocessor), choice.scale)
    return (control,), () if choice.place is None else (choice.place,)


def _image_prompts(
    adapter: str | None, image: Path | None
) -> tuple[tuple[ImagePrompt, ...], tuple[str, ...]]:
    """What is read beside the prompt, and the path of an IP-Adapter that is not the model's own."""
    if adapter is None or image is None:
        _refuse_alone(adapter, "--ip-adapter", "--image-prompt")
        _refuse_alone(image, "--image-prompt", "--ip-adapter")
        return (), ()
    choice = ip_adapters.KIND.read_choice(adapter, "--ip-adapter")
    prompt = ImagePrompt(choice.name, _read(image, "--image-prompt"), choice.scale)
    return (prompt,), () if choice.place is None else (choice.place,)


def _refuse_alone(given: object, flag: str, other: str) -> None:
    if given is not None:
        raise InvalidRequest(f"{flag} needs {other} beside it", param=other.lstrip("-"))


def _read(image: Path, flag: str) -> Pixels:
    try:
        data = image.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{flag}: {image}: {os_error_text(error)}", param=flag.lstrip("-")) from None
    return read_upload(data, param=flag)


def _numbered(request: GenerationRequest, number: int, limits: ModelLimits) -> list[GenerationRequest]:
    """The request `number` times, with seeds that count up from its own or from a random one."""
    if not 1 <= number <= MAX_IMAGES:
        raise InvalidRequest(f"-n must be 1…{MAX_IMAGES}, not {number}", param="n")
    first = resolve(request, limits).seed
    requests = [replace(request, seed=first + i) for i in range(number)]
    # Of seeds that count up, the last is the one that can be too great.
    resolve(requests[-1], limits)
    return requests


def _checked_paths(output: str | None, requests: list[GenerationRequest]) -> list[Path]:
    """Where each picture goes; each can be written there."""
    paths = output_paths(output, [each.seed for each in requests if each.seed is not None])
    for path in paths:
        check_output(path)
    return paths


def _draw_all(requests: list[GenerationRequest], **load: Any) -> list[Image]:
    from mezzotint.cli.progress import Bars

    with Bars(len(requests)) as bars:
        bars.say(f"loading {load['model']}")
        with Engine.load(warm_up=False, **load) as engine:
            bars.say("drawing")
            return asyncio.run(_draw_together(engine, requests, bars))


async def _draw_together(engine: Engine, requests: list[GenerationRequest], bars: Bars) -> list[Image]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_draw_one(engine, r, i, bars)) for i, r in enumerate(requests)]
    except ExceptionGroup as failures:
        # The others were cancelled with the first.
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def _draw_one(engine: Engine, request: GenerationRequest, index: int, bars: Bars) -> Image:
    async with aclosing(engine.stream(request)) as events:
        async for event in events:
            match event:
                case Queued(eta_s=eta_s):
                    bars.waiting(index, eta_s)
                case Progress(step=step, total=total):
                    bars.step(index, step, total)
                case Done(image=image):
                    return image
                case Failed(error=error):
                    raise error
    raise GenerationFailed("the request ended without a picture")


def _report(images: list[Image], paths: list[Path], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"path": str(path), "receipt": image.receipt.to_dict()}
            for image, path in zip(images, paths, strict=True)
        ]
        print(json.dumps({"images": rows}, indent=2))
        return
    for path in paths:
        print(path)
    # The same of each picture, for the most part.
    for warning in dict.fromkeys(warning for image in images for warning in image.receipt.warnings):
        print(f"note: {warning}", file=sys.stderr)
