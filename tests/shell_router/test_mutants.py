"""Whatever a stranger sends: an answer, never a fault of the server's, and nothing is held afterwards."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp
import pytest
from yarl import URL

from shell_router.app import build_app
from shell_router.transport.fake import FakeEngine
from tests.shell_router.mutants import Mutant, Mutants
from tests.shell_router.serving import Client, fake_service, serving
from tests.waiting import until

_AT_ONCE = 8
_ANSWER_S = 30.0


async def asked(client: Client, mutant: Mutant) -> tuple[int, bytes]:
    """Status and body of the answer; 0 for a request that the client's own library does not send."""
    try:
        return await _sent(client, mutant)
    except aiohttp.ServerDisconnectedError:
        # The connection had been closed after a body that broke off behind its answer.
        return await _sent(client, mutant)


async def _sent(client: Client, mutant: Mutant) -> tuple[int, bytes]:
    try:
        async with client.session.request(
            mutant.method,
            URL(client.url + mutant.path, encoded=True),
            data=mutant.body or None,
            headers=mutant.headers,
            timeout=aiohttp.ClientTimeout(total=_ANSWER_S),
        ) as reply:
            return reply.status, await reply.read()
    except (aiohttp.InvalidURL, ValueError):
        return 0, b""
    except aiohttp.ClientResponseError:
        # What is no HTTP is answered with a body, also where it might have been meant as a HEAD.
        assert mutant.method == "HEAD"
        return 0, b""


async def assault(seed: int, count: int) -> Counter[int]:
    """Send `count` requests; how many were answered with each status."""
    engine = FakeEngine()
    service = fake_service(engine)
    mutants = Mutants(seed)
    statuses: Counter[int] = Counter()
    left = iter(range(count))

    async with serving(build_app(service, body_bytes=100_000)) as client:

        async def some() -> None:
            for _ in left:
                mutant = mutants.one()
                status, body = await asked(client, mutant)
                statuses[status] += 1
                assert status < 500, (mutant, body[:500])
                if status >= 400 and mutant.method != "HEAD":
                    assert body.startswith(b'{"error"'), (mutant, body[:500])

        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(some())
        await until(lambda: not engine.running)
        await until(lambda: service.running == 0)
        assert (service.admission.line.running, service.admission.line.waiting) == (0, 0)
        assert (await client.chat())[0] == 200
    return statuses


async def test_no_request_is_a_fault_of_the_servers() -> None:
    statuses = await assault(seed=1, count=1500)
    assert statuses[200] > 100, "some are valid"
    assert statuses[400] > 500
    assert statuses[0] < 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_no_request_of_many_is_a_fault_of_the_servers() -> None:
    statuses = await assault(seed=2, count=100_000)
    print(dict(statuses))
    assert statuses.total() == 100_000
