"""The Agent Prompt Cache: the partial and final answers of one run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass
class Answer:
    """One agent's answer. `ids` leaves out the token that ended it; `logprobs` (nats) may lack tokens without one."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    ended: bool = False


class AgentPromptCache:
    """Answers by agent id. Grows only: an answer is appended to until it is ended."""

    def __init__(self, agents: Iterable[str]) -> None:
        self._answers = {agent: Answer() for agent in agents}

    def extend(self, agent: str, ids: Sequence[int], logprobs: Sequence[float], text: str) -> None:
        answer = self._answers[agent]
        assert not answer.ended
        answer.ids.extend(ids)
        answer.logprobs.extend(logprobs)
        answer.text.append(text)

    def end(self, agent: str) -> None:
        self._answers[agent].ended = True

    def ids(self, agent: str) -> Sequence[int]:
        return self._answers[agent].ids

    def logprobs(self, agent: str) -> Sequence[float]:
        return self._answers[agent].logprobs

    def text(self, agent: str) -> str:
        return "".join(self._answers[agent].text)

    def ended(self, agent: str) -> bool:
        return self._answers[agent].ended
