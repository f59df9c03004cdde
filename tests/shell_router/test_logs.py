"""The log: each record a line, with the ids of the request and the run that it is about."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from shell_router.about import About, begin
from shell_router.app import build_app
from shell_router.config import LogConfig
from shell_router.edge import Runner
from shell_router.logs import AccessLog, access_logger, configure
from shell_router.trace_context import TraceContext
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.scripted import agent_of
from tests.shell_router.serving import CHAT, limited_service


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging belongs to pytest."""
    root = logging.getLogger()
    before, level, access = list(root.handlers), root.level, access_logger.level
    for handler in before:
        root.removeHandler(handler)
    yield
    for handler in list(root.handlers):
        root.removeHandler(handler)
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)
    access_logger.setLevel(access)


async def served(log: LogConfig, engine: FakeEngine) -> tuple[str, list[str]]:
    """A question, and a run that is not there; the run's id, and what was logged."""
    stream = io.StringIO()
    configure(log, stream)
    app = build_app(limited_service(engine), body_bytes=10_000)
    runner = Runner(app, handler_cancellation=True, access_log=access_logger, access_log_class=AccessLog)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            async with session.post("/v1/chat/completions", json=CHAT, headers={"X-Request-Id": "mine"}) as reply:
                answer = await reply.json()
            async with session.get("/v1/runs/run-0?state=x%0Ay") as reply:
                assert reply.status == 404
        return answer["id"], stream.getvalue().splitlines()
    finally:
        await runner.cleanup()


@pytest.mark.usefixtures("restored")
async def test_each_request_and_what_happens_in_it_is_told_with_its_run() -> None:
    def break_p2(request: GenerateRequest) -> int | None:
        return 2 if agent_of(request) == "p2" and "again" not in request.request_id else None

    engine = FakeEngine(fail_at=break_p2)
    run, lines = await served(LogConfig(format="json", access=True), engine)
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    chat = next(each for each in records if each.get("path") == "/v1/chat/completions")
    assert (chat["request"], chat["run"], chat["status"], chat["method"]) == ("mine", run, 200, "POST")
    assert chat["duration_s"] > 0
    assert chat["time"].endswith("Z")
    failure = next(each for each in records if "agent 'p2'" in each["message"])
    assert (failure["run"], failure["request"], failure["level"]) == (run, "mine", "warning")
    missed = next(each for each in records if each.get("path") == "/v1/runs/run-0")
    assert (missed["status"], missed["run"]) == (404, "run-0")
    assert not any("state=x" in line for line in lines), "queries are not told"


@pytest.mark.usefixtures("restored")
async def test_what_was_not_asked_for_is_not_told() -> None:
    _, lines = await served(LogConfig(level="error"), FakeEngine())
    assert lines == []


@pytest.mark.usefixtures("restored")
def test_a_record_is_one_line_whatever_it_says() -> None:
    stream = io.StringIO()
    configure(LogConfig(format="json"), stream)
    try:
        raise ValueError("one\ntwo")
    except ValueError:
        logging.getLogger("x").exception("a client said %s", '"\n{"level": "info"}\n')
    (line,) = stream.getvalue().splitlines()
    told = json.loads(line)
    assert told["message"] == 'a client said "\n{"level": "info"}\n'
    assert told["error"].endswith("ValueError: one\ntwo")
    assert "run" not in told


@pytest.mark.usefixtures("restored")
def test_what_is_traced_is_told_with_its_span() -> None:
    stream = io.StringIO()
    configure(LogConfig(format="json"), stream)
    begin(About(run="run-1", trace=TraceContext(trace_id="a" * 32, span_id="b" * 16, sampled=True)))
    logging.getLogger("shell_router").info("something")
    begin(About(run="run-1"))
    logging.getLogger("shell_router").info("something else")
    begin(About())
    traced, other = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (traced["trace_id"], traced["span_id"]) == ("a" * 32, "b" * 16)
    assert not {"trace_id", "span_id"} & other.keys()
