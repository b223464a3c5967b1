"""The port that a server listens on: found free, or refused."""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress

from mezzotint.errors import SettingInvalid, os_error_text

__all__ = ["cannot_listen", "choose_port"]

# Between the ports that Ray gives its workers and those the system gives to whoever asks for any.
FREE_PORTS = range(20_000, 32_000)
FREE_PORT_TRIES = 20


def choose_port(host: str, port: int) -> int:
    """`port`, or a free one for 0.

    Raises:
        SettingInvalid: the port is taken, or the address is not this machine's.
    """
    # Not the system's own choice for 0: Ray's processes take from the same range a moment later, one of them
    # now and then this very port.
    candidates = [port] if port else secrets.SystemRandom().sample(FREE_PORTS, FREE_PORT_TRIES)
    for candidate in candidates[:-1]:
        with suppress(OSError):
            return _probe(host, candidate)
    try:
        return _probe(host, candidates[-1])
    except OSError as error:
        raise cannot_listen(host, port, os_error_text(error)) from None


def _probe(host: str, port: int) -> int:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # As the server will bind: a port whose last connections still linger counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        return int(probe.getsockname()[1])


def cannot_listen(host: str, port: int, reason: str) -> SettingInvalid:
    return SettingInvalid(
        f"cannot listen on {host} port {port}: {reason}; choose another with --host or --port", param="port"
    )
