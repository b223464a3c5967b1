"""Ports of this machine for what takes none by itself."""

from __future__ import annotations

from mezzotint.serve.ports import choose_port

__all__ = ["free_port"]


def free_port() -> int:
    """A port nobody has, below those that the system gives to whoever asks for any."""
    return choose_port("127.0.0.1", 0)
