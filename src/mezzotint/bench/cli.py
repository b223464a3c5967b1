"""The `mezzotint bench` commands."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from mezzotint.errors import InvalidRequest, ModelInvalid, OutputUnwritable, SettingInvalid
from mezzotint.threads import prepare_libraries
from mezzotint.tuning import Compile, Quantisation, Tuning

if TYPE_CHECKING:
    from mezzotint.bench.engine import Result

__all__ = ["app"]

app = typer.Typer(help="Measure, always both sides in one run.", no_args_is_help=True)


@app.command()
def engine(
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "demo",
    part: Annotated[list[str] | None, typer.Option(help="Measure only this part; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option(help="Show that it runs; figures not worth quoting.")] = False,
    output: Annotated[Path, typer.Option(help="Folder for engine.json and engine.png.")] = Path("out/bench"),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    load: Annotated[
        list[float] | None,
        typer.Option(min=0.01, max=2.0, help="Part load: this share of the capacity; may be repeated."),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Part load: rounds, each on idle servers.")
    ] = None,
    arrivals: Annotated[int | None, typer.Option(min=1, help="Part load: requests a round.")] = None,
) -> None:
    """The engine against diffusers serially, request-level batching, and one call at a time."""
    # Heavy imports wait until the command is really run.
    _prepare()
    from mezzotint.bench.engine import FULL, PARTS, QUICK, Bench
    from mezzotint.bench.reference import Reference
    from mezzotint.bench.report import describe_run, plot_latency, write_json
    from mezzotint.models.loading import load_backend

    chosen = _chosen(part, PARTS)
    if "load" in chosen and find_spec("matplotlib") is None:
        raise SettingInvalid("the plot needs matplotlib: pip install 'mezzotint[bench]'")
    file = _begin(output / "engine.json")
    console = Console(stderr=True)
    backend = load_backend(model, device=device, dtype=dtype)
    run = describe_run(backend.info)
    reference = Reference.load(model, backend.info)
    effort = QUICK if quick else FULL
    effort = replace(
        effort,
        loads=tuple(load) if load else effort.loads,
        load_rounds=rounds or effort.load_rounds,
        arrivals=arrivals or effort.arrivals,
    )
    bench = Bench(backend, reference, effort)
    results = []
    try:
        for name in chosen:
            with console.status(f"measuring {name}…"):
                results += PARTS[name](bench)
            write_json(file, run, results)
    finally:
        bench.close()
    plotted = plot_latency(output / "engine.png", run, results)
    _tell(results, file, *([output / "engine.png"] if plotted else []), strictly=not quick)


@app.command()
def gpu(
    part: Annotated[list[str] | None, typer.Option(help="Measure only this part; may be repeated.")] = None,
    quick: Annotated[
        bool, typer.Option(help="A tiny model on any device; figures not worth quoting.")
    ] = False,
    json: Annotated[Path, typer.Option(metavar="FILE", help="Where the figures go.")] = Path(
        "out/bench/gpu.json"
    ),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seconds: Annotated[float, typer.Option(min=1.0, help="What all parts together may take.")] = 525.0,
) -> None:
    """Full-size SDXL with random weights on one GPU: shares of its floor, peers, load; under 9 minutes."""
    _prepare()
    from mezzotint.bench.gpu import open_bench, run_parts
    from mezzotint.bench.gpu_parts import PARTS
    from mezzotint.bench.report import describe_run, write_json

    chosen = _chosen(part, PARTS)
    console = Console(stderr=True)
    bench = open_bench(quick=quick, device=device)
    _begin(json)
    try:
        run = describe_run(bench.info)
        results = run_parts(
            bench,
            chosen,
            PARTS,
            seconds=seconds,
            before=lambda name: console.print(f"measuring {name} …"),
            # After each part: a run that is ended from outside keeps what it has.
            after=lambda results: write_json(json, run, results, left_out=bench.left_out),
        )
    finally:
        bench.close()
    write_json(json, run, results, left_out=bench.left_out)
    for each in bench.left_out:
        console.print(f"left out: {each}")
    _tell(results, json, strictly=not quick)


@app.command()
def service(
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "demo",
    trials: Annotated[int, typer.Option(min=2, help="Pictures a side, one at a time.")] = 24,
    output: Annotated[Path, typer.Option(help="Folder for service.json.")] = Path("out/bench"),
) -> None:
    """The whole service, HTTP and Ray, against the bare engine."""
    _prepare()
    from mezzotint.bench.report import describe_run, write_json
    from mezzotint.bench.service import measure_service, served
    from mezzotint.engine.engine import Engine

    file, console = _begin(output / "service.json"), Console(stderr=True)
    with console.status("starting…"), Engine.load(model) as engine, served(model) as address:
        results = measure_service(engine, address, trials)
        write_json(file, describe_run(engine.info), results)
    _tell(results, file)


@app.command()
def scheduler() -> None:
    """The scheduler's constants against others, on a virtual clock; about a minute."""
    from mezzotint.bench.scheduling import compare_rules, rules_table

    console = Console(stderr=True)
    with console.status("simulating…"):
        comparisons = compare_rules()
    Console().print(rules_table(comparisons))


@app.command()
def quality(
    model: Annotated[str, typer.Option(help="The embedded model, or a folder made like it.")] = "demo",
    glyphs: Annotated[
        int | None, typer.Option(min=1, help="How many pictograms to draw; all by default.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    guidance: Annotated[float, typer.Option(min=0.0, max=50.0)] = 5.0,
    scheduler: Annotated[str | None, typer.Option(help="As in `mezzotint draw`.")] = None,
    lora: Annotated[list[str] | None, typer.Option(help="As in `mezzotint draw`.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or neuron.")] = "auto",
    stand_in: Annotated[bool, typer.Option("--stand-in", help="As in `mezzotint draw`.")] = False,
    dtype: Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")] = "auto",
    compile: Annotated[
        str, typer.Option(metavar="WHAT", help="Compile first: none, blocks or unet.")
    ] = "none",
    quantisation: Annotated[str, typer.Option(metavar="KIND", help="none, int8 or fp8.")] = "none",
    output: Annotated[Path, typer.Option(help="Folder for quality.json and quality.png.")] = Path(
        "out/bench"
    ),
) -> None:
    """Draw what the embedded model knows, and judge it: the gate for a dtype, a compiled form, a device."""
    _prepare()
    from mezzotint.bench.gate import Settings, contact_sheet, measure_quality
    from mezzotint.bench.quality import Vocabulary
    from mezzotint.bench.report import describe_run, write_json
    from mezzotint.engine.engine import Engine
    from mezzotint.models.locations import find_model
    from mezzotint.models.loras import read_choices

    # Tuning says what it accepts.
    tuning = Tuning(compile=cast("Compile", compile), quantisation=cast("Quantisation", quantisation))
    loras, files = read_choices(lora or ())
    folder = find_model(model)
    try:
        vocabulary = Vocabulary.load(folder)
    except (OSError, KeyError, ValueError):
        raise ModelInvalid(f"{model} has no vocabulary.json and glyphs.png to be judged by") from None
    file, console = _begin(output / "quality.json"), Console(stderr=True)
    with (
        console.status("drawing…"),
        Engine.load(
            model,
            device=device,
            dtype=dtype,
            tuning=tuning,
            stand_in=stand_in,
            loras=files,
            max_queue=10_000,
        ) as engine,
    ):
        settings = Settings(steps, guidance, scheduler, loras=loras)
        results, drawn = measure_quality(engine, vocabulary, count=glyphs, settings=settings)
        run = describe_run(engine.info)
    write_json(file, run, results)
    contact_sheet(drawn, min(24, len(drawn))).save(output / "quality.png")
    _tell(results, file, output / "quality.png")


@app.command()
def png(
    trials: Annotated[int, typer.Option(min=1, help="Files a side and picture, in turn.")] = 15,
    output: Annotated[Path, typer.Option(help="Folder for png.json.")] = Path("out/bench"),
) -> None:
    """PNG files against Pillow's: time and size, over pictures of each kind."""
    _prepare()
    from mezzotint.bench.pictures import draw_demo, measure_png, synthetic
    from mezzotint.bench.report import describe_run, write_json
    from mezzotint.engine.engine import Engine

    file, console = _begin(output / "png.json"), Console(stderr=True)
    with console.status("drawing…"), Engine.load("demo", warm_up=False) as engine:
        pictures = {**synthetic(), "demo": draw_demo(engine)}
        run = describe_run(engine.info)
    with console.status("measuring…"):
        results = measure_png(pictures, trials)
    write_json(file, run, results)
    _tell(results, file)


# What the commands share


def _prepare() -> None:
    prepare_libraries()
    import diffusers
    import transformers

    # diffusers' pipeline module imports image processors it does not need, which complain of torchvision.
    for library in (diffusers.utils.logging, transformers.logging):
        library.set_verbosity_error()


def _chosen(asked: Sequence[str] | None, parts: Collection[str]) -> Sequence[str]:
    for name in asked or ():
        if name not in parts:
            raise InvalidRequest(f"unknown part {name!r}; accepted are {', '.join(parts)}", param="part")
    return asked or list(parts)


def _begin(file: Path) -> Path:
    """The file, made: whether it can be written is known before anything is measured."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise OutputUnwritable(f"cannot write to {file}: {error.strerror}", param="output") from None
    return file


def _tell(results: Sequence[Result], *files: Path, strictly: bool = True) -> None:
    """The figures, and where they are; strictly, with exit code 1 where a bar is missed."""
    from mezzotint.bench.report import results_table

    Console().print(results_table(results))
    Console(stderr=True).print(f"wrote {' and '.join(map(str, files))}")
    if strictly and not all(result.met for result in results):
        raise typer.Exit(1)
