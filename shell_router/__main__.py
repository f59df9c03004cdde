"""`python -m shell_router --config FILE`: serve until SIGINT or SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from aiohttp import web

from shell_router.app import open_app
from shell_router.config import ConfigError, RouterConfig, load_json


def main() -> int:
    parser = argparse.ArgumentParser(prog="shell_router", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="RouterConfig as JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    try:
        asyncio.run(_serve(load_json(arguments.config, RouterConfig)))
    except ConfigError as error:
        print(f"shell_router: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"shell_router: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


async def _serve(config: RouterConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with open_app(config) as app:
        # Cancelling a handler whose client went away is what cancels its run.
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, config.host, config.port)
            await site.start()
            host, port = runner.addresses[0][:2]
            logging.getLogger("shell_router").info("listening on http://%s:%s", host, port)
            await stop.wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    sys.exit(main())
