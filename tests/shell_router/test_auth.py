"""The API key: what it guards, and where it must not appear."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import openai
import pytest

from shell_router.app import build_app
from shell_router.auth import Guard, load_guard
from shell_router.config import ConfigError, RouterConfig
from shell_router.errors import InvalidApiKey
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import limited_service, serving

KEY = "graft-key-ünïcode"


def config(api_key_env: str | None) -> RouterConfig:
    return RouterConfig(models=(), trees=(), api_key_env=api_key_env)


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"Bearer  {KEY} "])
def test_the_key_passes(header: str) -> None:
    Guard(KEY).tenant(header)


@pytest.mark.parametrize(
    "header",
    [None, "", KEY, "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \udcff"],
)
def test_anything_else_is_refused_without_telling_the_key(header: str | None) -> None:
    with pytest.raises(InvalidApiKey) as refused:
        Guard(KEY).tenant(header)
    assert KEY not in refused.value.message


def test_the_key_comes_from_the_environment_only() -> None:
    assert load_guard(config(None), {}) is None
    guard = load_guard(config("GRAFT_KEY"), {"GRAFT_KEY": f"{KEY}\n"})
    assert guard is not None
    guard.tenant(f"Bearer {KEY}")
    for environment in ({}, {"GRAFT_KEY": ""}, {"GRAFT_KEY": " "}):
        with pytest.raises(ConfigError, match="api_key_env: the environment variable GRAFT_KEY is not set"):
            load_guard(config("GRAFT_KEY"), environment)


def test_a_variable_that_is_not_set_ends_the_start(tmp_path: Path) -> None:
    file = tmp_path / "router.json"
    file.write_bytes(msgspec.json.encode(config("GRAFT_TEST_KEY_THAT_IS_NOT_SET")))
    environment = {name: value for name, value in os.environ.items() if name != "GRAFT_TEST_KEY_THAT_IS_NOT_SET"}
    done = subprocess.run(
        [sys.executable, "-m", "shell_router", "--config", str(file)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "GRAFT_TEST_KEY_THAT_IS_NOT_SET is not set" in done.stderr


async def test_all_but_health_readiness_and_the_pages_files_is_guarded(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    app = build_app(limited_service(engine), body_bytes=10_000, guard=Guard(KEY))
    routes = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    caplog.set_level(logging.DEBUG)
    async with serving(app) as client:
        for method, path in sorted(routes):
            if method == "HEAD":
                continue
            if path.startswith("/ui"):
                async with client.session.get(client.url + path.replace("{name}", "index.html")) as reply:
                    assert (reply.status, reply.content_type) == (200, "text/html")
                continue
            for headers in ({}, {"Authorization": "Bearer nonsense"}):
                status, body, answered = await client.call(method, path.replace("{id}", "run-x"), headers=headers)
                if path in ("/health", "/ready"):
                    assert status == 200
                    continue
                assert status == 401, path
                assert body["error"].keys() == {"message", "type", "param", "code"}
                assert body["error"]["type"] == "invalid_request_error"
                assert body["error"]["code"] == "invalid_api_key"
                assert answered["WWW-Authenticate"] == "Bearer"
        for path in ("/nothing", "/uix", "/ui/../v1/models"):
            assert (await client.call("GET", path))[0] == 401, "nor does it tell what there is"
        assert (await client.call("GET", "/ui/nothing"))[1]["error"]["code"] == "no_such_file"
        assert engine.requests == []
        assert (await client.call("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"}))[0] == 200
    assert KEY not in caplog.text


async def test_the_openai_client_sends_it() -> None:
    app = build_app(limited_service(FakeEngine()), body_bytes=10_000, guard=Guard("k"))
    async with serving(app) as client:
        async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="k", max_retries=0) as ours:
            answer = await ours.chat.completions.create(model="t", messages=[{"role": "user", "content": "why?"}])
            assert answer.choices[0].message.content
        async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="x", max_retries=0) as other:
            with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
                await other.models.list()
