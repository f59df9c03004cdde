"""What is new of a run since somebody last looked: small frames, however long its answers are. Pure.

Whoever watches a run gets frames, each with a mark of how far it goes. Who comes back with the mark of the last frame
it has goes on from there: texts from where they stood, all else as it is now. So nothing has to be kept for those who
may come back, and who is slow gets fewer and larger frames, never a queue of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import msgspec

from shell_router.record import AgentRecord, CheckRecord, RunRecord
from shell_router.views import AgentView, RunView, agent_view, run_view

_MOST_CHARACTERS = 256 * 1024
"""Of answers in one frame: what is left comes in the next, at once."""
_PART = re.compile(r"([0-9]{1,6})(?:\.([0-9]{1,12})(?:\.([0-9]{1,12}))?)?\Z")


class TextPiece(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an agent's answer goes on."""

    agent: str
    anew: bool = False
    """What was told of it before is void: it is asked for again, from its beginning."""
    text: str = ""
    """Of what is passed on."""
    thinking: str = ""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One event of `GET /v1/runs/{id}/watch`."""

    at_s: float
    """When it was made, seconds since the run began."""
    run: RunView
    agents: tuple[AgentView, ...]
    """Those that have changed; in the first frame all, in the order of layers."""
    checks: tuple[CheckRecord, ...]
    """Those that are new or have been answered; in the first frame all. `cluster` and `step` tell which is which."""
    texts: tuple[TextPiece, ...]


class _Told(NamedTuple):
    """How much of an agent's answer has been told, characters."""

    attempts: int = 0
    text: int = 0
    thinking: int = 0


@dataclass
class Watch:
    """One who watches. `look` makes the next frame."""

    _told: dict[int, _Told] = field(default_factory=dict)
    """By the agent's position in the record."""
    _agents: dict[str, AgentView] = field(default_factory=dict)
    _checks: Sequence[CheckRecord] = ()
    _run: RunView | None = None

    @classmethod
    def after(cls, mark: str, agents: int) -> Self:
        """One who has had the frame with that mark, of a run of so many agents. Raises `ValueError` when no frame has
        it."""
        told: dict[int, _Told] = {}
        parts = mark.split("_")
        if len(parts) > agents:
            raise ValueError(f"it is of {len(parts)} agents, and the run has {agents}")
        for position, part in enumerate(parts):
            if not part:
                continue
            found = _PART.match(part)
            if found is None:
                raise ValueError(f"{part[:40]!r} is no part of a mark")
            told[position] = _Told(*(int(number or 0) for number in found.groups()))
        return cls(told)

    @property
    def mark(self) -> str:
        """How far all frames together go."""
        parts = (self._told.get(position, _Told()) for position in range(max(self._told, default=-1) + 1))
        return "_".join(".".join(map(str, part)) if any(part) else "" for part in parts) or "0"

    def look(self, record: RunRecord, at_s: float) -> Frame | None:
        """What is new in `record`; None when nothing is. Not all that is new if that is much: look again at once."""
        run = run_view(record)
        views = [agent_view(agent) for agent in record.agents]
        changed = tuple(view for view in views if self._agents.get(view.id) != view)
        checks = tuple(check for check in record.checks if check not in self._checks)
        texts = self._texts(record.agents)
        if run == self._run and not changed and not checks and not texts:
            return None
        self._run, self._checks = run, record.checks
        self._agents = {view.id: view for view in views}
        return Frame(at_s=at_s, run=run, agents=changed, checks=checks, texts=texts)

    def _texts(self, agents: Sequence[AgentRecord]) -> tuple[TextPiece, ...]:
        room = _MOST_CHARACTERS
        pieces: list[TextPiece] = []
        for position, agent in enumerate(agents):
            told = self._told.get(position, _Told())
            anew = _begins_anew(agent, told)
            start = _Told() if anew else told
            thinking = agent.thinking[start.thinking : start.thinking + room]
            room -= len(thinking)
            text = agent.text[start.text : start.text + room]
            room -= len(text)
            if text or thinking or anew:
                pieces.append(TextPiece(agent=agent.id, anew=anew, text=text, thinking=thinking))
            self._told[position] = _Told(agent.attempts, start.text + len(text), start.thinking + len(thinking))
        return tuple(pieces)


def _begins_anew(agent: AgentRecord, told: _Told) -> bool:
    """Whether what was told of the answer is not how it begins. One that broke off goes on; one that came to nothing
    begins anew. Of several attempts since it is not known which were which."""
    if not (told.text or told.thinking):
        return False
    if told.text > len(agent.text) or told.thinking > len(agent.thinking):
        return True
    attempts = agent.attempts - told.attempts
    return attempts not in (0, 1) or (attempts == 1 and not agent.resumed_tokens)
