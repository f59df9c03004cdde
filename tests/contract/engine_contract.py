"""What every `Engine` must do, whatever is behind it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from shell_router.core.tree import Sampling
from shell_router.errors import EngineError
from shell_router.transport.base import Delta, Engine, GenerateRequest

PROMPT = tuple(range(1000, 1040))


class EngineContract:
    """Inherit it and give the fixtures `engine`, `model` and `broken_engine` (behind which nothing answers)."""

    @staticmethod
    def request(model: str, request_id: str, ids: tuple[int, ...] = PROMPT, tokens: int = 24) -> GenerateRequest:
        return GenerateRequest(request_id, model, ids, Sampling(max_new_tokens=tokens, temperature=0))

    async def test_an_answer_is_whole_and_counted(self, engine: Engine, model: str) -> None:
        deltas = [delta async for delta in engine.generate(self.request(model, "contract-whole"))]
        *parts, last = deltas
        assert all(part.finish is None for part in parts)
        assert last.finish is not None
        ids = [token for delta in deltas for token in delta.ids]
        assert len(ids) == sum(len(delta.logprobs) for delta in deltas)
        assert all(value <= 0 for delta in deltas for value in delta.logprobs)
        assert 0 < len(ids) <= last.finish.completion_tokens <= 24
        assert last.finish.prompt_tokens == len(PROMPT)
        if last.finish.reason == "length":
            assert len(ids) == 24
        assert "".join(delta.text for delta in deltas)

    async def test_greedy_answers_depend_on_the_prompt_only(self, engine: Engine, model: str) -> None:
        async def answer(name: str, ids: tuple[int, ...]) -> list[int]:
            return [token async for delta in engine.generate(self.request(model, name, ids)) for token in delta.ids]

        first, other = await asyncio.gather(answer("contract-a", PROMPT), answer("contract-b", PROMPT[::-1]))
        assert await answer("contract-c", PROMPT) == first
        assert first != other

    async def test_an_aborted_request_does_not_end_like_an_answer(self, engine: Engine, model: str) -> None:
        request = self.request(model, "contract-abort", tokens=2000)
        seen: list[Delta] = []
        async with aclosing(engine.generate(request)) as deltas:
            seen.append(await anext(deltas))
            await engine.abort(model, request.request_id)
            with pytest.raises(EngineError):
                seen.extend([delta async for delta in deltas])
        assert all(delta.finish is None for delta in seen)

    async def test_aborting_what_never_was_is_harmless(self, engine: Engine, model: str) -> None:
        await engine.abort(model, "contract-nobody")

    async def test_readiness(self, engine: Engine, broken_engine: Engine, model: str) -> None:
        await engine.check_ready(model)
        with pytest.raises(EngineError):
            await broken_engine.check_ready(model)
