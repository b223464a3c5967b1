"""Every error Mezzotint raises on purpose, in one tree; and what the system's own say.

::

    MezzotintError
    ├── InvalidRequest        400  a value the caller can correct; `param` names it
    ├── NotSupported          400  a field that is known and not served here yet
    ├── Unauthenticated       401  no key, or one that is wrong, revoked or expired
    ├── PermissionDenied      403  the key may not do this
    ├── ModelNotFound         404  no such model in the catalogue or on disk
    ├── JobNotFound           404  no such job, or it is another key's
    ├── ImageNotFound         404  no such stored picture, or it has expired
    ├── BodyTooSlow           408  the body stalls, or comes too slowly
    ├── IdempotencyConflict   409  the same Idempotency-Key with another body
    ├── PayloadTooLarge       413  the body, or an image's bytes or pixels
    ├── UnsupportedImage      415  an upload that is no PNG, JPEG or WebP
    ├── HeadersTooLarge       431  too many header fields, or too long
    ├── RateLimited           429  the key's rate, concurrency or quota is used up
    ├── QueueFull             429  the backlog is at its limit; `retry_after_s` is computed from it
    ├── DeadlineUnreachable   429  the backlog, or the picture itself, is too long for the request's deadline
    ├── RequestCancelled      499  the caller left or asked to stop
    ├── ModelInvalid          500  weights that are corrupt, missing, altered or not safetensors
    ├── GenerationFailed      500  the model produced no usable picture (NaN, a backend fault)
    ├── SettingInvalid        500  a setting of this process is wrong; found at start-up
    ├── OutputUnwritable      500  a picture was drawn but could not be written where asked
    ├── DeployFailed          500  a stage of `mezzotint deploy` failed
    ├── StoreUnavailable      503  the database or the image store does not answer
    ├── ModelLoading          503  no replica is ready to draw yet, or just now
    ├── ReplicaLost           503  the replica ended while it drew the picture
    ├── ShuttingDown          503  the engine is closing
    └── DeadlineExceeded      504  the request's own deadline passed; asking again only burns more

Each class carries what a surface needs to answer (`status`, `type`, `code`, `retry_after_s`), so one
handler per surface maps them all. `code` is unique and every class a direct child of the root, so an error
can cross a process as data and come back. Messages are sentences for the caller: they name the field, say
what is accepted, and never carry a traceback or a path of the server that the caller did not name.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "MAX_RETRY_AFTER_SECONDS",
    "RETRY_AFTER_SECONDS",
    "BodyTooSlow",
    "DeadlineExceeded",
    "DeadlineUnreachable",
    "DeployFailed",
    "GenerationFailed",
    "HeadersTooLarge",
    "IdempotencyConflict",
    "ImageNotFound",
    "InvalidRequest",
    "JobNotFound",
    "MezzotintError",
    "ModelInvalid",
    "ModelLoading",
    "ModelNotFound",
    "NotSupported",
    "OutputUnwritable",
    "PayloadTooLarge",
    "PermissionDenied",
    "QueueFull",
    "RateLimited",
    "ReplicaLost",
    "RequestCancelled",
    "SettingInvalid",
    "ShuttingDown",
    "StoreUnavailable",
    "Unauthenticated",
    "UnsupportedImage",
    "os_error_text",
]

# What a client is told where nobody knows better, and at most: the official OpenAI clients give up instead of
# waiting longer.
RETRY_AFTER_SECONDS = 2.0
MAX_RETRY_AFTER_SECONDS = 120.0
# Characters. Both may repeat what the client sent, whose length nothing else bounds.
MAX_MESSAGE = 500
MAX_PARAM = 100


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

    def to_dict(self) -> dict[str, Any]:
        """What a client is told, as JSON's types: `message`, `type`, `param`, `code`."""
        return {
            "message": _cut(self.message, MAX_MESSAGE),
            "type": self.type,
            "param": None if self.param is None else _cut(self.param, MAX_PARAM),
            "code": self.code,
        }


def _cut(text: str, length: int) -> str:
    # JSON's escapes can name half a character, which no answer can hold.
    text = text.encode(errors="replace").decode()
    return text if len(text) <= length else text[: length - 1] + "…"


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


class ReplicaLost(MezzotintError):
    """The replica ended while it drew the picture, which may be what ended it."""

    status = 503
    code = "replica_lost"
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


class DeployFailed(MezzotintError):
    """A stage of `mezzotint deploy` failed. The message may have several lines."""

    code = "deploy_failed"


class NotSupported(MezzotintError):
    """A field that other servers know and this one does not serve yet. `param` is the field."""

    status = 400
    type = "invalid_request_error"
    code = "not_supported"


class Unauthenticated(MezzotintError):
    """No key where one is needed, or one that is wrong, revoked or expired, without saying which."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class PermissionDenied(MezzotintError):
    """The key is known and may not do this."""

    status = 403
    type = "permission_error"
    code = "permission_denied"


class JobNotFound(MezzotintError):
    """No such job. Another key's job is answered the same."""

    status = 404
    type = "invalid_request_error"
    code = "job_not_found"


class ImageNotFound(MezzotintError):
    """No such stored picture, or it has expired."""

    status = 404
    type = "invalid_request_error"
    code = "image_not_found"


class IdempotencyConflict(MezzotintError):
    """The same Idempotency-Key was used with another body."""

    status = 409
    type = "invalid_request_error"
    code = "idempotency_conflict"


class PayloadTooLarge(MezzotintError):
    """The body, or an image in it, has too many bytes or pixels."""

    status = 413
    type = "invalid_request_error"
    code = "payload_too_large"


class UnsupportedImage(MezzotintError):
    """An upload that is no PNG, JPEG or WebP that can be read."""

    status = 415
    type = "invalid_request_error"
    code = "unsupported_image"


class RateLimited(MezzotintError):
    """The key's rate, concurrency or quota is used up until `retry_after_s`."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    retryable = True


class DeadlineUnreachable(MezzotintError):
    """The backlog is too long for the request's deadline; nothing was queued.

    Without a `retry_after_s` the picture takes longer with nothing ahead of it: asking again is of no use.
    """

    status = 429
    type = "rate_limit_error"
    code = "deadline_unreachable"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, param=param, retry_after_s=retry_after_s)
        self.retryable = retry_after_s is not None


class StoreUnavailable(MezzotintError):
    """The database or the image store does not answer."""

    status = 503
    code = "store_unavailable"
    retryable = True


class BodyTooSlow(MezzotintError):
    """The request's body stalls, or comes too slowly to wait for."""

    status = 408
    type = "invalid_request_error"
    code = "body_too_slow"
    # Nothing was begun, and a connection that stalled once may not the next time.
    retryable = True


class HeadersTooLarge(MezzotintError):
    """The request's header has too many fields, or too many bytes."""

    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"


def os_error_text(error: Exception) -> str:
    """Why a file, a folder or a socket cannot be used: `permission denied`, without its path or a number."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
