"""The engine for servers of OpenAI's API: what is sent, read and found out, and every way a stream can break."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from shell_router.config import ConfigError, LimitsConfig, ModelConfig
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError, EngineSilent, EngineUnreachable
from shell_router.form import AnswerForm
from shell_router.transport.base import Delta, Finish, GenerateRequest
from shell_router.transport.capabilities import Capabilities, describe, probe
from shell_router.transport.openai import OpenAIEngine
from tests.fakes.openai import FakeOpenAI, chunk, complete, end
from tests.fakes.server import Script, send

REQUEST = GenerateRequest("rid-1", "m", (1, 2, 3), Sampling(max_new_tokens=8, temperature=0), seed=7, stop=("END",))
ALL = Capabilities(token_ids=True, logprobs=True, abort="by_disconnect", appends=False)


def model_at(url: str, **more: Any) -> ModelConfig:
    return ModelConfig(name="m", tokenizer="-", backend="openai", router_url=url, context_length=100, **more)


@asynccontextmanager
async def engine_for(
    url: str, limits: LimitsConfig | None = None, *, token_ids: bool = True, logprobs: bool = True, **more: Any
) -> AsyncIterator[OpenAIEngine]:
    async with aiohttp.ClientSession() as client:
        yield OpenAIEngine(
            model_at(url, **more), limits or LimitsConfig(), client, token_ids=token_ids, logprobs=logprobs
        )


async def answer(script: Script, **options: Any) -> list[Delta]:
    async with FakeOpenAI(script) as server, engine_for(server.url, **options) as engine:
        return [delta async for delta in engine.generate(REQUEST)]


async def test_what_is_sent() -> None:
    async with FakeOpenAI(complete) as server, engine_for(f"{server.url}/", served_name="org/m") as engine:
        async for _ in engine.generate(REQUEST):
            pass
        (body,) = server.requests
    assert body == {
        "model": "org/m", "prompt": [1, 2, 3], "max_tokens": 8, "temperature": 0, "top_p": 1.0, "seed": 7,
        "stop": ["END"], "stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True,
        "logprobs": 1,
    }  # fmt: skip


async def test_what_a_server_does_not_have_is_not_asked_for() -> None:
    sampling = Sampling(max_new_tokens=2, top_k=5, repetition_penalty=1.5, presence_penalty=0.5, frequency_penalty=-0.5)
    async with (
        FakeOpenAI(complete) as server,
        engine_for(server.url, token_ids=False, logprobs=False) as engine,
    ):
        async for _ in engine.generate(GenerateRequest("rid-1", "m", (1,), sampling)):
            pass
        (body,) = server.requests
    assert body["model"] == "m"
    assert (body["top_k"], body["repetition_penalty"], body["presence_penalty"]) == (5, 1.5, 0.5)
    assert body["frequency_penalty"] == -0.5
    assert "logit_bias" not in body
    assert not {"min_p", "seed", "stop", "return_token_ids", "logprobs", "skip_special_tokens"} & body.keys()


async def test_a_bias_is_passed() -> None:
    biased = dataclasses.replace(REQUEST, form=AnswerForm(logit_bias={"7": -1}))
    async with FakeOpenAI(complete) as server, engine_for(server.url) as engine:
        async for _ in engine.generate(biased):
            pass
        (body,) = server.requests
    assert body["logit_bias"] == {"7": -1}


async def test_control_tokens_are_shown_when_asked_for() -> None:
    async with FakeOpenAI(complete) as server, engine_for(server.url) as engine:
        async for _ in engine.generate(dataclasses.replace(REQUEST, show_control=True)):
            pass
        (body,) = server.requests
    assert body["skip_special_tokens"] is False


async def test_the_counts_come_with_the_end() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await response.write(b": a comment\n\n")
        await send(response, chunk(" ten", [10]))
        await send(response, chunk(" eleven", [11], "length"))
        await end(response, prompt_tokens=3, completion_tokens=2, prompt_tokens_details={"cached_tokens": 2})

    assert await answer(script) == [
        Delta((10,), (-0.25,), " ten"),
        Delta((11,), (-0.25,), " eleven", Finish("length", 3, 2, 2)),
    ]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"stop_reason": None}, 1),
        ({"stop_reason": 99}, 1),
        ({"stop_reason": "END"}, 2),
        ({"matched_stop": 99}, 1),
        ({"matched_stop": "END"}, 2),
    ],
)
async def test_deltas_leave_out_the_token_that_ends_the_answer(said: dict[str, Any], kept: int) -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk(" ten", [10, 99], "stop", **said))
        await end(response, prompt_tokens=3, completion_tokens=2)

    (delta,) = await answer(script)
    assert delta == Delta((10, 99)[:kept], (-0.25, -0.25)[:kept], " ten", Finish("stop", 3, 2, 0))


async def test_without_ids_log_probabilities_stand_for_themselves() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk("", logprobs={"token_logprobs": [-1.0]}))
        await send(response, chunk("é", logprobs={"token_logprobs": [-2.0]}))
        # As llama.cpp writes them.
        await send(response, chunk(" ten", logprobs={"content": [{"token": " ten", "logprob": -3.0}]}))
        await send(response, chunk("", finish="stop"))
        await response.write(b"data: [DONE]\n\n")

    assert await answer(script, token_ids=False) == [
        Delta((), (-1.0, -2.0), "é"),
        Delta((), (-3.0,), " ten"),
        Delta((), (), "", Finish("stop", 3, 3, 0)),
    ]


async def test_missing_log_probabilities_are_none_rather_than_wrong() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk(" ten", [10, 11], "length", logprobs={"token_logprobs": [-1.0, None]}))
        await end(response, prompt_tokens=3, completion_tokens=2)

    (delta,) = await answer(script)
    assert (delta.ids, delta.logprobs) == ((10, 11), ())


async def _error_event(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, {"error": {"message": "out of memory", "code": 500}})


async def _plain_error(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, {"error": "out of memory"})


async def _breaks_off(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk(" ten", [10]))
    await response.write(b"data: [DONE]\n\n")


async def _aborted(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk(" ten", [10], "abort"))


async def _not_json(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await response.write(b"data: nonsense\n\n")


async def _something_else(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, {"hello": 1})


async def _no_ids(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk(" ten"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (_error_event, "gave up: out of memory"),
        (_plain_error, "gave up: out of memory"),
        (_breaks_off, "ended its stream before the answer was finished"),
        (_aborted, "ended the answer with 'abort'"),
        (_not_json, "cannot be read"),
        (_something_else, "cannot be read"),
        (_no_ids, "left out the ids"),
    ],
)
async def test_a_broken_stream_never_looks_like_an_answer(script: Script, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        await answer(script)


async def test_what_a_server_refuses_is_passed_on() -> None:
    async with FakeOpenAI(complete, refused=["top_k"]) as server, engine_for(server.url) as engine:
        request = GenerateRequest("rid-1", "m", (1,), Sampling(top_k=3))
        with pytest.raises(EngineError, match=r"answered 400: .*unknown field top_k"):
            await anext(engine.generate(request))


async def test_silence_and_no_connection(unused_tcp_port: int) -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    with pytest.raises(EngineSilent, match=r"/completions sent nothing within 0\.2 s"):
        await answer(script, limits=LimitsConfig(idle_timeout_s=0.2))
    async with engine_for(f"http://127.0.0.1:{unused_tcp_port}/v1") as engine:
        with pytest.raises(EngineUnreachable, match="cannot be reached"):
            await anext(engine.generate(REQUEST))
        with pytest.raises(EngineUnreachable, match="model 'm'"):
            await engine.check_ready("m")


async def _endless(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk(" ten", [10]))
    await asyncio.Event().wait()


async def test_leaving_a_stream_closes_its_connection() -> None:
    async with FakeOpenAI(_endless) as server, engine_for(server.url) as engine:
        async with aclosing(engine.generate(REQUEST)) as deltas:
            await anext(deltas)
        await asyncio.wait_for(server.disconnected.wait(), 10)
        await engine.abort("m", "rid-1")


async def test_an_abort_closes_the_connection() -> None:
    async with FakeOpenAI(_endless) as server, engine_for(server.url) as engine:
        deltas = engine.generate(REQUEST)
        await anext(deltas)
        rest = asyncio.ensure_future(anext(deltas))
        await asyncio.sleep(0)
        await engine.abort("m", "rid-1")
        with pytest.raises(EngineError, match="broke off"):
            await rest
        await asyncio.wait_for(server.disconnected.wait(), 10)


async def test_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAFT_TEST_UPSTREAM", " sesame ")
    async with (
        FakeOpenAI(complete, key="sesame") as server,
        engine_for(server.url, upstream_key_env="GRAFT_TEST_UPSTREAM") as engine,
    ):
        await engine.check_ready("m")
        assert [delta async for delta in engine.generate(REQUEST)]
    monkeypatch.delenv("GRAFT_TEST_UPSTREAM")
    with pytest.raises(ConfigError, match="GRAFT_TEST_UPSTREAM is not set"):
        async with engine_for("http://x/v1", upstream_key_env="GRAFT_TEST_UPSTREAM"):
            pass


async def test_readiness() -> None:
    async with FakeOpenAI(complete, key="sesame") as server, engine_for(server.url) as engine:
        with pytest.raises(EngineError, match="answered 401"):
            await engine.check_ready("m")


async def probed(server: FakeOpenAI, url: str | None = None, **more: Any) -> Capabilities:
    model = model_at(url or server.url, **more)
    async with aiohttp.ClientSession() as client:
        return (await probe([model], client, LimitsConfig()))["m"]


async def test_a_server_that_has_all() -> None:
    async with FakeOpenAI(complete) as server:
        assert await probed(server) == ALL
        assert len(server.requests) == 1
        assert server.requests[0]["max_tokens"] == 8


@pytest.mark.parametrize(
    ("refused", "found"),
    [
        (["return_token_ids"], (False, True)),
        (["logprobs"], (True, False)),
        (["return_token_ids", "logprobs"], (False, False)),
    ],
)
async def test_a_server_that_refuses_is_asked_for_less(refused: list[str], found: tuple[bool, bool]) -> None:
    async with FakeOpenAI(complete, refused=refused) as server:
        capabilities = await probed(server)
    assert (capabilities.token_ids, capabilities.logprobs) == found


async def test_a_server_that_ignores_what_it_does_not_know() -> None:
    async def script(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await complete(response, {**body, "return_token_ids": False, "logprobs": None})

    async with FakeOpenAI(script) as server:
        capabilities = await probed(server)
        assert (capabilities.token_ids, capabilities.logprobs) == (False, False)
        assert describe(model_at(server.url), capabilities) == (
            f"model 'm' ({server.url}): no log-probabilities: early exit by likeness is not possible; no token ids: "
            "its answers are tokenized again; appends are not possible: its agents run blocking"
        )


async def _repeats(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    for n in range(1, 4):
        await send(response, chunk("ok world!"[: 3 * n], finish="stop" if n == 3 else None))
    await end(response, prompt_tokens=3, completion_tokens=3)


async def _tokenizes(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await complete(response, {**body, "prompt": [1, *body["prompt"]]})


@pytest.mark.parametrize(
    ("script", "options", "model", "message"),
    [
        (complete, {"key": "sesame"}, {}, r"does not take a request without a key: .* answered 401"),
        (complete, {"key": "sesame"}, {"upstream_key_env": "HOME"}, "does not take the key in HOME"),
        (complete, {"served": ["a", "b"]}, {}, "does not know 'm'; it serves a, b"),
        (complete, {"refused": ["prompt"]}, {}, "unknown field prompt"),
        (_tokenizes, {}, {}, "makes 4 tokens of a prompt of 3 token ids"),
        (_repeats, {}, {}, "repeats the answer so far in every event"),
        (_breaks_off, {}, {}, "ended its stream"),
        (_error_event, {}, {}, "out of memory"),
    ],
)
async def test_what_cannot_be_served_is_refused_at_start(
    script: Script, options: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    async with FakeOpenAI(script, **options) as server:
        with pytest.raises(ConfigError, match=message) as caught:
            await probed(server, **model)
        assert str(caught.value).startswith(f"model 'm' ({server.url}): ")


async def test_a_wrong_url_is_refused_at_start(unused_tcp_port: int) -> None:
    async with FakeOpenAI(complete) as server:
        with pytest.raises(ConfigError, match=r"answered 404.*OpenAI's clients call base_url"):
            await probed(server, server.url.removesuffix("/v1"))
        with pytest.raises(ConfigError, match="cannot be reached"):
            await probed(server, f"http://127.0.0.1:{unused_tcp_port}/v1")


async def test_tokens_that_come_twice_are_an_error() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk("ok", [10]))
        await send(response, chunk("ok world", [10, 11], "length"))
        await end(response, prompt_tokens=3, completion_tokens=2)

    with pytest.raises(EngineError, match="counts 2 tokens of an answer that has 3"):
        await answer(script)
