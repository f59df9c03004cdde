"""Which workers a model has now: those its configuration names, or those its sglang-router tells.

Where workers come and go (Kubernetes), sglang-router finds them, and its `GET /workers` is asked again and again. A
look that fails changes nothing: what was there a moment ago is the best guess.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import msgspec

from shell_router.config import ModelConfig, PairConfig
from shell_router.errors import EngineError, EngineUnreachable
from shell_router.transport.both import stop_tasks
from shell_router.transport.generate import as_engine_errors, check_status, decoded

logger = logging.getLogger(__name__)

_TIMEOUT = aiohttp.ClientTimeout(total=5)


@dataclass(frozen=True)
class Members:
    """The workers of a model, by their URLs."""

    pairs: tuple[PairConfig, ...] = ()
    """Each prefill worker with each decode worker that it can feed; none is known to be ill."""
    regular: tuple[str, ...] = ()
    """Those that both prefill and decode; none is known to be ill."""
    listed: tuple[str, ...] = ()
    """All, the ill ones too: what may have a request. Decode workers come first."""


class _Listed(msgspec.Struct):
    """A worker as sglang-router 0.3.2 lists it."""

    url: str
    worker_type: str
    is_healthy: bool


class _Listing(msgspec.Struct):
    workers: list[_Listed]


_decode_listing = msgspec.json.Decoder(_Listing).decode


class Roster:
    """The members of one model as last seen."""

    def __init__(self, model: ModelConfig) -> None:
        self.members = _named(model)
        self._model = model
        self._unseen: EngineError | None = None

    def saw(self, members: Members) -> None:
        """Take over what sglang-router has just told."""
        self._unseen = None
        if members != self.members:
            logger.info(
                "model %r has %d pairs and %d regular workers: %s",
                self._model.name,
                len(members.pairs),
                len(members.regular),
                ", ".join(members.listed) or "no worker is listed",
            )
        self.members = members

    def missed(self, error: EngineError) -> None:
        """A look failed; the members stay."""
        if self._unseen is None:
            logger.warning("the workers of model %r cannot be listed: %s", self._model.name, error)
        self._unseen = error

    def check(self) -> None:
        """Raise `EngineUnreachable` when workers are to be discovered and none that can serve is known."""
        if self._model.discover_every_s is None or self.members.pairs or self.members.regular:
            return
        why = "sglang-router lists none" if self._unseen is None else self._unseen.message
        detail = self._model.router_url if self._unseen is None else str(self._unseen)
        raise EngineUnreachable(f"model {self._model.name!r}: no workers are known that can serve it: {why}", detail)


def rosters_of(models: Mapping[str, ModelConfig]) -> dict[str, Roster]:
    """A roster for each of `models`, with what its configuration names."""
    return {name: Roster(model) for name, model in models.items()}


@asynccontextmanager
async def open_rosters(
    models: Mapping[str, ModelConfig], client: aiohttp.ClientSession
) -> AsyncIterator[dict[str, Roster]]:
    """Yield a roster for each of `models`; those that discover their workers are kept up to date inside."""
    rosters = rosters_of(models)
    followers = [
        asyncio.create_task(_follow(rosters[name], model.router_url, model.discover_every_s, client))
        for name, model in models.items()
        if model.discover_every_s is not None
    ]
    try:
        yield rosters
    finally:
        await stop_tasks(*followers)


async def look(router_url: str, client: aiohttp.ClientSession) -> Members:
    """The workers that the sglang-router at `router_url` has now. Raises `EngineError`."""
    url = f"{router_url}/workers"
    with as_engine_errors(url, _TIMEOUT):
        async with client.get(url, timeout=_TIMEOUT) as reply:
            await check_status(url, reply)
            body = await reply.read()
    return _members(decoded(_decode_listing, body, url).workers)


async def _follow(roster: Roster, router_url: str, every_s: float, client: aiohttp.ClientSession) -> None:
    while True:
        try:
            roster.saw(await look(router_url, client))
        except EngineError as error:
            roster.missed(error)
        except Exception:
            # Whatever it is, the next look may succeed; without looks the router would go on with workers long gone.
            logger.exception("%s: looking at the workers failed", router_url)
        await asyncio.sleep(every_s)


def _named(model: ModelConfig) -> Members:
    # A worker may stand in several pairs.
    paired = dict.fromkeys(url for pair in model.pairs for url in (pair.decode, pair.prefill))
    return Members(pairs=model.pairs, regular=model.workers, listed=(*paired, *model.workers))


def _members(listed: Iterable[_Listed]) -> Members:
    # Sorted: sglang-router lists them in any order.
    workers = sorted(listed, key=lambda each: (each.worker_type, each.url))

    def healthy(kind: str) -> tuple[str, ...]:
        return tuple(each.url for each in workers if each.worker_type == kind and each.is_healthy)

    return Members(
        pairs=tuple(PairConfig(prefill=p, decode=d) for p in healthy("prefill") for d in healthy("decode")),
        regular=healthy("regular"),
        listed=tuple(each.url for each in workers),
    )
