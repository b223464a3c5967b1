"""Plain checks of a request's values, each refused with its name and what is accepted."""

from __future__ import annotations

from typing import TypeVar

from mezzotint.core import MAX_PROMPT_CHARACTERS, ModelLimits
from mezzotint.errors import InvalidRequest

__all__ = ["check_range", "check_size", "check_text", "or_default", "shown"]

_T = TypeVar("_T")


def or_default(value: _T | None, default: _T, kind: type | tuple[type, ...], name: str) -> _T:
    """The value, or the default where there is none.

    Raises:
        InvalidRequest: on `name`, when it is of another kind.
    """
    if value is None:
        return default
    # bool is an int to Python, and a mistake to anyone who sends it as a number of steps.
    if isinstance(value, bool) or not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        accepted = " or ".join(each.__name__ for each in kinds)
        raise InvalidRequest(f"{name} must be {accepted}, not {shown(value)}", param=name)
    return value


def check_text(name: str, text: object, *, required: bool) -> None:
    """Refuse what is no text, too long or no Unicode; where one is required, an empty one.

    Raises:
        InvalidRequest: on `name`.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} must be text, not {type(text).__name__}", param=name)
    if required and not text.strip():
        raise InvalidRequest(f"{name} is empty; say what to draw", param=name)
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise InvalidRequest(
            f"{name} has {len(text):,} characters; at most {MAX_PROMPT_CHARACTERS:,} are accepted",
            param=name,
        )
    # Lone surrogates cannot be written to a file or a header as UTF-8, and no tokenizer knows them.
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{name} is not valid Unicode text", param=name)


def check_range(name: str, value: float, low: float, high: float, where: str = "") -> None:
    """Refuse a value outside low…high. `where`: said behind that, in which case it holds.

    Raises:
        InvalidRequest: on `name`.
    """
    # The comparison is written so that NaN fails it.
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be {low:g}…{high:,}{where}, not {shown(value)}", param=name)


def check_size(width: int, height: int, limits: ModelLimits) -> None:
    """Refuse a size that the model does not draw.

    Raises:
        InvalidRequest: on `width`, `height` or `size`.
    """
    if limits.served is not None:
        # One rule in the place of three, so that every refusal names the sizes there are.
        if (width, height) not in limits.served:
            served = ", ".join("{}x{}".format(*size) for size in limits.served)
            raise InvalidRequest(
                f"{shown(width)}x{shown(height)} is not compiled; this server draws {served}", param="size"
            )
        return
    for name, value in (("width", width), ("height", height)):
        if value % 8 or not limits.min_size <= value <= limits.max_size:
            raise InvalidRequest(
                f"{name} must be a multiple of 8 from {limits.min_size} to {limits.max_size}, "
                f"not {shown(value)}",
                param=name,
            )
    if width * height > limits.max_pixels:
        raise InvalidRequest(
            f"{width}x{height} is {width * height:,} pixels; at most {limits.max_pixels:,} are accepted",
            param="size",
        )


def shown(value: object) -> str:
    """A value as an error message can hold it. Python itself refuses to print integers of huge length."""
    if isinstance(value, int) and abs(value) > 10**30:
        return "a number of more than 30 digits"
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"
