"""`mezzotint compile`: a model to graphs of fixed shapes, for NeuronCores or for the CPU that stands in."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mezzotint.cli.options import Model
from mezzotint.errors import SettingInvalid
from mezzotint.imaging.size import parse_size

__all__ = ["compile_"]


def compile_(
    model: Model = "demo",
    target: Annotated[
        str, typer.Option(metavar="TARGET", help="inf2, trn1, or cpu for the stand-in.")
    ] = "cpu",
    size: Annotated[
        str | None,
        typer.Option(metavar="WxH,…", help="The sizes there will be. [default: the model's own]"),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pictures in one step.")] = 1,
    cores: Annotated[int, typer.Option(help="NeuronCores of a replica; a chip has two.")] = 2,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="PLACE", help="A folder, or s3://bucket/prefix.")
    ] = None,
    adopt: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Accept what optimum-neuron exported, as it is; compiles nothing."
        ),
    ] = None,
) -> None:
    """Compile a model for NeuronCores. What was compiled before is kept, so a broken-off run goes on."""
    if adopt is not None:
        from mezzotint.models.artefact import adopt as adopt_folder

        print(adopt_folder(adopt))
        return
    if output is None:
        raise SettingInvalid("--output takes a folder or s3://bucket/prefix", param="output")
    from mezzotint.models.locations import limits_of

    limits = limits_of(model)
    default = f"{limits.default_width}x{limits.default_height}"
    sizes = tuple(parse_size(each) for each in (size or default).split(","))
    from mezzotint.threads import prepare_libraries

    prepare_libraries()
    from mezzotint.models.compiling import Order, compile_model

    with _Told() as told:
        print(compile_model(Order(model, target, sizes, batch, cores), output, told.tell))


class _Told:
    """A spinner with the component on a terminal, and a line for each that is finished."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._status = self._console.status("reading the model …")

    def __enter__(self) -> _Told:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def tell(self, name: str, state: str) -> None:
        if state == "compiling":
            self._status.update(f"compiling {name} …")
        else:
            print(f"{name}: {'compiled' if state == 'done' else 'kept from before'}", file=sys.stderr)
