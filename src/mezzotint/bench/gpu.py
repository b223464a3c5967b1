"""`mezzotint bench gpu`: full-size SDXL with random weights on one GPU, against its floor and its peers.

Parts are asked for by name; each keeps to a budget of seconds and says what it left out for it. Both sides of
a ratio take turns in one run. `--quick` runs a tiny model of the same architecture on whatever device there
is, which shows that the benchmark works and nothing else.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

from mezzotint.backends.base import Backend, BackendInfo
from mezzotint.backends.channels_last import keep_channels_last
from mezzotint.backends.diffusers import DiffusersBackend
from mezzotint.backends.parts import PipelineParts
from mezzotint.backends.tuned import prepare_compiling
from mezzotint.bench.engine import Result
from mezzotint.bench.fullsize import FULL_SIZE, TINY, Architecture, build, tflop_of_decode, tflop_of_row
from mezzotint.bench.load import Mix
from mezzotint.bench.reference import Reference
from mezzotint.bench.servers import RecordingBackend
from mezzotint.core import GenerationRequest
from mezzotint.engine.engine import Engine
from mezzotint.errors import SettingInvalid
from mezzotint.models.catalogue import limits_of_size
from mezzotint.models.loading import versions
from mezzotint.resolving import resolve
from mezzotint.tuning import Compile, Tuning

__all__ = ["FULL", "QUICK", "GpuBench", "Preset", "open_bench", "reason_of", "run_parts"]

# Everything together ends within this unless told otherwise, the building of models included.
WHOLE_SECONDS = 525.0


@dataclass(frozen=True)
class Preset:
    """What is measured, of what, and for how long at most.

    sizes: sides of square pictures in pixels, the last the one that bars are for.
    budgets: seconds by part.
    rounds: of sides that take turns.
    repetitions: of one pass, at most.
    loop_steps: of the requests whose passes are timed: enough for a mean, with both ends left out.
    compiled: what is compiled for a cold start, each in a process of its own.
    set_up_seconds: what building and compiling one more model may take; with less left, none is begun.
    tuning: ours; diffusers' best form is compiled to the same extent.
    """

    architecture: Architecture
    dtype: torch.dtype
    matrix: tuple[int, ...]
    sizes: tuple[int, ...]
    widths: tuple[int, ...]
    steps: int
    mixed_steps: tuple[int, ...]
    backlog: int
    arrivals: int
    trials: int
    rounds: int
    repetitions: int
    products: int
    loop_steps: int
    compiled: tuple[Compile, ...]
    tuning: Tuning
    set_up_seconds: float
    budgets: dict[str, float]


FULL = Preset(
    FULL_SIZE,
    torch.bfloat16,
    matrix=(4096, 8192, 16384),
    sizes=(512, 1024),
    widths=(1, 2, 4, 8, 16),
    steps=20,
    mixed_steps=(15, 20, 30, 50),
    # The last of them are decoded beside no step: of sixteen that would be a twentieth of the time.
    backlog=24,
    arrivals=60,
    trials=60,
    rounds=2,
    repetitions=30,
    products=100_000,
    loop_steps=30,
    # The whole UNet last: it takes longest, and only where the part is asked for alone is there the time.
    compiled=("blocks", "unet"),
    tuning=Tuning(compile="blocks"),
    set_up_seconds=30.0,
    budgets={
        "matrix": 10,
        "unet": 45,
        "throughput": 95,
        "switches": 45,
        "quantisation": 45,
        "loop": 20,
        "decode": 20,
        "compile": 140,
        "load": 85,
        "controls": 15,
        "memory": 5,
    },
)
QUICK = Preset(
    TINY,
    torch.float32,
    matrix=(64, 256),
    sizes=(32, 64),
    widths=(1, 2, 4),
    steps=4,
    mixed_steps=(2, 4),
    backlog=8,
    arrivals=6,
    trials=6,
    rounds=1,
    repetitions=2,
    products=2,
    loop_steps=12,
    compiled=("blocks",),
    tuning=Tuning(),
    set_up_seconds=0.0,
    budgets=dict.fromkeys(FULL.budgets, 60.0),
)


@dataclass
class GpuBench:
    """One device, one preset; the models that parts share, built when first asked for."""

    preset: Preset
    device: torch.device
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    left_out: list[str] = field(default_factory=list)
    _until: float = float("inf")
    _tflop_of_row: dict[int, float] = field(default_factory=dict)
    # TFLOP/s of the quickest square matrix product in the preset's dtype, once `matrix` has measured it.
    rate: float | None = None

    # Models

    def build(self) -> PipelineParts:
        return build(self.preset.architecture, device=self.device, dtype=self.preset.dtype)

    @property
    def size(self) -> int:
        """Pixels a side, of what the bars are for."""
        return self.preset.sizes[-1]

    @property
    def info(self) -> BackendInfo:
        name = {torch.bfloat16: "bf16", torch.float32: "fp32"}[self.preset.dtype]
        limits = limits_of_size(self.size, self.size, "Euler")
        return BackendInfo(
            model=self.preset.architecture.name,
            revision="random weights, seed 0",
            backend="diffusers",
            device=self._described,
            dtype=name,
            limits=replace(limits, min_size=min(limits.min_size, *self.preset.sizes)),
            max_batch=self.preset.widths[-1],
            versions={**versions(), "cuda": str(torch.version.cuda)},
        )

    @property
    def _described(self) -> str:
        if self.device.type == "cuda":
            return f"{self.device} ({torch.cuda.get_device_name(self.device)})"
        return str(self.device)

    @cached_property
    def parts(self) -> PipelineParts:
        """Ours: what `backend` has tuned."""
        return self.build()

    @cached_property
    def backend(self) -> DiffusersBackend:
        return DiffusersBackend(self.parts, self.info, self.preset.tuning)

    @cached_property
    def recorder(self) -> RecordingBackend:
        return RecordingBackend(self.backend)

    @cached_property
    def engine(self) -> Engine:
        engine = Engine(self.recorder, max_queue=10_000)
        engine.warm_up([(size, size) for size in self.preset.sizes[:-1]])
        return engine

    @cached_property
    def eager(self) -> Reference:
        """diffusers as it comes."""
        return Reference(self.build())

    @cached_property
    def compiled(self) -> Reference:
        """diffusers laid out, fused and compiled as ours is, group norms and all; it records no passes."""
        reference = Reference(self.build())
        unet, vae = reference.pipeline.unet, reference.pipeline.vae
        unet.to(memory_format=torch.channels_last)
        vae.to(memory_format=torch.channels_last)
        with torch.no_grad():
            unet.fuse_qkv_projections()
        if self.preset.tuning.compile == "blocks":
            unet.compile_repeated_blocks(fullgraph=True, dynamic=True)
            keep_channels_last(unet)
            keep_channels_last(vae)
            for each in (unet, vae.encoder, vae.decoder):
                each.register_forward_pre_hook(lambda *_: prepare_compiling())
        return reference

    def forget_references(self) -> None:
        """Give back the memory of diffusers' sides; they are built anew when asked for."""
        for name in ("eager", "compiled"):
            self.__dict__.pop(name, None)
        self.empty_cache()

    def empty_cache(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        if "engine" in self.__dict__:
            self.engine.close()

    # Time

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """A budget for what follows."""
        self._until = time.perf_counter() + seconds
        try:
            yield
        finally:
            self._until = float("inf")

    @property
    def left(self) -> float:
        """Seconds left of the budget."""
        return self._until - time.perf_counter()

    def has_time(self, what: str, seconds: float = 0.0) -> bool:
        """Whether `what`, of about so many seconds, fits; where not, it is told as left out."""
        if self.left > seconds:
            return True
        self.left_out.append(f"{what}: out of time")
        return False

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(
        self, run: Callable[[], object], *, budget: float = 2.0, repetitions: int | None = None
    ) -> float:
        """Mean seconds of `run` over repetitions that are handed over together, after four that do not count:
        the first ones compile and record, the last tells how many there is time for.

        repetitions: at most; by default the preset's.
        """
        with torch.inference_mode():
            for _ in range(3):
                run()
            self.synchronise()
            began = time.perf_counter()
            run()
            self.synchronise()
            one = time.perf_counter() - began
            most = repetitions or self.preset.repetitions
            count = max(2, min(most, int(min(budget, self.left) / max(one, 1e-6))))
            began = time.perf_counter()
            for _ in range(count):
                run()
            self.synchronise()
        return (time.perf_counter() - began) / count

    # Work

    def mix(self, size: int, *, steps: tuple[int, ...] | None = None) -> Mix:
        guidance = (5.0,) if steps else (0.0, 3.0, 5.0, 7.5)
        return Mix(steps or self.preset.mixed_steps, guidance, size, size)

    def requests(self, mix: Mix, count: int) -> list[GenerationRequest]:
        return [mix.draw(self.rng, number) for number in range(count)]

    @contextmanager
    def started(self, backend: Backend, requests: Sequence[GenerationRequest]) -> Iterator[list[str]]:
        """The ids by which `backend` has begun `requests`; it forgets them afterwards."""
        ids = [f"started-{number}" for number in range(len(requests))]
        try:
            for request_id, request in zip(ids, requests, strict=True):
                backend.start(request_id, resolve(request, backend.info.limits))
            yield ids
        finally:
            for request_id in ids:
                backend.release(request_id)

    def tflop_of_row(self, size: int) -> float:
        if size not in self._tflop_of_row:
            self._tflop_of_row[size] = tflop_of_row(self.preset.architecture, size, size)
        return self._tflop_of_row[size]

    def tflop_of_image(self, size: int, steps: int) -> float:
        """TFLOP of one guided picture: two rows a step, and its decoding."""
        decode = tflop_of_decode(self.preset.architecture, size, size)
        return 2 * steps * self.tflop_of_row(size) + decode

    @property
    def matrix_rate(self) -> float:
        """`rate`, measured now if it was not yet."""
        if self.rate is None:
            self.rate = max(self.rate_of_product(side) for side in self.preset.matrix)
        return self.rate

    def rate_of_product(self, side: int) -> float:
        one, other = torch.randn(2, side, side, device=self.device, dtype=self.preset.dtype)
        # Long enough for the clock to settle at what the power allows, which is what passes run at.
        seconds = self.seconds_of(lambda: one @ other, budget=1.0, repetitions=self.preset.products)
        return 2 * side**3 / seconds / 1e12


def open_bench(*, quick: bool, device: str) -> GpuBench:
    """The benchmark on `device`, auto, cpu or cuda.

    Raises:
        SettingInvalid: no GPU, for the full size.
    """
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise SettingInvalid(f"device must be auto, cpu or cuda, not {device!r}", param="device")
    if name != "cpu" and not torch.cuda.is_available():
        raise SettingInvalid("there is no CUDA device on this machine", param="device")
    if name == "cpu" and not quick:
        raise SettingInvalid(
            "full-size SDXL is measured on a GPU, and there is none here; --quick shows that it runs",
            param="device",
        )
    return GpuBench(QUICK if quick else FULL, torch.device(name))


def run_parts(
    bench: GpuBench,
    parts: Sequence[str],
    table: dict[str, Callable[[GpuBench], list[Result]]],
    *,
    seconds: float = WHOLE_SECONDS,
    before: Callable[[str], object] = lambda _: None,
    after: Callable[[list[Result]], object] = lambda _: None,
) -> list[Result]:
    """The figures of `parts`. A part that fails is told as left out, and the others go on.

    seconds: what all of them may take, which they share by their budgets.
    before: told each part's name. after: told all figures so far, each time there are more.
    """
    began: float = time.perf_counter()
    results: list[Result] = []
    stretch = seconds / sum(bench.preset.budgets[name] for name in parts)
    for name in parts:
        before(name)
        remaining = seconds - (time.perf_counter() - began)
        if remaining <= 0:
            bench.left_out.append(f"{name}: out of time")
            continue
        part_began = time.perf_counter()
        with bench.within(min(stretch * bench.preset.budgets[name], remaining)):
            try:
                try:
                    results += table[name](bench)
                finally:
                    bench.empty_cache()
            except Exception as error:
                # Of whatever kind: torch's compiler has its own, and the figures of the others are not lost.
                bench.left_out.append(f"{name}: failed, {reason_of(error)}")
        results.append(Result(name, "seconds it took", time.perf_counter() - part_began, "", True))
        after(results)
    return results


def reason_of(error: Exception) -> str:
    """The first line of what it says."""
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]
