"""Measures the blocks of a test in their order, or takes them from the folder when they are there."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from experiments.kernel.target import TargetError
from experiments.load.arrivals import Arrival, make_arrivals
from experiments.load.block import Block, BlockKey, problems, values
from experiments.load.config import LoadConfig, Setting
from experiments.load.fill import Fill
from experiments.load.folder import LoadFolder
from experiments.load.generator import OpenLoop, Outcome, Sample
from experiments.load.progress import BlockProgress
from experiments.load.ramp import Knee, Search, judge
from shell_router.client import ClientError
from shell_router.errors import EngineError


class Client(Protocol):
    """What makes runs: `LoadClient`."""

    async def ask(self, arrival: Arrival, setting: Setting) -> Outcome: ...

    async def queued(self) -> tuple[float, float] | None: ...

    async def check(self) -> None:
        """Raises `ClientError` when the router does not answer."""


class NotOnDisk(Exception):
    """A block has to be measured."""


class Nobody:
    """A client for a test that is to be read from its folder alone. Each call raises `NotOnDisk`."""

    async def ask(self, arrival: Arrival, setting: Setting) -> Outcome:
        raise NotOnDisk

    async def queued(self) -> tuple[float, float] | None:
        raise NotOnDisk

    async def check(self) -> None:
        raise NotOnDisk


async def read_bench(config: LoadConfig, folder: LoadFolder) -> Bench | None:
    """The test in `folder` as it ended; None when a block of it is missing."""
    bench = Bench(config, Nobody(), folder)
    try:
        await bench.run()
    except NotOnDisk:
        return None
    return bench


class Bench:
    """Runs the whole test on one router."""

    def __init__(
        self,
        config: LoadConfig,
        client: Client,
        folder: LoadFolder,
        *,
        flush: Callable[[], Awaitable[None]] | None = None,
        fill: Callable[[], AbstractAsyncContextManager[Fill]] | None = None,
    ) -> None:
        """`flush` empties the workers' caches, or raises `ClientError`; `fill` keeps their pools occupied, or raises
        `EngineError`."""
        self._config = config
        self._client = client
        self._folder = folder
        self._flush = flush
        self._fill = fill
        self._settings = {setting.name: setting for setting in config.settings}
        self._searches = {} if config.ramp is None else {name: Search(config.ramp) for name in self._settings}
        self._tried = False
        self._progress = BlockProgress(self._blocks_left)

    @property
    def knees(self) -> tuple[Knee, ...]:
        """What the ramp has found so far."""
        return tuple(search.knee(name) for name, search in self._searches.items())

    @property
    def finished(self) -> bool:
        if self._searches:
            return all(search.next_rate() is None for search in self._searches.values())
        return not self._blocks_left()

    async def run(self) -> None:
        """Measure what is not there yet. Raises `TargetError` when the router or what fills the pools does not work."""
        with self._progress if self._blocks_left() else nullcontext():
            if self._searches:
                await self._ramp()
                return
            for index in range(self._config.blocks):
                for setting in self._order(index):
                    await self._measure(BlockKey(setting=setting, rate=self._config.rate, index=index))

    def _order(self, *what: object) -> list[str]:
        """All settings, shuffled: what drifts on the machine meets all of them."""
        names = list(self._settings)
        return random.Random(f"{self._config.seed}/{what}/order").sample(names, len(names))

    async def _ramp(self) -> None:
        """Every setting by its own search; a rate of each in turn."""
        turn = 0
        while any(search.next_rate() is not None for search in self._searches.values()):
            rates = {name: rate for name, s in self._searches.items() if (rate := s.next_rate()) is not None}
            blocks: dict[str, list[Block]] = {name: [] for name in rates}
            known = len(self._folder.blocks)
            for index in range(self._config.blocks):
                for name in self._order(turn, index):
                    if name in rates:
                        key = BlockKey(setting=name, rate=rates[name], index=index)
                        blocks[name].append(await self._measure(key))
            for name, rate in rates.items():
                search = self._searches[name]
                verdict = judge(blocks[name], rate, self._config, search.reference_s)
                search.tell(verdict)
                if len(self._folder.blocks) > known:
                    held = "holds" if verdict.held else f"does not hold: {verdict.why}"
                    self._progress.say(f"{name}: {rate:g}/s {held}")
            turn += 1

    async def _measure(self, key: BlockKey) -> Block:
        if key in self._folder.blocks:
            return self._folder.blocks[key]
        await self._try_settings()
        loop = asyncio.get_running_loop()
        start, started = loop.time(), time.time()
        try:
            if self._flush is not None:
                await self._flush()
            async with self._fill() if self._fill is not None else nullcontext() as fill:
                samples, queue = await self._play(key)
                record = fill.record() if fill is not None else None
            if not any(sample.state == "done" for sample in samples):
                # Overload may do that; a cluster that has died is no measurement.
                await self._client.check()
        except (ClientError, EngineError) as error:
            raise TargetError(f"{key.name}: {error}") from error
        block = Block(
            key=key,
            started=started,
            wall_s=loop.time() - start,
            flushed=self._flush is not None,
            samples=samples,
            router_queue_s=queue,
            fill=record,
        )
        self._folder.add(block)
        self._progress.end(block, values(block, self._config), problems(block, self._config))
        return block

    async def _play(self, key: BlockKey) -> tuple[tuple[Sample, ...], float | None]:
        """The runs of a block, and how long the router says that a run waited."""
        setting = self._settings[key.setting]

        async def ask(arrival: Arrival) -> Outcome:
            return await self._client.ask(arrival, setting)

        arrivals = make_arrivals(self._config, key.rate, key.index)
        generator = OpenLoop(arrivals, ask, max_outstanding=self._config.max_outstanding)
        before = await self._client.queued()
        async with self._progress.watch(key, generator):
            samples = await generator.run()
        after = await self._client.queued()
        if after is None:
            return samples, None
        # Before the first run that ends, the router has no such series.
        seconds, runs = (new - old for new, old in zip(after, before or (0.0, 0.0), strict=True))
        return samples, seconds / runs if runs > 0 else None

    async def _try_settings(self) -> None:
        """A run of each setting before the first block: one that never works is found at once, and nothing is cold."""
        if self._tried:
            return
        for setting in self._settings.values():
            trial = Arrival(at=0.0, tree=self._config.tree, question="What is 17 times 3?", seed=0, warmup=True)
            outcome = await self._client.ask(trial, setting)
            if outcome.state != "done":
                raise TargetError(f"a first run of setting {setting.name} failed: {outcome.reason}")
        self._tried = True

    def _blocks_left(self) -> int:
        config, done = self._config, self._folder.blocks
        if not self._searches:
            return config.blocks * len(self._settings) - len(done)
        # Blocks of rates about which a search has been told are in the folder; of those it is at, some may be.
        told = sum(len(search.verdicts) for search in self._searches.values()) * config.blocks
        most = sum(search.most_left() for search in self._searches.values()) * config.blocks
        return max(0, most - (len(done) - told))
