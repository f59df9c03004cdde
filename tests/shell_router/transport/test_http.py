"""The HTTP engine against a small SGLang: what is sent, what is read, and every way a stream can break."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from sglang_ext.protocol import WORKER_HEADER, Drafts, drafts_in
from shell_router.config import LimitsConfig, ModelConfig, PairConfig
from shell_router.core.events import DraftCounts
from shell_router.core.tree import Sampling
from shell_router.errors import EngineError, EngineSilent, EngineTooSlow, EngineUnreachable
from shell_router.form import AnswerForm
from shell_router.transport import generate
from shell_router.transport.base import ANY_DRAFTS, Delta, Finish, GenerateRequest, WorkerTimes
from shell_router.transport.http import HttpEngine
from tests.fakes.server import Script, send
from tests.fakes.sglang import FakeSglang, chunk
from tests.waiting import until

REQUEST = GenerateRequest("rid-1", "m", (1, 2, 3), Sampling(max_new_tokens=8, temperature=0), seed=7, stop=("END",))


@asynccontextmanager
async def engine_for(url: str, limits: LimitsConfig | None = None) -> AsyncIterator[HttpEngine]:
    model = ModelConfig(name="m", tokenizer="-", router_url=url, workers=(url,), context_length=100)
    async with aiohttp.ClientSession() as client:
        yield HttpEngine({"m": model}, limits or LimitsConfig(), client)


async def answer(script: Script) -> list[Delta]:
    async with FakeSglang(script) as sglang, engine_for(sglang.url) as engine:
        return [delta async for delta in engine.generate(REQUEST)]


async def _normal(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk([10], " ten"))
    await send(response, chunk([11, 99], " eleven", {"type": "stop", "matched": 99}, count=3))
    await response.write(b"data: [DONE]\n\n")


async def test_deltas_leave_out_the_token_that_ends_the_answer() -> None:
    assert await answer(_normal) == [
        Delta((10,), (-0.5,), " ten"),
        Delta((11,), (-0.5,), " eleven", Finish("stop", 5, 3, 2)),
    ]


async def test_workers_tell_when_they_did_what() -> None:
    """The prefill worker in its only answer; the decode worker in its first event and in its last."""

    async def kv(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        times = {"request_received_ts": 1.0, "queue_time": 0.5, "forward_entry_time": 2.0, "prefill_finished_time": 3.0}
        await response.write(json.dumps(chunk([10], "", {"type": "length", "length": 1}, times=times)).encode())
        told.set()

    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await told.wait()
        await send(response, chunk([10], " ten", times={"response_sent_to_client_ts": 6.0, "queue_time": 0.25}))
        last = {"request_received_ts": 1.5, "queue_time": 0.25, "forward_entry_time": 5.0}
        await send(response, chunk([11], " eleven", {"type": "length", "length": 2}, count=2, times=last))

    told = asyncio.Event()
    async with FakeSglang(kv) as prefill, FakeSglang(script) as decode:
        pairs = (PairConfig(prefill=prefill.url, decode=decode.url),)
        async with engine_of(gone(), pairs=pairs) as engine:
            *_, last = [delta async for delta in engine.generate(REQUEST)]
    assert last.finish is not None
    assert last.finish.sent is not None
    assert last.finish.times == WorkerTimes(received=1.5, queued=4.75, begun=5.0, told=6.0)
    assert last.finish.prefill_times == WorkerTimes(received=1.0, queued=1.5, begun=2.0, prefilled=3.0)


async def test_an_answer_cut_by_length_keeps_all_tokens() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10, 11], " ten", {"type": "length", "length": 2}))

    (delta,) = await answer(script)
    assert delta.ids == (10, 11)


async def test_what_was_drafted_is_told_at_the_end() -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10], " ten"))
        early, late = (DraftCounts(steps=steps, drafted=8 * steps, accepted=steps) for steps in (1, 2))
        await send(response, chunk([11, 12], " eleven", count=3, drafts=early))
        await send(response, chunk([13, 14], " more", {"type": "length", "length": 5}, count=5, drafts=late))

    *others, last = await answer(script)
    assert [delta.finish for delta in others] == [None, None]
    assert last.finish is not None
    assert last.finish.drafts == DraftCounts(steps=2, drafted=16, accepted=2)


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
        "frequency_penalty": 0.0,
        "sampling_seed": 7, "stop": ["END"],
    }  # fmt: skip


async def test_log_probabilities_are_asked_for_when_somebody_wants_them() -> None:
    async with FakeSglang(_normal) as sglang, engine_for(sglang.url) as engine:
        async for _ in engine.generate(dataclasses.replace(REQUEST, logprobs=False)):
            pass
        (body,) = sglang.requests
    assert body["return_logprob"] is False


async def test_control_tokens_are_shown_when_asked_for() -> None:
    async with FakeSglang(_normal) as sglang, engine_for(sglang.url) as engine:
        async for _ in engine.generate(dataclasses.replace(REQUEST, show_control=True)):
            pass
        (body,) = sglang.requests
    assert body["sampling_params"]["skip_special_tokens"] is False


async def _error_event(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, {"error": {"message": "too long", "type": "invalid_request_error", "code": 400}})


async def _breaks_off(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk([10], " ten"))


async def _aborted(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await send(response, chunk([10], " ten", {"type": "abort", "message": "Aborted"}))


async def _deeply_nested(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await response.write(b'data: {"surplus": ' + b"[" * 100_000 + b"\n\n")


async def _not_utf8(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await response.write(b'data: {"text": "\xff"}\n\n')


async def _long_line(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await response.write(b"data: " + b" " * 5_000_000 + b"\n\n")


async def _not_json(response: web.StreamResponse, _body: dict[str, Any]) -> None:
    await response.write(b"data: nonsense\n\n")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (_error_event, "too long"),
        (_breaks_off, "ended its stream before the answer was finished"),
        (_aborted, "ended the answer with 'abort': Aborted"),
        (_not_json, "cannot be read"),
        (_deeply_nested, "cannot be read"),
        (_not_utf8, "cannot be read"),
        (_long_line, "broke off"),
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


async def test_a_stream_that_does_not_end_with_its_answer_holds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "_LAST_S", 0.05)

    async def script(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await _normal(response, body)
        await asyncio.Event().wait()

    assert [delta.ids for delta in await answer(script)] == [(10,), (11,)]


@pytest.mark.parametrize("ends", ["length", "stop"])
async def test_events_that_repeat_the_answer_are_read_for_what_is_new(ends: str) -> None:
    """As an engine streams without `--incremental-streaming-output`; the first token comes twice in the answer."""

    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10], "ok"))
        await send(response, chunk([10], "ok"))
        await send(response, chunk([10, 10], "okok"))
        finish = {"type": "length", "length": 4} if ends == "length" else {"type": "stop", "matched": 99}
        await send(response, chunk([10, 10, 12, 99], "okok world", finish))

    deltas = await answer(script)
    assert "".join(delta.text for delta in deltas) == "okok world"
    ids = [token for delta in deltas for token in delta.ids]
    assert ids == ([10, 10, 12, 99] if ends == "length" else [10, 10, 12])
    assert sum(len(delta.logprobs) for delta in deltas) == len(ids)
    assert deltas[-1].finish is not None
    assert deltas[-1].finish.completion_tokens == 4


@pytest.mark.parametrize(
    "second",
    [chunk([11], count=4), chunk([11], count=1), chunk([11, 12], count=2), chunk([10, 11], "no", count=2)],
)
async def test_counts_that_do_not_add_up_are_an_error(second: dict[str, Any]) -> None:
    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10], "ok"))
        await send(response, second)
        await send(response, chunk([], "", {"type": "length", "length": 9}, count=9))

    with pytest.raises(EngineError, match="the engine counts"):
        await answer(script)


async def test_clients_are_told_no_addresses(unused_tcp_port: int) -> None:
    """Whoever wrote them: our own words, the system's, the engine's."""

    async def tells(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        said = "error sending request for url (http://prefill-0.svc:30000/generate): 10.1.2.3:8998, [::1]:9, localhost"
        await send(response, {"error": {"message": said}})

    with pytest.raises(EngineError, match="prefill-0") as told:
        await answer(tells)
    assert told.value.message == "error sending request for url (the engine): (address), (address), (address)"
    async with engine_for(f"http://127.0.0.1:{unused_tcp_port}") as engine:
        with pytest.raises(EngineError, match=str(unused_tcp_port)) as gone:
            await anext(engine.generate(REQUEST))
        with pytest.raises(EngineError, match=str(unused_tcp_port)) as unready:
            await engine.check_ready("m")
    assert gone.value.message == ("model 'm': its only worker does not answer (the engine cannot be reached)")
    assert unready.value.message == "model 'm': the engine cannot be reached"


async def test_which_workers_are_gone_is_said() -> None:
    async def breaks(_response: web.StreamResponse, _body: dict[str, Any]) -> None:
        pass

    async with FakeSglang(breaks) as alive, aiohttp.ClientSession() as client:
        for pairs, told in (
            ([(alive.url, alive.url)], None),
            ([(gone(), alive.url)], "its only prefill worker does not answer"),
            ([(alive.url, gone()), (alive.url, gone())], "none of its 2 decode workers answers"),
            ([(alive.url, alive.url), (alive.url, gone())], "1 of 2 decode workers does not answer"),
        ):
            configs = tuple(PairConfig(prefill=p, decode=d) for p, d in pairs)
            model = ModelConfig(
                name="m", tokenizer="-", via="sglang_router", router_url=alive.url, pairs=configs, context_length=100
            )
            with pytest.raises(EngineError) as error:
                await anext(HttpEngine({"m": model}, LimitsConfig(), client).generate(REQUEST))
            ended = "the engine ended its stream before the answer was finished"
            assert error.value.message == (ended if told is None else f"model 'm': {told} ({ended})")
            assert error.value.status == (503 if told is not None and "2 decode workers does" not in told else 502)


async def test_a_sglang_router_that_is_gone_is_named() -> None:
    async with FakeSglang(_normal) as worker, aiohttp.ClientSession() as client:
        model = ModelConfig(
            name="m", tokenizer="-", via="sglang_router", router_url=gone(), workers=(worker.url,), context_length=100
        )
        with pytest.raises(EngineUnreachable) as error:
            await anext(HttpEngine({"m": model}, LimitsConfig(), client).generate(REQUEST))
        assert error.value.message == "model 'm': its workers answer, but sglang-router does not"


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
        for count in itertools.count(1):
            await send(response, chunk([10], " ten", count=count))
            await asyncio.sleep(0.02)

    limits = LimitsConfig(request_timeout_s=0.3, idle_timeout_s=10)
    async with FakeSglang(script) as sglang, engine_for(sglang.url, limits) as engine:
        with pytest.raises(EngineTooSlow, match=r"/generate did not end within 0\.3 s"):
            [delta async for delta in engine.generate(REQUEST)]


async def test_tokens_arrive_while_the_answer_goes_on() -> None:
    gate = asyncio.Event()

    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        await send(response, chunk([10], " ten"))
        await gate.wait()
        await send(response, chunk([11], " eleven", {"type": "length", "length": 2}, count=2))

    async with FakeSglang(script) as sglang, engine_for(sglang.url) as engine:
        deltas = engine.generate(REQUEST)
        assert (await anext(deltas)).ids == (10,), "the first token is here while the engine is held at the gate"
        gate.set()
        assert [delta.ids async for delta in deltas] == [(11,)]


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


@pytest.mark.parametrize("begun", [False, True])
async def test_an_abort_goes_to_the_workers_that_may_have_the_request(begun: bool) -> None:
    """Whoever answers has said its name: sglang-router passes it on. Who prefills is through when tokens come."""
    held = asyncio.Event()

    async def script(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        if begun:
            await send(response, chunk([10], " ten"))
        await held.wait()

    async with (
        FakeSglang(script) as router,
        FakeSglang(_kv) as p1,
        FakeSglang(_kv) as p2,
        FakeSglang(_normal) as d1,
        FakeSglang(_normal) as d2,
        aiohttp.ClientSession() as client,
    ):
        d1.name, d2.name = "one", "two"
        workers = (p1, p2, d1, d2)
        pairs = tuple(PairConfig(prefill=p.url, decode=d.url) for p in (p1, p2) for d in (d1, d2))
        model = ModelConfig(
            name="m", tokenizer="-", via="sglang_router", router_url=router.url, pairs=pairs, context_length=100
        )
        engine = HttpEngine({"m": model}, LimitsConfig(), client)

        places = engine._places._places

        async def told_of(name: str, named: str) -> list[bool]:
            """Which workers are told of the abort of a request that `named` answers."""
            router.headers = {WORKER_HEADER: named}
            stream = engine.generate(dataclasses.replace(REQUEST, request_id=name))
            first = asyncio.ensure_future(anext(stream))
            await until(lambda: name in places and places[name].answering == named)
            if begun:
                await first
            await engine.abort("m", name)
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await stream.aclose()
            return [name in worker.aborted for worker in workers]

        for number in range(2):
            assert await told_of(f"rid-{number}", "two") == [not begun, not begun, False, True]
        assert d2.asked == 1, "its name is known by then"
        assert await told_of("rid-x", "three") == [True] * 4, "nobody is known by that name"
        held.set()


@pytest.mark.parametrize("begun", [False, True])
async def test_an_abort_past_sglang_router_goes_to_that_pair(begun: bool) -> None:
    """With the first token prefill is through with it."""

    async def waits(response: web.StreamResponse, _body: dict[str, Any]) -> None:
        if begun:
            await send(response, chunk([10], " ten"))
        await asyncio.Event().wait()

    async with (
        FakeSglang(_kv) as p1,
        FakeSglang(waits) as d1,
        FakeSglang(_kv) as p2,
        FakeSglang(waits) as d2,
        aiohttp.ClientSession() as client,
    ):
        pairs = (PairConfig(prefill=p1.url, decode=d1.url), PairConfig(prefill=p2.url, decode=d2.url))
        model = ModelConfig(name="m", tokenizer="-", router_url=gone(), pairs=pairs, context_length=100)
        engine = HttpEngine({"m": model}, LimitsConfig(), client)
        async with aclosing(engine.generate(dataclasses.replace(REQUEST, near=(p2.url, d2.url)))) as deltas:
            asking = asyncio.ensure_future(anext(deltas))
            if begun:
                await asking
            await until(lambda: bool(d2.requests))
            await engine.abort("m", "rid-1")
            asking.cancel()
            await asyncio.wait([asking])
        assert (p1.aborted, d1.aborted) == ([], [])
        assert (p2.aborted, d2.aborted) == ([] if begun else ["rid-1"], ["rid-1"])


async def test_an_answer_that_has_ended_is_nowhere() -> None:
    async with FakeSglang(_normal) as sglang, engine_for(sglang.url) as engine:
        assert [delta async for delta in engine.generate(REQUEST)]
        assert engine._places._places == {}


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


@asynccontextmanager
async def engine_of(router: str, **model: Any) -> AsyncIterator[HttpEngine]:
    async with aiohttp.ClientSession() as client:
        config = ModelConfig(name="m", tokenizer="-", router_url=router, context_length=100_000, **model)
        yield HttpEngine({"m": config}, LimitsConfig(), client)


@pytest.mark.parametrize("via", ["direct", "sglang_router"])
async def test_the_configuration_says_how_requests_reach_workers(via: str) -> None:
    async with FakeSglang(_normal) as router, FakeSglang(_kv) as prefill, FakeSglang(_normal) as decode:
        pairs = (PairConfig(prefill=prefill.url, decode=decode.url),)
        async with engine_of(router.url, via=via, pairs=pairs) as engine:
            assert [delta async for delta in engine.generate(REQUEST)]
        assert [len(each.requests) for each in (router, prefill, decode)] == (
            [0, 1, 1] if via == "direct" else [1, 0, 0]
        )


def _waiting() -> tuple[asyncio.Event, Callable[[web.StreamResponse, dict[str, Any]], Awaitable[None]]]:
    """An event, and a script that answers as usual when it has been set."""
    held = asyncio.Event()

    async def waits(response: web.StreamResponse, body: dict[str, Any]) -> None:
        await held.wait()
        await _normal(response, body)

    return held, waits


async def test_requests_are_spread_over_pairs_and_siblings_stay_together() -> None:
    """Short prompts that begin alike go to one prefill worker, long ones to both; decode workers share all."""
    held, waits = _waiting()
    async with (
        FakeSglang(_kv) as p1,
        FakeSglang(_kv) as p2,
        FakeSglang(waits) as d1,
        FakeSglang(waits) as d2,
    ):
        pairs = tuple(PairConfig(prefill=p.url, decode=d.url) for p in (p1, p2) for d in (d1, d2))
        async with engine_of(gone(), pairs=pairs) as engine:
            for number, (tokens, most) in enumerate(((100, 8), (2000, 5)), 1):
                held.clear()
                answers = [
                    asyncio.ensure_future(anext(engine.generate(one)))
                    for one in (
                        dataclasses.replace(
                            REQUEST, request_id=f"rid-{tokens}-{n}", input_ids=(1,) * tokens, siblings="run"
                        )
                        for n in range(8)
                    )
                ]
                await until(lambda: len(d1.requests) + len(d2.requests) == 8 * number)  # noqa: B023
                assert len(d1.requests) == len(d2.requests) == 4 * number
                sizes = [sum(len(sent["input_ids"]) == tokens for sent in p.requests) for p in (p1, p2)]
                assert max(sizes) == most, sizes
                held.set()
                await asyncio.gather(*answers)


async def test_what_others_gave_a_worker_counts() -> None:
    async with FakeSglang(_normal) as one, FakeSglang(_normal) as other:
        one.busy = 5
        async with engine_of(gone(), workers=(one.url, other.url)) as engine:
            for _ in range(4):
                assert [delta async for delta in engine.generate(REQUEST)]
        assert [len(one.requests), len(other.requests)] == [0, 4]


async def test_of_regular_workers_the_one_that_has_least_to_do() -> None:
    held, waits = _waiting()
    async with (
        FakeSglang(waits) as one,
        FakeSglang(waits) as other,
        engine_of(gone(), workers=(one.url, other.url)) as engine,
    ):
        answers = [
            asyncio.ensure_future(anext(engine.generate(dataclasses.replace(REQUEST, request_id=f"rid-{n}"))))
            for n in range(6)
        ]
        await until(lambda: len(one.requests) + len(other.requests) == 6)
        assert len(one.requests) == 3
        held.set()
        await asyncio.gather(*answers)


async def test_after_a_failure_workers_are_asked_before_they_are_used() -> None:
    """The first attempt of another request goes where workers answer, too."""

    async def breaks(_response: web.StreamResponse, _body: dict[str, Any]) -> None:
        pass

    async with FakeSglang(_normal) as router, FakeSglang(_normal) as well:
        async with FakeSglang(breaks) as ill:
            workers = (ill.url, well.url)
            async with engine_of(router.url, workers=workers) as engine:
                for number in itertools.count():
                    try:
                        [delta async for delta in engine.generate(dataclasses.replace(REQUEST, siblings=f"{number}"))]
                    except EngineError:
                        break
                await ill.__aexit__()
                for again in range(20):
                    one = dataclasses.replace(REQUEST, siblings=f"again-{again}")
                    assert [delta async for delta in engine.generate(one)]
        assert len(well.requests) == number + 20
        assert router.requests == []


@pytest.mark.parametrize("via", ["direct", "sglang_router"])
@pytest.mark.parametrize("drafts", [0, 8])
async def test_a_worker_that_drafts_is_told_what_from_past_sglang_router(via: str, drafts: int) -> None:
    said = Drafts(references=((0, 2),), group="g")
    async with FakeSglang(_normal) as router, FakeSglang(_kv) as prefill, FakeSglang(_normal) as decode:
        decode.drafts = drafts
        pairs = (PairConfig(prefill=prefill.url, decode=decode.url),)
        async with engine_of(router.url, via=via, pairs=pairs) as engine:
            for each in (said, Drafts(off=True), ANY_DRAFTS):
                assert [delta async for delta in engine.generate(dataclasses.replace(REQUEST, drafts=each))]
        params = [drafts_in(body["sampling_params"].get("custom_params")) for body in decode.requests]
        through = len(router.requests)
    told = [said, Drafts(off=True)] if drafts else []
    assert [each for each in params if each is not None] == told
    expected = {("direct", 0): 0, ("direct", 8): 0, ("sglang_router", 0): 3, ("sglang_router", 8): 1}
    assert through == expected[via, drafts]


async def test_a_worker_without_the_extension_serves_what_it_can() -> None:
    """Stock SGLang has no status: where its KV goes is not known, but one that does both needs no more."""
    async with FakeSglang(_normal) as router, FakeSglang(_normal) as stock:
        stock.extended = False
        async with engine_of(router.url, workers=(stock.url,)) as engine:
            assert [delta async for delta in engine.generate(REQUEST)]
        assert (len(router.requests), len(stock.requests)) == (0, 1)
        async with engine_of(router.url, pairs=(PairConfig(prefill=stock.url, decode=stock.url),)) as engine:
            assert [delta async for delta in engine.generate(REQUEST)]
        assert (len(router.requests), len(stock.requests)) == (1, 1)


async def test_without_sglang_router_known_workers_are_enough() -> None:
    async with FakeSglang(_kv) as worker:
        pairs = (PairConfig(prefill=worker.url, decode=worker.url),)
        async with engine_of(gone(), pairs=pairs) as engine:
            await engine.check_ready("m")
        async with engine_of(gone(), pairs=pairs, via="sglang_router") as engine:
            with pytest.raises(EngineUnreachable):
                await engine.check_ready("m")
        async with engine_of(gone(), pairs=(PairConfig(prefill=worker.url, decode=gone()),)) as engine:
            with pytest.raises(EngineUnreachable):
                await engine.check_ready("m")


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
        biased = dataclasses.replace(REQUEST, form=AnswerForm(logit_bias={"5": 1.0}))
        assert [delta async for delta in engine.generate(biased)]
        assert decode.requests[2]["sampling_params"]["logit_bias"] == {"5": 1.0}, "sglang-router would drop it"
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
