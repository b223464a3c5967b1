"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["Device", "Dtype", "Json", "Model", "StandIn"]

Model = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", help="A model's name, folder or .safetensors file.")
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or neuron.")]
Dtype = Annotated[str, typer.Option("--dtype", metavar="DTYPE", help="auto, fp32, bf16 or fp16.")]
StandIn = Annotated[
    bool, typer.Option("--stand-in", help="With --device neuron, this CPU in the chip's place.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
