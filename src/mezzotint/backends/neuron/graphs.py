"""Compiled graphs behind the calls that diffusers' modules answer.

A graph takes one shape. So rows are cut into pieces of the compiled batch, the last one is filled up with
zeros, each piece goes to a core, and what comes back is cut to the rows that were asked for. A graph mixes
nothing across its batch, so the zeros change nothing. Each class here has as much of its module's surface as
`backends.diffusers`, `pictures` and `prompts` use, and no arithmetic of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from mezzotint.backends.neuron.runtime import Graph
from mezzotint.backends.neuron.shapes import Input

__all__ = ["GraphTextEncoder", "GraphUNet", "GraphVae", "Placed"]

Size = tuple[int, int]
CPU = torch.device("cpu")


class Placed:
    """One graph, loaded on one or more cores. Thread-safe as far as the graphs are."""

    def __init__(self, graphs: Sequence[Graph], inputs: Sequence[Input]) -> None:
        self._graphs = graphs
        self._inputs = inputs
        self._batch = inputs[0].shape[0]
        # Ends its threads when it is collected. The caller's own thread serves the first core.
        others = len(graphs) - 1
        self._pool = ThreadPoolExecutor(others, thread_name_prefix="mezzotint-core") if others else None

    def __call__(self, *tensors: torch.Tensor) -> Any:
        """The outputs for any number of rows; each core takes every `cores`-th piece."""
        pieces = self._pieces(tensors)
        cores = len(self._graphs)
        shares = [pieces[core::cores] for core in range(cores)]
        jobs = [(graph, share) for graph, share in zip(self._graphs, shares, strict=True) if share]
        if self._pool is None or len(jobs) == 1:
            done = [_run(*job) for job in jobs]
        else:
            waiting = [self._pool.submit(_run, *job) for job in jobs[1:]]
            try:
                first = _run(*jobs[0])
            finally:
                # Whatever comes, no core is left at work on what nobody waits for.
                others = [each.exception() for each in waiting]
            for error in filter(None, others):
                raise error
            done = [first, *(each.result() for each in waiting)]
        in_order = [done[index % cores][index // cores] for index in range(len(pieces))]
        rows = len(tensors[0])
        return _joined(in_order, rows)

    def _pieces(self, tensors: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
        columns = [
            _cut(tensor, self._batch, getattr(torch, expected.dtype))
            for tensor, expected in zip(tensors, self._inputs, strict=True)
        ]
        return list(zip(*columns, strict=True))


@torch.inference_mode()
def _run(graph: Graph, pieces: Sequence[tuple[torch.Tensor, ...]]) -> list[Any]:
    # Inference mode is a thread's own: a core's thread would not have the caller's.
    return [graph(*piece) for piece in pieces]


def _cut(tensor: torch.Tensor, batch: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Pieces of exactly `batch` rows, contiguous, the last filled up with zeros."""
    tensor = tensor.to(CPU, dtype)
    missing = -len(tensor) % batch
    if missing:
        tensor = torch.cat([tensor, tensor.new_zeros((missing, *tensor.shape[1:]))])
    return list(torch.split(tensor.contiguous(), batch))


def _joined(outputs: Sequence[Any], rows: int) -> Any:
    """The pieces' outputs one below the other without the rows that were filled in, nested as they are."""
    first = outputs[0]
    if isinstance(first, torch.Tensor):
        return (first if len(outputs) == 1 else torch.cat(list(outputs)))[:rows]
    if isinstance(first, Mapping):
        return tuple(_joined([output[name] for output in outputs], rows) for name in first)
    return tuple(_joined(column, rows) for column in zip(*outputs, strict=True))


def _first(outputs: Any) -> torch.Tensor:
    while not isinstance(outputs, torch.Tensor):
        outputs = outputs[0]
    return outputs


class GraphUNet:
    """Called as `UNet2DConditionModel` is; one graph for each size."""

    device = CPU
    dtype = torch.float32

    def __init__(self, graphs: Mapping[Size, Placed], configuration: Mapping[str, Any]) -> None:
        """`graphs`: by latent height and width."""
        self._graphs = graphs
        # Old configurations lack what later became an option.
        missing = {"addition_embed_type": None, "time_cond_proj_dim": None}
        self.config = SimpleNamespace(**{**missing, **configuration})

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        added_cond_kwargs: Mapping[str, torch.Tensor],
        timestep_cond: None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """The prediction, rows × 4 × h × w. `timestep` has one entry a row."""
        graph = self._graphs[tuple(sample.shape[-2:])]  # type: ignore[index]
        outputs = graph(
            sample,
            timestep,
            encoder_hidden_states,
            added_cond_kwargs["text_embeds"],
            added_cond_kwargs["time_ids"],
        )
        return (_first(outputs),)


class GraphVae:
    """Called as `AutoencoderKL` is; an encoder and a decoder for each size."""

    device = CPU
    dtype = torch.float32

    def __init__(
        self,
        encoders: Mapping[Size, Placed],
        decoders: Mapping[Size, Placed],
        configuration: Mapping[str, Any],
    ) -> None:
        """`encoders`: by height and width in pixels; `decoders`: in latents."""
        self._encoders = encoders
        self._decoders = decoders
        self.config = SimpleNamespace(**{"force_upcast": False, **configuration})

    def encode(self, image: torch.Tensor) -> SimpleNamespace:
        """`latent_dist` of rows × 3 × H × W."""
        moments = _first(self._encoders[tuple(image.shape[-2:])](image))  # type: ignore[index]
        return SimpleNamespace(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: torch.Tensor, *, return_dict: bool = False) -> tuple[torch.Tensor]:
        """Rows × 3 × H × W in -1…1 of rows × 4 × h × w."""
        return (_first(self._decoders[tuple(latents.shape[-2:])](latents)),)  # type: ignore[index]


@dataclass(frozen=True)
class _TextOutput:
    """`[0]` is the encoder's first output, as transformers' outputs have it."""

    outputs: tuple[Any, ...]

    def __getitem__(self, index: int) -> torch.Tensor:
        output: torch.Tensor = self.outputs[index]
        return output

    @property
    def hidden_states(self) -> Sequence[torch.Tensor]:
        # Of a graph that gives them one by one they are the last of its outputs.
        last = self.outputs[-1]
        states: Sequence[torch.Tensor] = self.outputs if isinstance(last, torch.Tensor) else last
        return states


class GraphTextEncoder:
    """Called as `CLIPTextModel` and `CLIPTextModelWithProjection` are."""

    device = CPU
    dtype = torch.float32

    def __init__(self, graph: Callable[..., Any], configuration: Mapping[str, Any]) -> None:
        self._graph = graph
        self.config = SimpleNamespace(**configuration)

    def __call__(self, input_ids: torch.Tensor, *, output_hidden_states: bool = True) -> _TextOutput:
        return _TextOutput(tuple(self._graph(input_ids)))
