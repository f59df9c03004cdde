"""The key of SGLang's workers goes to them, and to no other server."""

from __future__ import annotations

import aiohttp
import pytest
from aiohttp import web

from shell_router.config import ConfigError, ModelConfig, RouterConfig
from shell_router.transport.keys import workers_key
from tests.fakes.server import LocalServer


class Asked(LocalServer):
    """Tells what key each request had."""

    def __init__(self) -> None:
        super().__init__([web.get("/{path:.*}", self._get)])
        self.keys: list[str | None] = []

    async def _get(self, request: web.Request) -> web.Response:
        self.keys.append(request.headers.get("Authorization"))
        return web.Response()


def config(sglang: str, other: str, key_env: str | None) -> RouterConfig:
    models = (
        ModelConfig(name="a", tokenizer="-", router_url=sglang, context_length=8),
        ModelConfig(name="b", tokenizer="-", router_url=f"{other}/v1", context_length=8, backend="openai"),
    )
    return RouterConfig(models=models, trees=(), workers_key_env=key_env)


async def test_the_key_goes_to_workers_alone() -> None:
    async with Asked() as sglang, Asked() as other:
        keyed = workers_key(config(sglang.url, other.url, "K"), {"K": "secret\n"})
        async with aiohttp.ClientSession(middlewares=keyed) as client:
            # A worker that is found later has it, too: whatever is asked is one, but for the servers that are known.
            for url in (f"{sglang.url}/generate", f"{other.url}/v1/completions"):
                await client.get(url)
            await client.get(f"{other.url}/v1/models", headers={"Authorization": "Bearer own"})
    assert sglang.keys == ["Bearer secret"]
    assert other.keys == [None, "Bearer own"]


def test_without_a_key_nothing_is_put_there() -> None:
    assert workers_key(config("http://a", "http://b", None), {}) == ()


def test_a_variable_without_a_key_is_an_error() -> None:
    with pytest.raises(ConfigError, match="workers_key_env: the environment variable K is not set, or empty"):
        workers_key(config("http://a", "http://b", "K"), {"K": " "})
