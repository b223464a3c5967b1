"""What is known of a model before it is loaded: enough to refuse a mistake at once."""

from __future__ import annotations

from collections.abc import Sequence

from mezzotint.core import ModelLimits

__all__ = ["limits_of_installed"]


def limits_of_installed(
    model: str,
    loras: Sequence[str] = (),
    controlnets: Sequence[str] = (),
    embeddings: Sequence[str] = (),
    ip_adapters: Sequence[str] = (),
    image_encoder: str = "",
) -> ModelLimits:
    """The limits of a model that is on this machine, with its own LoRAs, ControlNets, embeddings and
    IP-Adapters and those that are given. Imports no torch.

    Raises:
        ModelNotFound, ModelInvalid: it is not here, or its configuration is unreadable.
        SettingInvalid: one of them is not there.
    """
    if model.partition(":")[0] == "fake":
        from mezzotint.backends.fake import FakeBackend

        return FakeBackend.from_name(model).info.limits
    from mezzotint.models.added import find_added
    from mezzotint.models.locations import find_model, limits_of

    path = find_model(model)
    added = find_added(path, loras, controlnets, embeddings, ip_adapters, image_encoder)
    return added.on(limits_of(model))
