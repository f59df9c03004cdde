"""The Agent Prompt Cache: the partial and final answers of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from shell_router.core.early_exit import confidence
from shell_router.core.events import Passed


class Encoder(Protocol):
    """One answer in the tokens of another tokenizer, as its text streams in."""

    def extend(self, text: str) -> None:
        """The answer goes on with `text`."""

    def end(self) -> None:
        """The answer is whole."""

    @property
    def ids(self) -> Sequence[int]:
        """The tokens that later text cannot change; at the end all."""

    held_back_tokens: int
    """Tokens that became final only when the answer was whole."""


@dataclass
class Answer:
    """One agent's answer."""

    ids: list[int] = field(default_factory=list)
    """Without the token that ended it; empty where the engine gives text only."""
    tokens: int = 0
    """Of what there is; where the engine gives text only, the pieces it came in."""
    thinking: list[str] = field(default_factory=list)
    thinking_tokens: int = 0
    """Of `tokens`, those of thinking and its marks."""
    passed_ids: list[int] = field(default_factory=list)
    """What is passed on of it."""
    text: list[str] = field(default_factory=list)
    """The text of what is passed on, piece by piece."""
    text_tokens: list[int] = field(default_factory=list)
    """How many tokens each of these is of."""
    logprob_sum: float = 0.0
    """Nats, of the tokens that are passed on."""
    logprobs: int = 0
    """Tokens that `logprob_sum` is of."""
    ended_at: int | None = None
    """How many answers of the run ended before this one."""
    gone: bool = False


class AgentPromptCache:
    """Answers by agent id. Grows only: an answer is appended to until it has ended, or is of no use any more."""

    def __init__(
        self, max_new_tokens: Mapping[str, int], encoders: Mapping[tuple[str, str], Encoder] | None = None
    ) -> None:
        """`max_new_tokens` has the most tokens that each agent may answer.

        `encoders[precursor, successor]` is for a successor that cannot take the ids of the answer it reads; successors
        of one tokenizer may share an encoder.
        """
        self._max_new_tokens = dict(max_new_tokens)
        self._answers = {agent: Answer() for agent in max_new_tokens}
        self._ended = 0
        self._undecided: frozenset[str] = frozenset()
        self._left_out: set[tuple[str, str]] = set()
        self._encoders = dict(encoders or {})
        self._encoders_of: dict[str, dict[int, Encoder]] = {}
        for (precursor, _), encoder in self._encoders.items():
            self._encoders_of.setdefault(precursor, {})[id(encoder)] = encoder

    def extend(
        self, agent: str, ids: Sequence[int], logprobs: Sequence[float], text: str, passed: Passed | None = None
    ) -> Passed:
        """More of an answer; `logprobs` in nats, which may lack. Answers what is passed on of it: `passed`, or all."""
        answer = self._answers[agent]
        assert answer.ended_at is None
        passed = passed or Passed(ids=tuple(ids), logprobs=tuple(logprobs), text=text)
        answer.ids.extend(ids)
        answer.tokens += len(ids) or int(bool(text))
        answer.thinking.append(passed.thinking)
        answer.thinking_tokens += passed.thinking_tokens
        answer.passed_ids.extend(passed.ids)
        answer.logprob_sum += sum(passed.logprobs)
        answer.logprobs += len(passed.logprobs)
        answer.text.append(passed.text)
        answer.text_tokens.append(len(passed.ids) or int(bool(passed.text)))
        for encoder in self._encoders_of.get(agent, {}).values():
            encoder.extend(passed.text)
        return passed

    def restart(self, agent: str) -> None:
        """An answer of which nothing has been passed on begins anew."""
        assert self.empty(agent)
        self._answers[agent] = Answer()

    def end(self, agent: str) -> None:
        """The answer is whole."""
        self._answers[agent].ended_at = self._ended
        self._ended += 1
        for encoder in self._encoders_of.get(agent, {}).values():
            encoder.end()

    def drop(self, agent: str) -> None:
        """Nobody will read the answer."""
        self._answers[agent].gone = True

    def leave_out(self, agent: str, successor: str) -> None:
        """`successor` will not read the answer."""
        self._left_out.add((agent, successor))

    def left_out(self, agent: str, successor: str) -> bool:
        return (agent, successor) in self._left_out

    def doubt(self, agents: Iterable[str]) -> None:
        """It is being checked if the answers of `agents` are needed; of no others."""
        self._undecided = frozenset(agents)

    def ids(self, agent: str) -> Sequence[int]:
        """The answer as it was given."""
        return self._answers[agent].ids

    def passed_ids(self, agent: str) -> Sequence[int]:
        """What is passed on of it."""
        return self._answers[agent].passed_ids

    def text(self, agent: str) -> str:
        """The text of what is passed on."""
        return "".join(self._answers[agent].text)

    def beginning(self, agent: str, tokens: int) -> str:
        """The text of the first `tokens` that are passed on. Of several that came at once it has a part, as if all had
        as many characters."""
        parts: list[str] = []
        answer = self._answers[agent]
        for text, count in zip(answer.text, answer.text_tokens, strict=True):
            parts.append(text if count <= tokens else text[: len(text) * tokens // count])
            tokens -= min(count, tokens)
        return "".join(parts)

    def thinking(self, agent: str) -> str:
        return "".join(self._answers[agent].thinking)

    def thinking_tokens(self, agent: str) -> int:
        return self._answers[agent].thinking_tokens

    def empty(self, agent: str) -> bool:
        """Whether nothing of the answer has been passed on."""
        answer = self._answers[agent]
        return not answer.passed_ids and not any(answer.text)

    def confidence(self, agent: str) -> float | None:
        """exp of the mean log-probability of the answer's tokens; None when the engine gave none."""
        answer = self._answers[agent]
        if answer.tokens and not answer.logprobs:
            return None
        return confidence(answer.logprob_sum, answer.logprobs)

    def held_back_tokens(self, successor: str) -> int:
        """Tokens of answers that `successor` could take up only when these had ended: till then they could change."""
        return sum(each.held_back_tokens for (_, reader), each in self._encoders.items() if reader == successor)

    def ended_at(self, agent: str) -> int | None:
        return self._answers[agent].ended_at

    def gone(self, agent: str) -> bool:
        return self._answers[agent].gone

    def undecided(self, agent: str) -> bool:
        return agent in self._undecided

    def length(self, agent: str) -> int:
        """Tokens of the answer, thinking too."""
        return self._answers[agent].tokens

    def remaining(self, agent: str) -> int:
        return self._max_new_tokens[agent] - self.length(agent)

    def read_by(self, successor: str) -> AnswersAsRead:
        """The answers in the tokens of `successor`."""
        return AnswersAsRead(self, successor, self._encoders)


class AnswersAsRead:
    """Answers as one successor reads them."""

    def __init__(self, cache: AgentPromptCache, successor: str, encoders: Mapping[tuple[str, str], Encoder]) -> None:
        self._cache = cache
        self._successor = successor
        self._encoders = {precursor: each for (precursor, reader), each in encoders.items() if reader == successor}

    def ids(self, agent: str) -> Sequence[int]:
        encoder = self._encoders.get(agent)
        return self._cache.passed_ids(agent) if encoder is None else encoder.ids

    def ended_at(self, agent: str) -> int | None:
        return self._cache.ended_at(agent)

    def gone(self, agent: str) -> bool:
        return self._cache.gone(agent) or self._cache.left_out(agent, self._successor)

    def undecided(self, agent: str) -> bool:
        return self._cache.undecided(agent)

    def begun(self, agent: str) -> bool:
        return not self._cache.empty(agent)

    def remaining(self, agent: str) -> int:
        return self._cache.remaining(agent)
