"""What is known of a model before it is loaded: enough to refuse a mistake at once."""

from __future__ import annotations

from mezzotint.core import ModelLimits

__all__ = ["limits_of_installed"]


def limits_of_installed(model: str) -> ModelLimits:
    """The limits of a model that is on this machine. Imports no torch.

    Raises:
        ModelNotFound, ModelInvalid: it is not here, or its configuration is unreadable.
    """
    if model.partition(":")[0] == "fake":
        from mezzotint.backends.fake import FakeBackend

        return FakeBackend.from_name(model).info.limits
    from mezzotint.models.locations import find_model, limits_of

    find_model(model)
    return limits_of(model)
