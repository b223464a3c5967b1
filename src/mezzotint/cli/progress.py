"""Live bars on a terminal; nothing where stderr is a file or a pipe."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Bars"]

# More bars than this would scroll the terminal; then one bar counts the steps of all.
MAX_BARS = 8


class Bars:
    """One bar an image, by its index; a context manager."""

    def __init__(self, images: int) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._images = images
        self._tasks: dict[int, TaskID] = {}
        self._steps: dict[int, int] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        if self._console.is_terminal:
            self._console.print(text, style="dim", highlight=False, markup=False)

    def waiting(self, index: int, eta_s: float) -> None:
        self._task(index, total=None, note=f" (about {eta_s:.0f} s)" if eta_s >= 1 else "")

    def step(self, index: int, step: int, total: int) -> None:
        """Image `index` has done `step` of `total` steps."""
        self._steps[index] = step
        together = self._images > MAX_BARS
        self._progress.update(
            self._task(index, total, note=""),
            completed=sum(self._steps.values()) if together else step,
            total=total * self._images if together else total,
        )

    def _task(self, index: int, total: int | None, note: str) -> TaskID:
        together = self._images > MAX_BARS
        key = 0 if together else index
        name = f"{self._images} images" if together else f"image {index}"
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(name, total=total)
        self._progress.update(self._tasks[key], description=name + note)
        return self._tasks[key]
