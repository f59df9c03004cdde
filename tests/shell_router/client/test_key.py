"""The API key of `graft run`: sent to the shell router, and to nobody else."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest
from aiohttp import web

from graft.cli import FAILED, WRONG
from shell_router.app import build_app
from shell_router.auth import Guard
from shell_router.client import AsyncClient, ClientError
from shell_router.client.key import KEY_VARIABLE
from shell_router.transport.fake import FakeEngine
from tests.commands import command
from tests.shell_router.serving import fake_service, serving

main = command("run")


KEY = "graft-key-ünïcode"


def guarded() -> web.Application:
    return build_app(fake_service(FakeEngine(), context_length=100_000), body_bytes=100_000, guard=Guard(KEY))


async def test_every_call_of_the_client_has_the_key() -> None:
    async with serving(guarded()) as router, AsyncClient(router.url, run_timeout_s=60, api_key=KEY) as client:
        assert await client.trees() == ("t",)
        reply = await client.ask("why?", tree="t", seed=1)
        assert (await client.record(reply.run_id)).agents[-1].text == reply.text
        assert await client.events(reply.run_id)


@pytest.mark.parametrize("key", [None, "x"])
async def test_without_the_key_the_reason_is_told(key: str | None) -> None:
    async with serving(guarded()) as router, AsyncClient(router.url, run_timeout_s=60, api_key=key) as client:
        with pytest.raises(ClientError, match=r"HTTP 401: .*API key.*\(invalid_api_key\)"):
            await client.trees()
        with pytest.raises(ClientError, match="HTTP 401"):
            await client.ask("why?", tree="t", seed=1)


async def test_graft_run_takes_it_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The process belongs to pytest: leave its signals alone.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    workers_heard: list[str | None] = []

    async def flush(request: web.Request) -> web.Response:
        workers_heard.append(request.headers.get("Authorization"))
        return web.Response()

    worker = web.Application()
    worker.add_routes([web.post("/flush_cache", flush)])
    config = tmp_path / "small.json"
    questions = {"source": "gsm8k_sample", "count": 1}
    settings = [{"name": "a", "tree": "t"}]
    config.write_text(
        json.dumps({"name": "small", "cluster": "none.json", "settings": settings, "questions": questions})
    )
    async with serving(guarded()) as router, serving(worker) as stock:
        for name, key, code in (("none", None, FAILED), ("odd", "a\nb", WRONG), ("right", KEY, 0)):
            monkeypatch.delenv(KEY_VARIABLE, raising=False)
            if key is not None:
                monkeypatch.setenv(KEY_VARIABLE, key)
            arguments = [str(config), "--url", router.url, "--worker-url", stock.url]
            arguments += ["--runs-dir", str(tmp_path), "--name", name]
            assert await asyncio.to_thread(main, arguments) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    assert "wants an API key" in captured.err
    assert f"graft: the environment variable {KEY_VARIABLE} holds characters" in captured.err
    assert workers_heard
    assert set(workers_heard) == {None}, "workers are not told"
    kept = "".join(file.read_text(errors="replace") for file in (tmp_path / "right").rglob("*") if file.is_file())
    assert KEY not in kept + captured.out + captured.err
