"""HTTP routes the extension adds to a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from sglang_ext import protocol


def add(app: Any, status: Callable[[], protocol.Status]) -> None:
    """Add our routes to SGLang's FastAPI `app`; `status` is asked anew at each request."""
    from fastapi import Response

    async def get_status() -> Response:
        return Response(msgspec.json.encode(status()), media_type="application/json")

    app.add_api_route(protocol.STATUS_PATH, get_status, methods=["GET"], response_model=None)
