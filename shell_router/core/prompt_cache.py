"""The Agent Prompt Cache: the partial and final answers of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Answer:
    """One agent's answer. `ids` leaves out the token that ended it; `logprobs` (nats) may lack tokens without one."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    ended_at: int | None = None
    """How many answers of the run ended before this one."""


class AgentPromptCache:
    """Answers by agent id. Grows only: an answer is appended to until it is ended."""

    def __init__(self, limits: Mapping[str, int]) -> None:
        """`limits` has the most tokens that each agent may answer."""
        self._limits = dict(limits)
        self._answers = {agent: Answer() for agent in limits}
        self._ended = 0

    def extend(self, agent: str, ids: Sequence[int], logprobs: Sequence[float], text: str) -> None:
        answer = self._answers[agent]
        assert answer.ended_at is None
        answer.ids.extend(ids)
        answer.logprobs.extend(logprobs)
        answer.text.append(text)

    def end(self, agent: str) -> None:
        self._answers[agent].ended_at = self._ended
        self._ended += 1

    def ids(self, agent: str) -> Sequence[int]:
        return self._answers[agent].ids

    def logprobs(self, agent: str) -> Sequence[float]:
        return self._answers[agent].logprobs

    def text(self, agent: str) -> str:
        return "".join(self._answers[agent].text)

    def ended_at(self, agent: str) -> int | None:
        return self._answers[agent].ended_at

    def length(self, agent: str) -> int:
        return len(self._answers[agent].ids)

    def remaining(self, agent: str) -> int:
        return self._limits[agent] - self.length(agent)
