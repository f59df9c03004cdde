"""Incremental prefill with nothing but stock requests: each append sends the whole prompt so far ("resend").

The engine's prefix caches then hold it, and the request that follows computes only what is new. It works on an
unmodified SGLang, and pays for it: each append resends every token, samples one, passes through the decode worker,
and nothing keeps the KV from being evicted.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

import msgspec

from sglang_ext.protocol import Drafts
from shell_router.core.append_cost import AppendCost, CostLearner
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError
from shell_router.form import ANY_FORM
from shell_router.record import Fallback, ServedBy
from shell_router.transport.base import Delta, Engine, GenerateRequest, Spans
from shell_router.transport.drafting import with_references

_PROBE = Sampling(max_new_tokens=1, temperature=0)


class ResendSession:
    """A `PrefillSession` over plain requests."""

    def __init__(self, engine: Engine, answer: GenerateRequest, costs: CostLearner | None = None) -> None:
        """`answer` is the request to commit; its `input_ids` are set then. `costs` learns what an append costs."""
        self._engine = engine
        self._answer = answer
        self._costs = costs or CostLearner()
        self._ids: list[int] = []
        self._appends = 0
        self._commits = 0
        # The commit waits for an append in flight: until that ends, the cache cannot serve what it computes.
        self._turn = asyncio.Lock()
        self._running: str | None = None

    @property
    def served_by(self) -> ServedBy:
        return "resend" if self._appends else "plain"

    @property
    def fallback(self) -> Fallback | None:
        return None

    @property
    def append_cost(self) -> AppendCost | None:
        return self._costs.cost

    async def append(self, ids: Sequence[int]) -> None:
        async with self._turn:
            before = len(self._ids)
            self._ids.extend(ids)
            self._appends += 1
            probe = dataclasses.replace(
                self._answer,
                request_id=f"{self._answer.request_id}-append{self._appends}",
                input_ids=tuple(self._ids),
                sampling=_PROBE,
                stop=(),
                form=ANY_FORM,
                drafts=Drafts(off=True),
                # What may be of use gives way to what is asked for.
                priority=-1,
            )
            began = time.monotonic()
            async with aclosing(self._run(probe)) as deltas:
                async for _ in deltas:
                    pass
            # What it waited for is in it: who resends learns what resending costs as things are.
            ended = time.monotonic()
            pairs = len(ids) * (before + len(ids) / 2)
            self._costs.observe(tokens=len(ids), pairs=pairs, seconds=ended - began, at=ended)

    async def commit(
        self, ids: Sequence[int], *, keep: int | None = None, answered: int = 0, references: Spans = ()
    ) -> AsyncGenerator[Delta]:
        if answered and self._answer.form.json_schema is not None:
            # The rest alone is not what the schema allows.
            raise EngineError("an answer in a form that was asked for broke off, and cannot be gone on with")
        async with self._turn:
            self._ids[len(self._ids) if keep is None else keep :] = ids
            self._commits += 1
            if self._running is not None:
                # What failed here may still run there. If that worker is gone, so is the request.
                with suppress(EngineError):
                    await self.close()
            again = f"-again{self._commits - 1}" if self._commits > 1 else ""
            sampling = self._answer.sampling
            answer = dataclasses.replace(
                self._answer,
                request_id=f"{self._answer.request_id}{again}",
                input_ids=tuple(self._ids),
                attempt=self._answer.attempt + self._commits - 1,
                near=self._answer.near if self._commits == 1 else None,
                sampling=msgspec.structs.replace(sampling, max_new_tokens=sampling.max_new_tokens - answered),
            )
            async with aclosing(self._run(with_references(answer, references))) as deltas:
                async for delta in deltas:
                    yield delta

    async def close(self) -> None:
        if self._running is not None:
            await self._engine.abort(self._answer.model, self._running)

    async def _run(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Pass `request` on; while it runs, and after it broke off, `close` aborts it."""
        self._running = request.request_id
        async with aclosing(self._engine.generate(request)) as deltas:
            async for delta in deltas:
                yield delta
        self._running = None


class ResendSessions:
    """Makes `ResendSession`s on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._costs: defaultdict[str, CostLearner] = defaultdict(CostLearner)

    def __call__(self, answer: GenerateRequest, *, max_prompt_tokens: int) -> ResendSession:
        return ResendSession(self._engine, answer, self._costs[answer.model])

    def append_cost(self, model: str) -> AppendCost | None:
        return self._costs[model].cost
