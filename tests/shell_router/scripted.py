"""An engine whose agents say what a test writes, control tokens and thinking included."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence

from shell_router.errors import EngineError
from shell_router.transport.base import Delta, Finish, GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.trees import ByteTokenizer

_NAME = re.compile(r"run-[0-9a-f]+-\d+-(?P<agent>[^-]+)(?P<append>-append\d+)?(-again(?P<again>\d+))?$")


def agent_of(request: GenerateRequest) -> str:
    """Who is asked. To look for its name in the id finds it in that of one run in some hundred."""
    name = _NAME.search(request.request_id)
    assert name is not None
    return name["agent"]


class ScriptedEngine(FakeEngine):
    """Answers in the tokens of `tokenizer`, whose control tokens a script spells out. As an engine does, it leaves
    special ones out of the text unless asked to show them, and what was answered before it does not say again."""

    def __init__(
        self,
        tokenizer: ByteTokenizer,
        scripts: Mapping[str, str | Sequence[str]],
        *,
        token_ids: bool = True,
        at_once: int = 1,
        break_at: int | None = None,
    ) -> None:
        """`scripts` has what each agent says, at each time it is asked anew if that differs. `at_once` is how many
        tokens a delta has. Each first answer breaks after `break_at` tokens."""
        super().__init__()
        self._tokenizer = tokenizer
        self._scripts = scripts
        self._token_ids = token_ids
        self._at_once = at_once
        self._break_at = break_at
        self.ids: Mapping[str, Sequence[int]] = {}
        """What agents say in other tokens than those of their script."""
        self._asked: dict[str, int] = {}
        self._begun: dict[str, int] = {}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        self.requests.append(request)
        name = _NAME.search(request.request_id)
        assert name is not None
        agent = name["agent"]
        if name["append"]:
            await asyncio.sleep(0)
            yield Delta((0,), (), "", Finish("length", len(request.input_ids), 1, 0))
            return
        script = self._scripts[agent]
        self.running.add(request.request_id)
        versions = (script,) if isinstance(script, str) else script
        asked = self._asked[agent] = self._asked.get(agent, 0) + 1
        said = self._begun.pop(agent, 0)
        spelled = self._tokenizer.encode(versions[min(asked, len(versions)) - 1], special=True)
        whole = list(self.ids.get(agent, spelled))[said:]
        limit = request.sampling.max_new_tokens
        ids = whole[:limit]
        for start in range(0, max(1, len(ids)), self._at_once):
            await asyncio.sleep(0)
            if asked == 1 and self._break_at is not None and start >= self._break_at:
                self._begun[agent] = start
                self.running.discard(request.request_id)
                raise EngineError("it broke off")
            part = tuple(ids[start : start + self._at_once])
            finish = None
            if start + self._at_once >= len(ids):
                self.running.discard(request.request_id)
                finish = Finish("length" if len(whole) >= limit else "stop", len(request.input_ids), len(ids) + 1, 0)
            text = self._tokenizer.decode(part, leave_out_special=not request.show_control)
            yield Delta(part if self._token_ids else (), (-0.5,) * len(part), text, finish)
