"""The HTTP engine against a small SGLang: what is sent, what is read, and every way a stream can break."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from shell_router.config import LimitsConfig, ModelConfig, PairConfig
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError, EngineSilent, EngineTooSlow, EngineUnreachable
from shell_router.transport.base import Delta, Finish, GenerateRequest
from shell_router.transport.http import HttpEngine
from tests.fakes.server import Script, send
from tests.fakes.sglang import FakeSglang, chunk

REQUEST = GenerateRequest("rid-1", "m", (1, 2, 3), Sampling(max_new_tokens=8, temperature=0), seed=7, stop=("END",))


@asynccontextmanager
async def engine_for(url: str, limits: LimitsConfig | None = None) -> AsyncIterator[HttpEngine]:
    model = ModelConfig(
        name="m", tokenizer="-", router_url=url, pairs=(PairConfig(prefill=url, decode=url),), context_length=100
    )
    async with aiohttp.ClientSession() as client:
        yield HttpEngine({"m": model}, limits or LimitsConfig(), client)


async def answer(script: Script) -> list[Delta]:
    async with FakeSglang(script) as sglang, engine_for(sglang.url) as engine:
        return [delta async for delta in engine.generate(REQUEST)]


async def _normal(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk([10], " ten"))
    await send(response, chunk([11, 99], " eleven", {"type": "stop", "matched": 99}))
    await response.write(b"data: [DONE]\n\n")


async def test_deltas_leave_out_the_token_that_ends_the_answer() -> None:
    assert await answer(_normal) == [
        Delta((10,), (-0.5,), " ten"),
        Delta((11,), (-0.5,), " eleven", Finish("stop", 5, 2, 2)),
    ]


async def test_an_answer_cut_by_length_keeps_all_tokens() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10, 11], " ten", {"type": "length", "length": 2}))

    (delta,) = await answer(script)
    assert delta.ids == (10, 11)


async def test_what_is_sent() -> None:
    async with FakeSglang(_normal) as sglang, engine_for(sglang.url) as engine:
        async for _ in engine.generate(REQUEST):
            pass
        (body,) = sglang.requests
    assert body["rid"] == "rid-1"
    assert body["input_ids"] == [1, 2, 3]
    assert body["stream"] is True
    assert body["return_logprob"] is True
    assert body["sampling_params"] == {
        "max_new_tokens": 8, "temperature": 0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "sampling_seed": 7, "stop": ["END"],
    }  # fmt: skip


async def _error_event(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, {"error": {"message": "too long", "type": "invalid_request_error", "code": 400}})


async def _breaks_off(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk([10], " ten"))


async def _aborted(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk([10], " ten", {"type": "abort", "message": "Aborted"}))


async def _not_json(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await response.write(b"data: nonsense\n\n")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (_error_event, "too long"),
        (_breaks_off, "ended its stream before the answer was finished"),
        (_aborted, "ended the answer with 'abort': Aborted"),
        (_not_json, "cannot be read"),
    ],
)
async def test_a_broken_stream_never_looks_like_an_answer(script: Script, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        await answer(script)


async def test_a_cut_connection_is_an_engine_error() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10], " ten"))
        assert response._req is not None
        assert response._req.transport is not None
        response._req.transport.abort()

    with pytest.raises(EngineError, match="broke off"):
        await answer(script)


async def test_an_error_status_tells_its_reason() -> None:
    async with FakeSglang(_normal) as sglang, engine_for(f"{sglang.url}/nowhere") as engine:
        with pytest.raises(EngineError, match="answered 404"):
            await anext(engine.generate(REQUEST))


async def test_no_connection(unused_tcp_port: int) -> None:
    async with engine_for(f"http://127.0.0.1:{unused_tcp_port}") as engine:
        with pytest.raises(EngineUnreachable, match="cannot be reached"):
            await anext(engine.generate(REQUEST))
        with pytest.raises(EngineUnreachable, match="model 'm'"):
            await engine.check_ready("m")


@pytest.fixture
def full_port() -> Iterator[int]:
    """A port where connections are queued for a server that takes none, and the queue is full."""
    with contextlib.ExitStack() as opened:
        server = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        yield server.getsockname()[1]


async def test_a_connection_that_nobody_takes(full_port: int) -> None:
    limits = LimitsConfig(connect_timeout_s=0.2)
    async with engine_for(f"http://127.0.0.1:{full_port}", limits) as engine:
        with pytest.raises(EngineUnreachable, match=rf":{full_port}/generate took no connection within 0\.2 s"):
            await anext(engine.generate(REQUEST))


@pytest.mark.parametrize("first", [False, True])
async def test_silence_is_bounded(first: bool) -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        if first:
            await send(response, chunk([10], " ten"))
        await asyncio.Event().wait()

    async with FakeSglang(script) as sglang, engine_for(sglang.url, LimitsConfig(idle_timeout_s=0.2)) as engine:
        deltas = engine.generate(REQUEST)
        if first:
            assert (await anext(deltas)).ids == (10,)
        with pytest.raises(EngineSilent, match=r"/generate sent nothing within 0\.2 s"):
            await anext(deltas)


async def test_the_whole_answer_is_bounded_if_one_wants() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        while True:
            await send(response, chunk([10], " ten"))
            await asyncio.sleep(0.02)

    limits = LimitsConfig(request_timeout_s=0.3, idle_timeout_s=10)
    async with FakeSglang(script) as sglang, engine_for(sglang.url, limits) as engine:
        with pytest.raises(EngineTooSlow, match=r"/generate did not end within 0\.3 s"):
            [delta async for delta in engine.generate(REQUEST)]


async def test_tokens_arrive_while_the_answer_goes_on() -> None:
    gate = asyncio.Event()

    async def script(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await send(response, chunk([10], " ten"))
        await gate.wait()
        await _normal(response, body)

    async with FakeSglang(script) as sglang, engine_for(sglang.url) as engine:
        deltas = engine.generate(REQUEST)
        assert (await anext(deltas)).ids == (10,), "the first token is here while the engine is held at the gate"
        gate.set()
        assert len([delta async for delta in deltas]) == 2


async def test_leaving_a_stream_closes_its_connection() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10], " ten"))
        await asyncio.Event().wait()

    async with FakeSglang(script) as sglang, engine_for(sglang.url) as engine:
        async with aclosing(engine.generate(REQUEST)) as deltas:
            await anext(deltas)
        await asyncio.wait_for(sglang.disconnected.wait(), 10)


async def test_abort_goes_once_to_every_worker() -> None:
    async with FakeSglang(_normal) as one, FakeSglang(_normal) as other, aiohttp.ClientSession() as client:
        pairs = (
            PairConfig(prefill=one.url, decode=other.url),
            PairConfig(prefill=other.url, decode=one.url),
        )
        model = ModelConfig(name="m", tokenizer="-", router_url="-", pairs=pairs, context_length=100)
        await HttpEngine({"m": model}, LimitsConfig(), client).abort("m", "rid-1")
        assert one.aborted == other.aborted == ["rid-1"]


async def test_abort_reaches_workers_of_no_pair() -> None:
    async with FakeSglang(_normal) as one, FakeSglang(_normal) as other, aiohttp.ClientSession() as client:
        model = ModelConfig(name="m", tokenizer="-", router_url="-", workers=(one.url, other.url), context_length=100)
        await HttpEngine({"m": model}, LimitsConfig(), client).abort("m", "rid-1")
        assert one.aborted == other.aborted == ["rid-1"]


async def test_an_abort_that_a_worker_does_not_take_is_an_error(unused_tcp_port: int) -> None:
    async with engine_for(f"http://127.0.0.1:{unused_tcp_port}") as engine:
        with pytest.raises(EngineError, match="did not take the abort of rid-1"):
            await engine.abort("m", "rid-1")


async def test_missing_log_probabilities_are_none_rather_than_wrong() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        event = chunk([10, 11], " ten", {"type": "length", "length": 2})
        event["meta_info"]["output_token_logprobs"][0][0] = None
        await send(response, event)

    (delta,) = await answer(script)
    assert delta.ids == (10, 11)
    assert delta.logprobs == ()


async def test_readiness() -> None:
    async with FakeSglang(_normal) as sglang, engine_for(sglang.url) as engine:
        await engine.check_ready("m")
        sglang.ready = False
        with pytest.raises(EngineError, match="answered 503"):
            await engine.check_ready("m")


async def _kv(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    """A prefill worker's answer, in one piece."""
    await response.write(json.dumps(chunk([10], "", {"type": "length", "length": 1})).encode())


def gone() -> str:
    """A URL at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


async def test_a_second_attempt_goes_to_a_pair_that_is_there() -> None:
    dead = gone()
    async with (
        FakeSglang(_normal) as router,
        FakeSglang(_kv) as prefill,
        FakeSglang(_normal) as decode,
        aiohttp.ClientSession() as client,
    ):
        pairs = [PairConfig(prefill=p, decode=d) for p in (prefill.url, dead) for d in (decode.url, dead)]
        model = ModelConfig(name="m", tokenizer="-", router_url=router.url, pairs=tuple(pairs), context_length=100)
        engine = HttpEngine({"m": model}, LimitsConfig(), client)
        for _ in range(8):
            deltas = [delta async for delta in engine.generate(dataclasses.replace(REQUEST, attempt=2))]
            assert [token for delta in deltas for token in delta.ids] == [10, 11]
        assert router.requests == []
        assert len(prefill.requests) == len(decode.requests) == 8
        rooms = set()
        for sent, answered in zip(prefill.requests, decode.requests, strict=True):
            assert (sent.pop("stream"), answered.pop("stream")) == (False, True)
            assert sent == answered
            assert (sent["bootstrap_host"], sent["bootstrap_port"]) == ("127.0.0.1", 8998)
            rooms.add(sent["bootstrap_room"])
        assert len(rooms) == 8


async def test_a_request_goes_near_its_kv_if_that_pair_is_there() -> None:
    dead = gone()
    async with (
        FakeSglang(_normal) as router,
        FakeSglang(_kv) as prefill,
        FakeSglang(_normal) as decode,
        aiohttp.ClientSession() as client,
    ):
        pairs = (PairConfig(prefill=prefill.url, decode=decode.url),)
        model = ModelConfig(name="m", tokenizer="-", router_url=router.url, pairs=pairs, context_length=100)
        engine = HttpEngine({"m": model}, LimitsConfig(), client)
        for near in ((prefill.url, decode.url), (dead, decode.url)):
            request = dataclasses.replace(REQUEST, near=near)
            assert [delta async for delta in engine.generate(request)]
        assert len(decode.requests) == 2, "near, then any pair"
        assert router.requests == []


async def test_when_no_worker_is_known_to_be_there_sglang_router_is_asked() -> None:
    dead = gone()
    async with FakeSglang(_normal) as router, aiohttp.ClientSession() as client:
        pairs = (PairConfig(prefill=dead, decode=dead),)
        model = ModelConfig(name="m", tokenizer="-", router_url=router.url, pairs=pairs, context_length=100)
        engine = HttpEngine({"m": model}, LimitsConfig(), client)
        assert [delta async for delta in engine.generate(dataclasses.replace(REQUEST, attempt=3))]
        assert len(router.requests) == 1


async def test_a_second_attempt_on_regular_workers() -> None:
    async with FakeSglang(_normal) as worker, aiohttp.ClientSession() as client:
        model = ModelConfig(
            name="m", tokenizer="-", router_url=gone(), workers=(gone(), worker.url), context_length=100
        )
        engine = HttpEngine({"m": model}, LimitsConfig(), client)
        assert [delta async for delta in engine.generate(dataclasses.replace(REQUEST, attempt=2))]
        assert "bootstrap_room" not in worker.requests[0]


async def test_what_prefill_refuses_is_an_error_before_the_first_token() -> None:
    async def refuses(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await response.write(json.dumps({"error": {"message": "too long"}}).encode())

    async def waits(_response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await asyncio.Event().wait()

    async with FakeSglang(refuses) as prefill, FakeSglang(waits) as decode, aiohttp.ClientSession() as client:
        pairs = (PairConfig(prefill=prefill.url, decode=decode.url),)
        model = ModelConfig(name="m", tokenizer="-", router_url=gone(), pairs=pairs, context_length=100)
        engine = HttpEngine({"m": model}, LimitsConfig(), client)
        with pytest.raises(EngineError, match="too long"):
            async for _ in engine.generate(dataclasses.replace(REQUEST, attempt=2)):
                pass
        await asyncio.wait_for(decode.disconnected.wait(), 10)
