"""The `mezzotint bench` commands."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from mezzotint.errors import InvalidRequest, ModelInvalid, OutputUnwritable, SettingInvalid
from mezzotint.threads import prepare_libraries
from mezzotint.tuning import Compile, Quantisation, Tuning

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
    prepare_libraries()
    # Heavy imports wait until the command is really run.
    import transformers

    # diffusers' pipeline module imports image processors it does not need, which complain of torchvision.
    transformers.logging.set_verbosity_error()
    from mezzotint.bench.engine import FULL, PARTS, QUICK, Bench
    from mezzotint.bench.reference import Reference
    from mezzotint.bench.report import describe_run, plot_latency, results_table, write_json
    from mezzotint.models.loading import load_backend

    chosen = part or list(PARTS)
    for name in chosen:
        if name not in PARTS:
            raise InvalidRequest(f"unknown part {name!r}; accepted are {', '.join(PARTS)}", param="part")
    if "load" in chosen and find_spec("matplotlib") is None:
        raise SettingInvalid("the plot needs matplotlib: pip install 'mezzotint[bench]'")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputUnwritable(f"cannot write to {output}: {error.strerror}", param="output") from None
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
            write_json(output / "engine.json", run, results)
    finally:
        bench.close()
    plotted = plot_latency(output / "engine.png", run, results)
    Console().print(results_table(results))
    console.print(f"wrote {output / 'engine.json'}" + (f" and {output / 'engine.png'}" if plotted else ""))
    if not quick and not all(result.met for result in results):
        raise typer.Exit(1)


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
    prepare_libraries()
    import diffusers
    import transformers

    for library in (diffusers.utils.logging, transformers.logging):
        library.set_verbosity_error()
    from mezzotint.bench.gpu import open_bench, run_parts
    from mezzotint.bench.gpu_parts import PARTS
    from mezzotint.bench.report import describe_run, results_table, write_json

    chosen = part or list(PARTS)
    for name in chosen:
        if name not in PARTS:
            raise InvalidRequest(f"unknown part {name!r}; accepted are {', '.join(PARTS)}", param="part")
    console = Console(stderr=True)
    bench = open_bench(quick=quick, device=device)
    try:
        json.parent.mkdir(parents=True, exist_ok=True)
        json.touch()
    except OSError as error:
        raise OutputUnwritable(f"cannot write to {json}: {error.strerror}", param="json") from None
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
    Console().print(results_table(results))
    for each in bench.left_out:
        console.print(f"left out: {each}")
    console.print(f"wrote {json}")
    if not quick and not all(result.met for result in results):
        raise typer.Exit(1)


@app.command()
def service(
    model: Annotated[str, typer.Option(help="Model name or folder.")] = "demo",
    trials: Annotated[int, typer.Option(min=2, help="Pictures a side, one at a time.")] = 24,
    output: Annotated[Path, typer.Option(help="Folder for service.json.")] = Path("out/bench"),
) -> None:
    """The whole service, HTTP and Ray, against the bare engine."""
    prepare_libraries()
    from mezzotint.bench.report import describe_run, results_table, write_json
    from mezzotint.bench.service import measure_service, served
    from mezzotint.engine.engine import Engine

    console = Console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)
    with console.status("starting…"), Engine.load(model) as engine, served(model) as address:
        results = measure_service(engine, address, trials)
        write_json(output / "service.json", describe_run(engine.info), results)
    Console().print(results_table(results))
    if not all(result.met for result in results):
        raise typer.Exit(1)


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
    prepare_libraries()
    import transformers

    transformers.logging.set_verbosity_error()
    from mezzotint.bench.gate import Settings, contact_sheet, measure_quality
    from mezzotint.bench.quality import Vocabulary
    from mezzotint.bench.report import describe_run, results_table, write_json
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
    output.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
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
    write_json(output / "quality.json", run, results)
    contact_sheet(drawn, min(24, len(drawn))).save(output / "quality.png")
    Console().print(results_table(results))
    if not all(result.met for result in results):
        raise typer.Exit(1)


@app.command()
def png(
    trials: Annotated[int, typer.Option(min=1, help="Files a side and picture, in turn.")] = 15,
    output: Annotated[Path, typer.Option(help="Folder for png.json.")] = Path("out/bench"),
) -> None:
    """PNG files against Pillow's: time and size, over pictures of each kind."""
    prepare_libraries()
    import transformers

    transformers.logging.set_verbosity_error()
    from mezzotint.bench.pictures import draw_demo, measure_png, synthetic
    from mezzotint.bench.report import describe_run, results_table, write_json
    from mezzotint.engine.engine import Engine

    output.mkdir(parents=True, exist_ok=True)
    console = Console(stderr=True)
    with console.status("drawing…"), Engine.load("demo", warm_up=False) as engine:
        pictures = {**synthetic(), "demo": draw_demo(engine)}
        run = describe_run(engine.info)
    with console.status("measuring…"):
        results = measure_png(pictures, trials)
    write_json(output / "png.json", run, results)
    Console().print(results_table(results))
