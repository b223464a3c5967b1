"""What the fields of every surface have in common: how a client says nothing."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, model_validator

__all__ = ["Fields"]


class Fields(BaseModel):
    """A field that is null or the empty text is as good as left out: a form that nobody filled in sends that.
    But for the prompt, which may be asked to be empty, or refused for it."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        kept = cls.model_fields.keys() - {"prompt"}
        said = {name: value for name, value in sent.items() if name not in kept or value not in (None, "")}
        if cls.model_config.get("extra") == "forbid":
            # One is told of; with a hundred thousand of them, to find the others takes a second.
            for unknown in [name for name in said if name not in cls.model_fields][1:]:
                del said[unknown]
        return said
