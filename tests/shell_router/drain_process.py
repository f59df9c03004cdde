"""A router process on the fake engine for `test_drain`: `python -m tests.shell_router.drain_process DRAIN_S`.

It holds each root before its second token until `POST /open`, and prints at its end what is left on the engine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from aiohttp import web

from shell_router.__main__ import serve
from shell_router.admission import Admission
from shell_router.app import build_app
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import Held, limited_service


async def main(drain_s: float) -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    app = build_app(limited_service(engine, Admission(running=1, waiting=1)), body_bytes=10_000)

    async def open_gate(_request: web.Request) -> web.Response:
        held.open.set()
        return web.json_response({})

    app.router.add_post("/open", open_gate)
    await serve(app, "127.0.0.1", 0, drain_s=drain_s)
    aborted = [request_id.rpartition("-")[2] for request_id in engine.aborted]
    print(json.dumps({"running": sorted(engine.running), "aborted": aborted}))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main(float(sys.argv[1])))
