"""Choosing TCP ports for processes that are about to start."""

from __future__ import annotations

import random
import socket

from shell_router.errors import GraftError

# Below the range that Linux takes ports for outgoing connections from: such a connection cannot
# take a port between our choice and the moment the process listens on it.
_LOWEST, _HIGHEST = 20000, 32000
_TRIES = 200


class NoFreePort(GraftError):
    """No port could be found."""


def in_use(host: str, port: int) -> bool:
    """Whether another process listens on `port`, so that a server could not."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def is_forbidden(host: str, port: int) -> bool:
    """Whether this user may not listen on `port`, whoever else does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((host, port))
        except PermissionError:
            return True
        except OSError:
            return False
    return False


def is_mine(address: str) -> bool:
    """Whether servers on this machine can listen on `address`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


class PortChooser:
    """Gives each port at most once, and never one of `reserved`."""

    def __init__(self, reserved: set[int]) -> None:
        self._taken = set(reserved)

    def __call__(self) -> int:
        for _ in range(_TRIES):
            port = random.randint(_LOWEST, _HIGHEST)
            if port not in self._taken and not in_use("0.0.0.0", port):
                self._taken.add(port)
                return port
        raise NoFreePort(f"no free port found between {_LOWEST} and {_HIGHEST}")
