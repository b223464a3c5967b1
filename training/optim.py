"""What the trainings share: a schedule in elapsed time, an average of the weights, Muon, the loop.

Time-based schedules: a run is given seconds, not steps, so on a busy machine it still finishes annealing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def learning_rate(progress: float, peak: float, warm_up: float = 0.02, floor: float = 0.01) -> float:
    """Linear warm-up, then a cosine to ``floor`` × peak; ``progress`` is elapsed time over budget, 0..1."""
    if progress < warm_up:
        return peak * max(progress / warm_up, 0.01)
    fraction = min((progress - warm_up) / (1.0 - warm_up), 1.0)
    return peak * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * fraction)))


def clock_of(device: str, threads: int) -> Callable[[], float]:
    """What budgets are counted in: seconds of each thread's work, or a GPU's wall clock.

    A run on processors that others use too, or that is stopped for a while, does as much as one that has
    them alone.
    """
    return (lambda: time.process_time() / threads) if device == "cpu" else time.monotonic


class Average:
    """Exponential moving average of a module's parameters, with warm-up (decay grows with the steps)."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.values = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for key, value in module.state_dict().items():
            mine = self.values[key]
            if mine.dtype.is_floating_point:
                mine.lerp_(value, 1.0 - decay)
            else:
                mine.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "values": self.values}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        self.values = state["values"]


def orthogonalise(matrix: Tensor, steps: int = 4) -> Tensor:
    """Newton–Schulz iteration towards the nearest semi-orthogonal matrix (Jordan et al., Muon, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    # Half precision is enough: the iteration only has to bring singular values near one.
    x = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x if wide else x.T).to(matrix.dtype)
    return result


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weights of two or more dimensions (convolutions as matrices).

    The update is scaled by 0.2·sqrt(max(rows, columns)) so that its root mean square matches AdamW's
    and the learning rates are of one kind (Liu et al., 2025, arXiv:2502.16982).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p.grad)
                momentum = state["momentum"]
                momentum.lerp_(p.grad, 1.0 - group["momentum"])
                ahead = p.grad.lerp(momentum, group["momentum"])
                matrix = ahead.reshape(ahead.shape[0], -1)
                update = orthogonalise(matrix) * (0.2 * max(matrix.shape) ** 0.5)
                p.add_(update.reshape(p.shape), alpha=-group["lr"])


def optimisers(modules: Iterable[nn.Module], kind: str, peak: float) -> list[torch.optim.Optimizer]:
    """AdamW over everything, or Muon over the matrices and AdamW over the rest."""
    named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
    if kind == "adamw":
        return [
            torch.optim.AdamW(
                [p for _, p in named], lr=peak, betas=(0.9, 0.98), weight_decay=1e-3, fused=True
            )
        ]
    if kind != "muon":
        raise ValueError(f"optimiser {kind!r} is not one of adamw, muon")
    matrices = [p for n, p in named if p.ndim >= 2 and "embedding" not in n]
    rest = [p for n, p in named if not (p.ndim >= 2 and "embedding" not in n)]
    return [
        Muon(matrices, lr=peak),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


class Trainer:
    """Weights in training, with all that goes on where a run was cut off: a checkpoint at ``path``."""

    def __init__(self, label: str, model: nn.Module, path: Path, optimiser: str, rate: float) -> None:
        self.label, self.model, self.path, self.rate = label, model, path, rate
        self.solvers = optimisers([model], optimiser, rate)
        self.average = Average(model, 0.999)
        self.elapsed, self.step = 0.0, 0
        if path.exists():
            state = torch.load(path, weights_only=True)
            model.load_state_dict(state["model"])
            for solver, values in zip(self.solvers, state["solvers"], strict=True):
                solver.load_state_dict(values)
            self.average.load_state_dict(state["average"])
            self.elapsed, self.step = state["elapsed"], state["step"]

    def run(self, losses: Iterator[Tensor], budget: float, clock: Callable[[], float], every: float) -> None:
        """Go down each of the ``losses`` for ``budget`` seconds of ``clock``, saving ``every`` so many."""
        start, saved, running = clock() - self.elapsed, time.monotonic(), 0.0
        while (elapsed := clock() - start) < budget:
            for solver in self.solvers:
                for group in solver.param_groups:
                    group["lr"] = learning_rate(elapsed / budget, self.rate)
            loss = next(losses)
            self._descend(loss)
            self.step += 1
            running += float(loss.detach())
            if self.step % 50 == 0:
                print(f"{self.label} {elapsed:.0f}s step {self.step} loss {running / 50:.5f}", flush=True)
                running = 0.0
            if time.monotonic() - saved > every:
                self._save(clock() - start)
                saved = time.monotonic()
        self._save(clock() - start)
        print(f"{self.label} done step {self.step}", flush=True)

    def _descend(self, loss: Tensor) -> None:
        for solver in self.solvers:
            solver.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for solver in self.solvers:
            solver.step()
        self.average.update(self.model)

    def _save(self, elapsed: float) -> None:
        self.elapsed = elapsed
        state = {
            "model": self.model.state_dict(),
            "solvers": [solver.state_dict() for solver in self.solvers],
            "average": self.average.state_dict(),
            "elapsed": elapsed,
            "step": self.step,
        }
        torch.save(state, self.path.with_suffix(".tmp"))
        self.path.with_suffix(".tmp").replace(self.path)
