"""One engine of all: each model's requests go to what serves it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

import aiohttp

from shell_router.config import LimitsConfig, ModelConfig
from shell_router.transport.base import Delta, Engine, GenerateRequest
from shell_router.transport.capabilities import Capabilities
from shell_router.transport.http import HttpEngine
from shell_router.transport.openai import OpenAIEngine
from shell_router.transport.pairs import Pairs


class Engines:
    """The backends of `models`, which can do what `capabilities` say and whose workers `pairs` know (without them,
    those that `models` name). Raises `ConfigError` for an API key not set."""

    def __init__(
        self,
        models: Mapping[str, ModelConfig],
        capabilities: Mapping[str, Capabilities],
        limits: LimitsConfig,
        client: aiohttp.ClientSession,
        pairs: Mapping[str, Pairs] | None = None,
    ) -> None:
        sglang = HttpEngine(models, limits, client, pairs)

        def engine(model: ModelConfig) -> Engine:
            if model.backend == "sglang":
                return sglang
            known = capabilities[model.name]
            return OpenAIEngine(model, limits, client, token_ids=known.token_ids, logprobs=known.logprobs)

        self._engines = {name: engine(model) for name, model in models.items()}

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        return self._engines[request.model].generate(request)

    async def abort(self, model: str, request_id: str) -> None:
        await self._engines[model].abort(model, request_id)

    async def check_ready(self, model: str) -> None:
        await self._engines[model].check_ready(model)
