"""One run of the offered load over HTTP. A run that fails is an outcome, never an exception."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from experiments.load.arrivals import Arrival
from experiments.load.config import Setting
from experiments.load.generator import Outcome, State
from shell_router.client import AsyncClient, ClientError, Usage

_QUEUE = "graft_queue_seconds"
_TOO_MANY = 429


class LoadClient:
    """Sends runs to one shell router."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def ask(self, arrival: Arrival, setting: Setting) -> Outcome:
        """Make one run and read its answer to the end."""
        loop = asyncio.get_running_loop()
        sent = loop.time()
        state: State = "done"
        reason, usage = None, Usage(prompt_tokens=0, completion_tokens=0)
        stream = self._client.stream(arrival.question, tree=arrival.tree, options=setting.graft, seed=arrival.seed)
        async with stream:
            try:
                async for _ in stream:
                    pass
                usage = stream.answer.usage
            except ClientError as error:
                state, reason = "refused" if error.status == _TOO_MANY else "failed", str(error)
        return Outcome(
            state=state,
            reason=reason,
            opened=None if stream.opened_s is None else sent + stream.opened_s,
            first=None if stream.ttft_s is None else sent + stream.ttft_s,
            ended=loop.time(),
            prompt_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
        )

    async def check(self) -> None:
        """Raise `ClientError` when the router does not answer."""
        await self._client.trees()

    async def queued(self) -> tuple[float, float] | None:
        """Sum of seconds and number of runs that the router has seen wait; None when it does not tell."""
        try:
            text = await self._client.metrics()
        except ClientError:
            return None
        return read_histogram(text, _QUEUE)


def read_histogram(metrics: str, name: str) -> tuple[float, float] | None:
    """Sum and count of a histogram in Prometheus' text, over all its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            if sample.name in (f"{name}_sum", f"{name}_count"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return (found[f"{name}_sum"], found[f"{name}_count"]) if len(found) == 2 else None
