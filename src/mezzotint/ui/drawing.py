"""One drawing as a page tells it: what was asked for, how far it is, what came of it. News in, state out.

It also goes into the browser's own storage and comes back from there, where anyone may have written to it.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from mezzotint.ui.names import FILE_NAME, JOB_ID

__all__ = ["FINAL", "SIZE", "WORDLESS", "Drawing", "Shape", "State"]

State = Literal["asked", "queued", "running", "done", "failed", "cancelled", "lost"]
"""The job's own; before them `asked`, until the service has answered; after them `lost`, when it knows the
job no longer.
"""
FINAL = frozenset({"done", "failed", "cancelled", "lost"})
SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")
MAX_PROMPT = 300
# What stands for a prompt where there is none.
WORDLESS = "From a picture alone"
MAX_PICTURES = 10
MAX_SAID = 500
# Beyond this a float is not exact to the second.
MAX_AT = 2**53

Shape = tuple[int, int]


@dataclass
class Drawing:
    """at: when it was asked for, seconds since 1970. seed: the first picture's. steps: of the furthest one.

    finished: the pictures that can be fetched. previews: the file's name of each that can not yet.
    said: why it failed, or what the receipts warn of, in the service's words. heard: the id of the last event
    that was taken.
    """

    id: str
    prompt: str
    n: int
    size: Shape
    at: float
    seed: int | None = None
    state: State = "queued"
    cancelling: bool = False
    progress: float = 0.0
    steps: int = 0
    total_steps: int = 0
    position: int | None = None
    eta_s: float | None = None
    finished: set[int] = field(default_factory=set)
    previews: dict[int, str] = field(default_factory=dict)
    code: str = ""
    said: str = ""
    heard: str = ""

    @classmethod
    def asked_for(cls, prompt: str, n: int, size: str) -> Drawing:
        """Before the service has answered: the id is the page's own. `size` as in a job, or empty."""
        id = f"asked_{secrets.token_hex(8)}"
        # A browser may send any number, which the service then refuses.
        return cls(id, prompt[:MAX_PROMPT], min(n, MAX_PICTURES), _size(size), time.time(), state="asked")

    @classmethod
    def of_job(cls, job: Mapping[str, Any], prompt: str) -> Drawing:
        """Of the service's answer to a new job."""
        drawing = cls(
            str(job["id"]),
            prompt[:MAX_PROMPT],
            int(job["n"]),
            _size(job.get("size")),
            float(job["created_at"]),
        )
        drawing.take_job(job)
        return drawing

    @classmethod
    def of_kept(cls, kept: object) -> Drawing | None:
        """From the browser's storage. None where that is no drawing."""
        if not isinstance(kept, Mapping):
            return None
        id, prompt, n, at = (kept.get(name) for name in ("id", "prompt", "n", "at"))
        if not isinstance(id, str) or not JOB_ID.fullmatch(id) or not isinstance(prompt, str):
            return None
        if (
            type(n) is not int
            or not 1 <= n <= MAX_PICTURES
            or not isinstance(at, int | float)
            or not 0 <= at <= MAX_AT
        ):
            return None
        drawing = cls(id, prompt[:MAX_PROMPT], n, _size(kept.get("size")), min(float(at), time.time()))
        seed, state = kept.get("seed"), kept.get("state")
        drawing.seed = int(seed) if isinstance(seed, str) and re.fullmatch(r"\d{1,19}", seed) else None
        # A set takes no list, of which a tuple only says that it is not there.
        if state in get_args(State) and state in FINAL:
            drawing.state = state
            finished = kept.get("finished", ())
            drawing.finished = {i for i in range(n) if isinstance(finished, list) and i in finished}
            drawing.said, drawing.code = (str(kept.get(name, ""))[:MAX_SAID] for name in ("said", "code"))
        return drawing

    def kept(self) -> dict[str, Any]:
        """For the browser's storage. What is not over is told anew by the service."""
        told: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompt,
            "n": self.n,
            "size": "x".join(map(str, self.size)),
            "at": self.at,
            # As text: a browser's numbers are not exact beyond 2⁵³.
            "seed": "" if self.seed is None else str(self.seed),
            "state": self.state if self.is_over else "queued",
        }
        if self.is_over:
            told["finished"] = sorted(self.finished)
        if self.said:
            told.update(said=self.said, code=self.code)
        return told

    @property
    def is_over(self) -> bool:
        return self.state in FINAL

    def take(self, kind: str, data: Mapping[str, Any], event_id: str = "") -> None:
        """One event of the job's stream."""
        self.heard = event_id or self.heard
        match kind:
            case "queued":
                self.state, self.position, self.eta_s = "queued", None, None
            case "running":
                self.state, self.position = "running", None
            case "progress":
                self._take_progress(data)
            case "preview" | "image":
                self._take_picture(kind, data)
            case "done" | "failed" | "cancelled":
                self.take_job(data)

    def take_job(self, job: Mapping[str, Any]) -> None:
        """The whole job, as the service tells it."""
        state: Any = job.get("state")
        if state in get_args(State):
            self.state = state
        self.cancelling = bool(job.get("cancelling"))
        self.seed = next(iter(job.get("seeds") or ()), self.seed)
        images = job.get("images") or ()
        self.finished |= {int(image["index"]) for image in images}
        # The same of each picture, for the most part.
        warned = {text: None for image in images for text in (image.get("receipt") or {}).get("warnings", ())}
        self.said = " ".join(map(str, warned))[:MAX_SAID] or self.said
        self.progress = float(job.get("progress") or self.progress)
        self.position, self.eta_s = job.get("position"), job.get("eta_s")
        if job.get("error"):
            self.said, self.code = str(job["error"].get("message", "")), str(job["error"].get("code", ""))
        if self.is_over:
            self.previews, self.cancelling = {}, False

    def lose(self) -> None:
        """The service does not know it any more."""
        self.state, self.previews, self.finished = "lost", {}, set()

    def _take_progress(self, data: Mapping[str, Any]) -> None:
        self.progress = float(data.get("progress") or 0.0)
        self.steps = max(data.get("steps") or (0,))
        self.total_steps = int(data.get("total_steps") or 0)
        self.position, self.eta_s = data.get("position"), data.get("eta_s")

    def _take_picture(self, kind: str, data: Mapping[str, Any]) -> None:
        index, name = int(data["index"]), str(data.get("url", "")).rpartition("/")[2]
        if kind == "image":
            self.finished.add(index)
            self.previews.pop(index, None)
        elif FILE_NAME.fullmatch(name):
            self.previews[index] = name


def _size(text: object) -> Shape:
    found = SIZE.fullmatch(text) if isinstance(text, str) else None
    return (int(found[1]), int(found[2])) if found else (1, 1)
