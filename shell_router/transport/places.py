"""Which workers may have a request: what an abort of it has to reach."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from sglang_ext.protocol import Status
from shell_router.transport.roster import Members
from shell_router.transport.workers import Workers


@dataclass
class Place:
    """Where one request is, as far as that is known."""

    workers: tuple[str, ...] = ()
    """Those it was sent to, if it did not go through sglang-router; who decodes comes last."""
    answering: str | None = None
    """What the worker that answers it calls itself."""
    begun: bool = False
    """Whether a token has come: then the prefill worker has sent its KV, and is through with it."""


class Places:
    """The requests that run, or broke off and have not been aborted."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._places: dict[str, Place] = {}
        self._urls: dict[str, str] = {}
        """Of workers, by what they call themselves."""

    def begin(self, request_id: str) -> Place:
        place = self._places[request_id] = Place()
        return place

    def end(self, request_id: str) -> None:
        """It has its answer, or has been aborted."""
        self._places.pop(request_id, None)

    def saw(self, statuses: Mapping[str, Status]) -> None:
        """Workers have told who they are, by their URLs."""
        self._urls |= {status.worker: url for url, status in statuses.items() if status.worker}

    async def of(self, request_id: str, members: Members) -> tuple[str, ...]:
        """The workers that may have the request."""
        place = self._places.get(request_id, Place())
        if place.workers:
            return place.workers[-1:] if place.begun else place.workers
        paired = {pair.prefill for pair in members.pairs}
        if place.answering is None:
            return tuple(url for url in members.listed if not (place.begun and url in paired))
        url = await self._find(place.answering, members)
        if url is None:
            return members.listed
        feeding = () if place.begun else tuple(pair.prefill for pair in members.pairs if pair.decode == url)
        return (*feeding, url)

    async def _find(self, name: str, members: Members) -> str | None:
        """The worker that calls itself so. Those there are are asked when it is a new one."""
        if self._urls.get(name) not in members.listed:
            answers = await asyncio.gather(*map(self._workers.status, members.listed), return_exceptions=True)
            told = zip(members.listed, answers, strict=True)
            self.saw({url: status for url, status in told if isinstance(status, Status)})
        url = self._urls.get(name)
        return url if url in members.listed else None
