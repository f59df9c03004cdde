"""The router behind the real `openai` client: answers, streams, errors, our own options, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from shell_router.admission import Admission
from shell_router.app import build_app
from shell_router.auth import Guard
from shell_router.service import Service
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import Held, limited_service, serving
from tests.shell_router.test_openai_schema import EXIT, Case
from tests.waiting import until

WHY: list[ChatCompletionMessageParam] = [{"role": "user", "content": "why?"}]


@asynccontextmanager
async def sdk(service: Service, guard: Guard | None = None) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client of a router around `service`; its key is `k`, and it never tries again."""
    async with (
        serving(build_app(service, body_bytes=10_000, guard=guard)) as client,
        openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="k", max_retries=0) as ours,
    ):
        yield ours


def extra(model: Any, name: str) -> Any:
    """A field that the client's types do not have."""
    return (model.model_extra or {})[name]


async def test_chat_with_our_options_and_account() -> None:
    async with sdk(Case(held="p3").service()) as client:
        answer = await client.chat.completions.create(
            model="t", messages=WHY, extra_body={"graft": {"early_exit": {"mode": "threshold", "threshold": 0}}}
        )
    account, usage = extra(answer, "graft"), answer.usage
    assert usage is not None
    assert account["early_exits"] == 1
    assert account["run"] == answer.id
    assert account["answered_by"] == "root"
    assert [each["id"] for each in extra(usage, "agents")] == ["p1", "p2", "p3", "root"]
    assert usage.completion_tokens == sum(each["completion_tokens"] for each in extra(usage, "agents"))
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 0


async def test_a_chat_stream_ends_with_its_account_and_usage() -> None:
    async with sdk(Case().service()) as client:
        whole = await client.chat.completions.create(model="t", messages=WHY)
        stream = await client.chat.completions.create(
            model="t", messages=WHY, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "stop"
    for chunk in chunks[-2:]:
        assert extra(chunk, "graft") == extra(whole, "graft") | {"run": chunk.id}


async def test_completions() -> None:
    async with sdk(Case(policy=EXIT, held="p3").service()) as client:
        whole = await client.completions.create(model="t", prompt="why?")
        stream = await client.completions.create(
            model="t", prompt="why?", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert extra(chunks[-1], "graft")["early_exits"] == extra(whole, "graft")["early_exits"] == 1


async def test_errors_are_the_clients_own() -> None:
    async with sdk(limited_service(FakeEngine()), Guard("k")) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="x", messages=WHY)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        for option, param in (
            ({"early_exit": {"tau": 2}}, "graft.early_exit.tau"),
            ({"sampling": {"top_p": 0}}, "graft.sampling.top_p"),
            ({"deadline_s": -1}, "graft.deadline_s"),
        ):
            with pytest.raises(openai.BadRequestError) as wrong:
                await client.chat.completions.create(model="t", messages=WHY, extra_body={"graft": option})
            assert (wrong.value.type, wrong.value.param) == ("invalid_request_error", param)
        with pytest.raises(openai.BadRequestError) as wrong:
            await client.completions.create(model="t", prompt="why?", echo=True)
        assert wrong.value.param == "echo"
        with pytest.raises(openai.AuthenticationError) as refused:
            await client.with_options(api_key="x").chat.completions.create(model="t", messages=WHY)
        assert refused.value.code == "invalid_api_key"


async def test_a_full_router_says_when_to_come_back() -> None:
    held = Held()
    service = limited_service(FakeEngine(gate=held), Admission(running=1, waiting=0))
    async with sdk(service) as client:
        first = asyncio.create_task(client.chat.completions.create(model="t", messages=WHY))
        await held.wait_for(1)
        with pytest.raises(openai.RateLimitError) as full:
            await client.chat.completions.create(model="t", messages=WHY)
        assert (full.value.type, full.value.code) == ("rate_limit_error", "too_many_runs")
        assert int(full.value.response.headers["Retry-After"]) >= 1
        held.open.set()
        assert (await first).choices[0].message.content
        assert (await client.chat.completions.create(model="t", messages=WHY)).choices, "it has come back"


async def test_a_deadline_is_a_504() -> None:
    async with sdk(Case(held="p1").service()) as client:
        with pytest.raises(openai.InternalServerError) as late:
            await client.chat.completions.create(model="t", messages=WHY, extra_body={"graft": {"deadline_s": 0.05}})
    assert late.value.status_code == 504
    assert late.value.code == "deadline_exceeded"


async def test_a_failure_in_mid_stream_is_raised() -> None:
    engine = FakeEngine(fail_at=lambda request: 1 if "-root" in request.request_id else None)
    async with sdk(limited_service(engine)) as client:
        stream = await client.chat.completions.create(model="t", messages=WHY, stream=True)
        with pytest.raises(openai.APIError, match="agent 'root': the fake engine was told to fail"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_who_leaves_in_mid_stream_cancels_the_run(endpoint: str) -> None:
    engine = FakeEngine(gate=Held())
    service = limited_service(engine)
    async with sdk(service) as client:
        stream: Any
        if endpoint == "chat":
            stream = await client.chat.completions.create(model="t", messages=WHY, stream=True)
        else:
            stream = await client.completions.create(model="t", prompt="why?", stream=True)
        first = await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(engine.any_aborted.wait(), 10)
        await until(lambda: service.running == 0)
        record = service.record(first.id)
    assert (record.state, record.error) == ("cancelled", "the client went away")
    assert engine.running == set()
