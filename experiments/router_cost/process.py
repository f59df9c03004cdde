"""The processes that are measured: a shell router started here, or that of a cluster, and what CPU time they took."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import psutil

from experiments.kernel.target import TargetError
from launch import checkpoint, ports, shipped, state
from launch.command import Command
from launch.process import ChildProcess, stop
from shell_router.config import EmbeddingConfig, ModelConfig, PairConfig, RouterConfig

TREE = "tree_9_3_1"
CHAIN = "chain_2"
_GRACE_S = 5.0
"""Between SIGTERM and SIGKILL."""


class RouterProcess:
    """A shell router's process, the only child of its guardian; its own children are its assessing process."""

    def __init__(self, guardian_pid: int) -> None:
        self._router = psutil.Process(guardian_pid).children()[0]

    def cpu_s(self) -> float:
        """CPU seconds of the router without its children."""
        return _cpu_s(self._router)

    def assessor_cpu_s(self) -> float:
        """CPU seconds of the assessing process and of all that it started."""
        return sum(_cpu_s(process) for process in self._router.children(recursive=True))


@contextlib.asynccontextmanager
async def router_process(engine_url: str, embedding: str | None = None) -> AsyncIterator[tuple[str, RouterProcess]]:
    """A shell router in front of the engine at `engine_url`, with the embedding model `embedding`: its URL and process.

    Raises `TargetError` when it does not come up.
    """
    config = RouterConfig(
        port=ports.PortChooser(set())(),
        models=(
            ModelConfig(
                name="smollm2",
                tokenizer=checkpoint.resolve("builtin:tiny-llama"),
                router_url=engine_url,
                pairs=(PairConfig(prefill=engine_url, decode=engine_url),),
                context_length=100_000,
            ),
        ),
        trees=tuple(str(shipped.folder("trees") / f"{name}.json") for name in (TREE, CHAIN)),
        embedding=None if embedding is None else EmbeddingConfig(path=checkpoint.resolve(embedding)),
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "router.json"
        file.write_bytes(msgspec.json.encode(config))
        url = f"http://{config.host}:{config.port}"
        argv = (sys.executable, "-m", "shell_router", "--config", str(file))
        child = ChildProcess(Command("shell_router", argv), url, Path(folder))
        try:
            await _wait_ready(url, child)
            yield url, RouterProcess(child.pid)
        finally:
            await asyncio.to_thread(stop, [child], _GRACE_S)


def cluster_router(name: str, url: str) -> RouterProcess:
    """The shell router at `url` of the running cluster `name`. Raises `TargetError` when there is none."""
    found = state.read(name)
    for process in found.processes if found is not None else ():
        if process.url == url:
            return RouterProcess(process.id.pid)
    raise TargetError(f"the process of cluster {name}'s shell router cannot be found")


async def _wait_ready(url: str, child: ChildProcess) -> None:
    async with aiohttp.ClientSession() as client:
        while child.exit_code is None:
            with contextlib.suppress(aiohttp.ClientConnectionError):
                async with client.get(f"{url}/ready") as reply:
                    if reply.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise TargetError(f"the shell router ended with exit code {child.exit_code}; its log:\n{child.last_lines()}")


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess as error:
        raise TargetError("the shell router or its assessing process ended while it was measured") from error
    return float(times.user + times.system)
