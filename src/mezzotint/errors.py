"""Every error Mezzotint raises on purpose, in one tree.

::

    MezzotintError
    ├── InvalidRequest        400  a value the caller can correct; `param` names it
    ├── ModelNotFound         404  no such model in the catalogue or on disk
    ├── ModelInvalid          500  weights that are corrupt, missing, altered or not safetensors
    ├── QueueFull             429  the backlog is at its limit; `retry_after_s` is computed from it
    ├── DeadlineExceeded      504  the request's own deadline passed; asking again only burns more
    ├── GenerationFailed      500  the model produced no usable picture (NaN, a backend fault)
    ├── RequestCancelled      499  the caller left or asked to stop
    ├── ModelLoading          503  no replica is ready to draw yet, or just now
    ├── ShuttingDown          503  the engine is closing
    ├── SettingInvalid        500  a setting of this process is wrong; found at start-up
    └── OutputUnwritable      500  a picture was drawn but could not be written where asked

Each class carries what a surface needs to answer (`status`, `type`, `code`, `retry_after_s`), so one
handler per surface maps them all. `code` is unique and every class a direct child of the root, so an error
can cross a process as data and come back. Messages are sentences for the caller: they name the field, say
what is accepted, and never carry a traceback or a path of the server that the caller did not name.
"""

from __future__ import annotations

__all__ = [
    "DeadlineExceeded",
    "GenerationFailed",
    "InvalidRequest",
    "MezzotintError",
    "ModelInvalid",
    "ModelLoading",
    "ModelNotFound",
    "OutputUnwritable",
    "QueueFull",
    "RequestCancelled",
    "SettingInvalid",
    "ShuttingDown",
]


class MezzotintError(Exception):
    """The root of the tree. Not raised itself."""

    status = 500
    type = "server_error"
    code = "internal_error"
    # Whether the same request may succeed when sent again (the `x-should-retry` header).
    retryable = False

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s


class InvalidRequest(MezzotintError):
    """A field's value is not accepted. `param` is the field, the message says what is."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class ModelNotFound(MezzotintError):
    """No model of this name: neither in the catalogue nor a folder or file on disk."""

    status = 404
    type = "invalid_request_error"
    code = "model_not_found"


class ModelInvalid(MezzotintError):
    """A model's files are corrupt, missing, altered, or of a kind that is not read."""

    code = "model_invalid"


class QueueFull(MezzotintError):
    """No room in the queue now; come back after `retry_after_s`."""

    status = 429
    type = "rate_limit_error"
    code = "queue_full"
    retryable = True


class DeadlineExceeded(MezzotintError):
    """The request's deadline passed before its picture was done."""

    status = 504
    type = "timeout_error"
    code = "deadline_exceeded"


class GenerationFailed(MezzotintError):
    """The model or the device failed on this request."""

    code = "generation_failed"


class RequestCancelled(MezzotintError):
    """The caller left or asked to stop."""

    status = 499
    type = "cancelled"
    code = "cancelled"


class ModelLoading(MezzotintError):
    """No replica is ready to draw yet, or just now."""

    status = 503
    code = "model_loading"
    retryable = True


class ShuttingDown(MezzotintError):
    """The engine is closing and takes no new work."""

    status = 503
    code = "shutting_down"
    retryable = True


class SettingInvalid(MezzotintError):
    """A setting of this process is wrong; the message names it and the accepted range."""

    code = "setting_invalid"


class OutputUnwritable(MezzotintError):
    """The output path cannot be written."""

    code = "output_unwritable"
