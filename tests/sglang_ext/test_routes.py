"""What our routes add to SGLang's answers."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ext import protocol

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize(
    ("kind", "path", "named"),
    [("http", "/generate", True), ("http", "/health", False), ("websocket", "/generate", False)],
)
async def test_the_worker_is_named_in_the_headers_of_generate_alone(kind: str, path: str, named: bool) -> None:
    from sglang_ext.routes import WORKER, NameWorker

    async def app(_scope: dict[str, Any], _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"data"})

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await NameWorker(app)({"type": kind, "path": path}, None, send)
    start, body = sent
    header = (protocol.WORKER_HEADER.encode(), WORKER.encode())
    assert start["headers"] == [(b"a", b"b"), *([header] if named else [])]
    assert body == {"type": "http.response.body", "body": b"data"}
