"""HTTP around the API: what is malformed, ids of requests, browsers' pages, half-closed clients, silent streams."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import socket
from typing import Any

import openai
import pytest
from aiohttp import web

from shell_router.app import build_app
from shell_router.edge import number, sign, tell_errors
from shell_router.handlers.sse import EventStream
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import CHAT, CHAT_PATH, Client, Held, fake_service, limited_service, serving
from tests.waiting import until


def app_of(engine: FakeEngine, **more: Any) -> web.Application:
    return build_app(limited_service(engine), body_bytes=100_000, **more)


def is_openais(body: dict[str, Any]) -> bool:
    return set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b'{"model": "t", "messages": [{"role": "user", "content": "\xff"}]}', {}, "not UTF-8"),
        (b"\xff\xfe", {}, "not JSON"),
        (b'{"model": "t", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", {}, "nested too deeply"),
        (b'{"model": "t", "x": ' + b'{"a":' * 5000, {}, "nested too deeply"),
        (b"no gzip", {"Content-Encoding": "gzip"}, "Content-Encoding"),
        (gzip.compress(json.dumps(CHAT).encode(), mtime=0)[:20], {"Content-Encoding": "gzip"}, "not JSON"),
        (b"{}", {"Content-Encoding": "gzip"}, "Content-Encoding"),
        (b"", {}, "not JSON"),
        (b"null", {}, "Expected `object`"),
        (b'{"model": 3}', {}, "Expected `str`"),
    ],
)
async def test_bodies_that_are_none(body: bytes, headers: dict[str, str], said: str) -> None:
    engine = FakeEngine()
    async with (
        serving(app_of(engine)) as client,
        client.session.post(client.url + CHAT_PATH, data=body, headers=headers) as reply,
    ):
        told = await reply.json()
        assert reply.status == 400
        assert is_openais(told)
        assert said in told["error"]["message"]
    assert engine.requests == []


async def test_a_compressed_body_is_read_and_bounded() -> None:
    async with serving(app_of(FakeEngine())) as client:
        for content, status in ((CHAT, 200), (CHAT | {"user": "x" * 200_000}, 413)):
            body = gzip.compress(json.dumps(content).encode())
            async with client.session.post(
                client.url + CHAT_PATH, data=body, headers={"Content-Encoding": "gzip"}
            ) as reply:
                assert reply.status == status


async def raw(client: Client, request: bytes, *, half_close: bool = False) -> bytes:
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    if half_close:
        writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


def request_of(body: dict[str, Any], *, more: str = "") -> bytes:
    written = json.dumps(body).encode()
    head = f"POST {CHAT_PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(written)}\r\n{more}\r\n"
    return head.encode() + written


@pytest.mark.parametrize("sent", [b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"POST / HTTP/1.1\r\nA B: c\r\n\r\n"])
async def test_what_is_no_http_is_told_in_the_same_form(sent: bytes) -> None:
    async with serving(app_of(FakeEngine())) as client:
        head, _, body = (await raw(client, sent)).partition(b"\r\n\r\n")
        assert b" 400 " in head.splitlines()[0]
        assert is_openais(json.loads(body))


async def test_what_is_expected() -> None:
    async with serving(app_of(FakeEngine())) as client:
        answer = await raw(client, request_of(CHAT, more="Connection: close\r\nExpect: 100-Continue\r\n"))
        first, _, rest = answer.partition(b"\r\n\r\n")
        assert first == b"HTTP/1.1 100 Continue"
        assert rest.startswith(b"HTTP/1.1 200 OK")
        answer = await raw(client, request_of(CHAT, more="Connection: close\r\nExpect: 200-maybe\r\n"))
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 417 ")
        told = json.loads(body)
        assert is_openais(told)
        assert told["error"]["param"] == "Expect"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_closes_its_side_after_sending_is_answered(stream: bool) -> None:
    held = Held()
    async with serving(app_of(FakeEngine(gate=held))) as client:
        asked = asyncio.create_task(raw(client, request_of(CHAT | {"stream": stream}), half_close=True))
        await held.wait_for(1)
        await asyncio.sleep(0.3)
        assert not asked.done()
        held.open.set()
        answer = await asked
    assert b" 200 OK" in answer
    assert (b"data: [DONE]" if stream else b'"finish_reason"') in answer


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_closes_altogether_loses_its_run(stream: bool) -> None:
    held = Held()
    engine = FakeEngine(gate=held)
    async with serving(app_of(engine)) as client:
        host, port = client.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_of(CHAT | {"stream": stream}))
        await held.wait_for(1)
        writer.close()
        await until(lambda: not engine.running)


def test_an_interim_answer_is_skipped_by_the_clients_of_python() -> None:
    """What `http.client` makes of the interim answers that a half-closed client gets."""
    ours, theirs = socket.socketpair()
    theirs.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 2 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    answer = http.client.HTTPResponse(ours)
    answer.begin()
    assert (answer.status, answer.read()) == (200, b"ok")
    ours.close()
    theirs.close()


async def test_a_request_has_the_id_its_client_gave_it_or_a_new_one() -> None:
    async with serving(app_of(FakeEngine())) as client:
        for sent, kept in (("abc-1", True), ("x" * 128, True), ("x" * 129, False), ("ä", False), (None, False)):
            headers = {} if sent is None else {"X-Request-Id": sent}
            for path in ("/health", "/v1/runs/none", "/nowhere"):
                async with client.session.get(client.url + path, headers=headers) as reply:
                    given = reply.headers["X-Request-Id"]
                    assert (given == sent) is kept
                    assert kept or given.startswith("req-")
                    assert reply.headers["Server"] == "graft"
        # What is no request to an application: this encoding is not known.
        async with client.session.post(client.url + CHAT_PATH, data=b"?", headers={"Content-Encoding": "br"}) as reply:
            assert reply.status == 400
            assert reply.headers["Server"] == "graft"
            assert reply.headers["X-Request-Id"].startswith("req-")


async def test_pages_of_allowed_origins_may_call_and_no_others() -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for allowed, origin, answer in (
        (("https://a.example",), "https://a.example", "https://a.example"),
        (("https://a.example",), "https://b.example", None),
        (("*",), "https://b.example", "*"),
        ((), "https://a.example", None),
    ):
        async with serving(app_of(FakeEngine(), cors_origins=allowed)) as client:
            async with client.session.options(client.url + CHAT_PATH, headers=asks | {"Origin": origin}) as reply:
                assert reply.status == (405 if answer is None else 204)
                assert reply.headers.get("Access-Control-Allow-Origin") == answer
            async with client.session.get(client.url + "/v1/models", headers={"Origin": origin}) as reply:
                assert reply.headers.get("Access-Control-Allow-Origin") == answer


async def test_what_nobody_has_foreseen_is_told_by_an_id_that_the_log_has(caplog: pytest.LogCaptureFixture) -> None:
    async def broken(request: web.Request) -> web.Response:
        raise ZeroDivisionError("a secret")

    async def breaks_off(request: web.Request) -> web.StreamResponse:
        async with EventStream(request) as stream:
            await stream.send({"a": 1})
            raise ZeroDivisionError("a secret")

    app = web.Application(middlewares=[number, tell_errors])
    app.on_response_prepare.append(sign(()))
    app.add_routes([web.get("/broken", broken), web.get("/breaks-off", breaks_off)])
    caplog.set_level(logging.ERROR)
    async with serving(app) as client:
        status, body, headers = await client.call("GET", "/broken")
        assert status == 500
        assert is_openais(body)
        assert headers["X-Request-Id"] in body["error"]["message"]
        assert "secret" not in json.dumps(body)
        assert headers["X-Request-Id"] in caplog.text
        whole = await raw(client, b"GET /breaks-off HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b'{"a":1}' in whole
        assert not whole.endswith(b"0\r\n\r\n"), "it does not end like a whole answer"
        assert whole.count(b"HTTP/1.1") == 1


async def test_a_streamed_run_answers_at_once_while_it_waits_and_comments_on_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EventStream.__init__, "__kwdefaults__", {"silence_s": 0.05})
    held = Held()
    service = limited_service(FakeEngine(gate=held))
    service.admission.line._limit = 1
    async with serving(build_app(service, body_bytes=10_000)) as client:
        running = asyncio.create_task(client.chat())
        await held.wait_for(1)
        async with client.session.post(client.url + CHAT_PATH, json=CHAT | {"stream": True}) as reply:
            assert reply.status == 200
            assert service.admission.line.waiting == 1
            lines = [await reply.content.readline() for _ in range(6)]
            assert [line for line in lines if line.strip()] == [b": accepted\n", *[b": the run goes on\n"] * 2]
            held.open.set()
            rest = await reply.content.read()
        assert b"data: [DONE]" in rest
        assert (await running)[0] == 200


async def test_what_is_wrong_with_a_streamed_request_is_a_status_and_no_event() -> None:
    async with serving(app_of(FakeEngine())) as client:
        status, body, _ = await client.chat(stream=True, model="x")
        assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert (await client.chat(stream=True, max_tokens=10**9))[0] == 400


async def test_no_retry_of_what_no_retry_helps() -> None:
    """OpenAI's client asks again after 504 and 5xx unless it is told not to."""
    held = Held()
    engine = FakeEngine(gate=held)
    service = fake_service(engine)
    async with (
        serving(build_app(service, body_bytes=10_000)) as client,
        openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="-", max_retries=2) as ours,
    ):

        async def ask(**graft: Any) -> openai.APIStatusError:
            with pytest.raises(openai.APIStatusError) as refused:
                await ours.chat.completions.create(
                    model="t", messages=[{"role": "user", "content": "why?"}], extra_body={"graft": graft}
                )
            return refused.value

        late = await ask(deadline_s=0.05)
        assert (late.status_code, late.code) == (504, "deadline_exceeded")
        asking = asyncio.create_task(ask())
        await held.wait_for(2)
        (running,) = (run for run in service.runs() if run.summary().state == "running")
        async with client.session.delete(f"{client.url}/v1/runs/{running.head.id}") as reply:
            record = await reply.json()
        assert (record["state"], record["error"]) == ("cancelled", "the run was deleted")
        assert record["duration_s"] > 0
        deleted = await asking
        assert (deleted.status_code, deleted.code) == (410, "run_deleted")
    assert len(service.runs()) == 2, "neither was asked for again"


async def test_answers_are_given_beforehand_only_where_that_is_allowed() -> None:
    engine = FakeEngine()
    service = fake_service(engine, allow_forced=False)
    async with serving(build_app(service, body_bytes=10_000)) as client:
        status, body, _ = await client.chat(graft={"forced": {"p1": {"ids": [5], "text": "x"}}})
        assert (status, body["error"]["param"]) == (400, "graft.forced")
        assert "allow_forced" in body["error"]["message"]
    assert engine.requests == []


async def test_a_record_has_its_prompts_as_text() -> None:
    async with serving(app_of(FakeEngine())) as client:
        _, answer, _ = await client.chat()
        _, record, _ = await client.call("GET", f"/v1/runs/{answer['id']}")
        for agent in record["agents"]:
            assert agent["prompt"].startswith("<|im_start|>")
            assert len(agent["prompt_ids"]) > 0
            assert "why?" in agent["prompt"] or agent["precursors"]


async def test_one_model() -> None:
    async with (
        serving(app_of(FakeEngine())) as client,
        openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="-", max_retries=0) as ours,
    ):
        assert (await ours.models.retrieve("t")).id == "t"
        with pytest.raises(openai.NotFoundError):
            await ours.models.retrieve("x")
