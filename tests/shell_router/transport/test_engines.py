"""Each model's requests go to its own backend, and a backend's limits are known."""

from __future__ import annotations

import re
from typing import Any

import aiohttp
import msgspec
import pytest

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.core.tree import Sampling
from shell_router.transport.base import GenerateRequest
from shell_router.transport.capabilities import SGLANG, describe, probe
from shell_router.transport.engines import Engines
from shell_router.transport.incremental import IncrementalSessions
from tests.fakes.openai import FakeOpenAI, complete
from tests.fakes.server import send
from tests.fakes.sglang import FakeSglang, chunk


async def _sglang(response: Any, _body: dict[str, Any]) -> None:
    await send(response, chunk([10], " ten", {"type": "length", "length": 1}))


async def test_each_model_is_served_by_its_backend() -> None:
    async with (
        FakeSglang(_sglang) as sglang,
        FakeOpenAI(complete) as other,
        aiohttp.ClientSession() as client,
    ):
        models = {
            "s": ModelConfig(name="s", tokenizer="-", router_url=sglang.url, workers=(sglang.url,), context_length=100),
            "m": ModelConfig(name="m", tokenizer="-", backend="openai", router_url=other.url, context_length=100),
        }
        limits = LimitsConfig()
        capabilities = await probe(models.values(), client, limits)
        assert capabilities["s"] == SGLANG
        assert describe(models["s"], SGLANG) is None
        engines = Engines(models, capabilities, limits, client)
        for name in models:
            await engines.check_ready(name)
            request = GenerateRequest(f"rid-{name}", name, (1, 2, 3), Sampling(max_new_tokens=1))
            (delta,) = [delta async for delta in engines.generate(request)]
            assert delta.finish is not None
            assert len(delta.ids) == 1
            await engines.abort(name, request.request_id)
        assert len(sglang.requests) == 1
        assert sglang.aborted == ["rid-s"]
        # One request is the probe's.
        assert len(other.requests) == 2


async def test_workers_of_no_pair_are_sent_whole_prompts() -> None:
    async with FakeSglang(_sglang) as sglang, aiohttp.ClientSession() as client:
        models = {
            "s": ModelConfig(name="s", tokenizer="-", router_url=sglang.url, workers=(sglang.url,), context_length=100)
        }
        limits = LimitsConfig()
        engines = Engines(models, await probe(models.values(), client, limits), limits, client)
        sessions = IncrementalSessions(models, limits, client, engines)
        session = sessions(GenerateRequest("rid", "s", (), Sampling(max_new_tokens=1)), max_prompt_tokens=50)
        await session.append(range(16))
        assert [delta.text async for delta in session.commit([16])] == [" ten"]
        assert (session.served_by, session.fallback) == ("resend", "not_offered")
        assert [len(body["input_ids"]) for body in sglang.requests] == [16, 17]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backend": "openai", "workers": ["http://w"]}, "has neither `pairs` nor `workers`"),
        ({"backend": "openai", "pairs": [{"prefill": "a", "decode": "b"}]}, "has neither `pairs` nor `workers`"),
        ({"served_name": "x"}, "are for backend `openai`"),
        ({"upstream_key_env": "X"}, "are for backend `openai`"),
        ({"backend": "vllm"}, "Invalid enum value 'vllm'"),
    ],
)
def test_what_a_backend_has_no_use_for_is_refused(fields: dict[str, Any], message: str) -> None:
    document = {"name": "m", "tokenizer": "-", "router_url": "http://r", "context_length": 9, **fields}
    with pytest.raises(msgspec.ValidationError, match=re.escape(message)):
        msgspec.convert(document, ModelConfig)
