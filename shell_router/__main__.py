"""`python -m shell_router --config FILE`: serve until SIGINT or SIGTERM, then let runs end."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec
from aiohttp import web

from shell_router.app import open_app
from shell_router.config import ConfigError, RouterConfig, load_json
from shell_router.edge import Runner
from shell_router.handlers.keys import SERVICE
from shell_router.logs import AccessLog, access_logger, configure

logger = logging.getLogger("shell_router")

_LEVELS = ("debug", "info", "warning", "error")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FAREWELL_S = 2.0
"""For a client to take the end of its answer when its run is over."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="shell_router", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="RouterConfig as JSON")
    parser.add_argument("--host", help="address to listen on, instead of the configuration's")
    parser.add_argument("--port", type=int, help="port to listen on, instead of the configuration's")
    parser.add_argument("--log-format", choices=("text", "json"), help="instead of the configuration's")
    parser.add_argument("--log-level", choices=_LEVELS, help="the least that is told, likewise")
    parser.add_argument("--access-log", action="store_true", help="tell of each request that has been answered")
    arguments = parser.parse_args()
    try:
        config = _configured(arguments)
        configure(config.log)
        asyncio.run(_run(config))
    except ConfigError as error:
        print(f"shell_router: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"shell_router: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


def _configured(arguments: argparse.Namespace) -> RouterConfig:
    """Raises `ConfigError`."""
    config = load_json(arguments.config, RouterConfig)
    own = {name: value for name in ("host", "port") if (value := getattr(arguments, name)) is not None}
    said = {"format": arguments.log_format, "level": arguments.log_level, "access": arguments.access_log or None}
    log = msgspec.structs.replace(config.log, **{name: value for name, value in said.items() if value is not None})
    try:
        return msgspec.convert(msgspec.structs.asdict(config) | own | {"log": log}, RouterConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--{', --'.join(own)}: {error}") from error


async def _run(config: RouterConfig) -> None:
    async with open_app(config) as app:
        await serve(app, config.host, config.port, drain_s=config.limits.drain_s)


async def serve(app: web.Application, host: str, port: int, *, drain_s: float) -> None:
    """Serve `app` until a signal. Then admit no run, let those there are go on for `drain_s`, and cancel what is left.

    A second signal cancels at once. Later ones change nothing: to free engines takes bounded time.
    """
    stop = asyncio.Event()
    _on_signals(stop.set)
    # Cancelling a handler whose client went away is what cancels its run. What handlers still have to send when their
    # runs are over is little.
    runner = Runner(
        app,
        handler_cancellation=True,
        shutdown_timeout=_FAREWELL_S,
        access_log=access_logger,
        access_log_class=AccessLog,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        bound_host, bound_port = runner.addresses[0][:2]
        logger.info("listening on http://%s:%s", bound_host, bound_port)
        await stop.wait()
        logger.info("draining: no run is admitted; those there are have %g s", drain_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s) as deadline:
                _on_signals(partial(_bring_forward, deadline))
                # The port stays open: `/ready` says 503, and clients can read what has become of their runs.
                await app[SERVICE].drain()
    finally:
        _on_signals(lambda: None)
        await runner.cleanup()


def _bring_forward(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(asyncio.get_running_loop().time())


def _on_signals(action: Callable[[], object]) -> None:
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, action)


if __name__ == "__main__":
    sys.exit(main())
