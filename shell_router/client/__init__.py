"""The client of the shell router's API, for programs: `AsyncClient`, and `Client` for those without an event loop."""

from __future__ import annotations

from shell_router.client.answer import Answer, Told, Usage
from shell_router.client.asynchronous import AsyncClient
from shell_router.client.errors import ClientError, StreamError
from shell_router.client.key import KEY_VARIABLE, client_key
from shell_router.client.stream import Stream
from shell_router.client.synchronous import Client, SyncStream

__all__ = [
    "KEY_VARIABLE",
    "Answer",
    "AsyncClient",
    "Client",
    "ClientError",
    "Stream",
    "StreamError",
    "SyncStream",
    "Told",
    "Usage",
    "client_key",
]
