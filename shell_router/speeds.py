"""How fast models answer here, and how long answers come to, learnt from the runs that this router has carried out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from shell_router.record import AgentRecord, RunRecord

_NEW = 0.2
"""Share of the newest value in a mean: the last ten or so count."""
_MOST_AGENTS = 10_000
"""Of all trees; those that have not answered for longest are forgotten."""


class _Means:
    """Exponentially weighted means by name."""

    def __init__(self) -> None:
        self._values: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def add(self, value: float, *name: str) -> None:
        known = self._values.pop(name, value)
        self._values[name] = known + _NEW * (value - known)
        if len(self._values) > _MOST_AGENTS:
            self._values.popitem(last=False)

    def get(self, *name: str) -> float | None:
        return self._values.get(name)


class Speeds:
    """What routing expects of answers. Told the records of runs that have ended."""

    def __init__(self) -> None:
        self._first_s = _Means()
        """By model, from a prompt's commit to the first token: queues, prefill and transfer as they are."""
        self._token_s = _Means()
        """By model, between two tokens of an answer."""
        self._tokens = _Means()
        """By tree and agent, of an answer."""

    def observe(self, record: RunRecord, _queued_s: float = 0.0) -> None:
        """Learn from a run; only from answers that ended by themselves or at their bound."""
        for agent in record.agents:
            if agent.state == "done" and agent.output_tokens > 0 and agent.attempts == 1:
                self._observe(record.tree, agent)

    def _observe(self, tree: str, agent: AgentRecord) -> None:
        self._tokens.add(agent.output_tokens, tree, agent.id)
        if agent.committed_s is None or agent.first_token_s is None or agent.ended_s is None:
            return
        self._first_s.add(agent.first_token_s - agent.committed_s, agent.model)
        if agent.output_tokens > 1:
            self._token_s.add((agent.ended_s - agent.first_token_s) / (agent.output_tokens - 1), agent.model)

    def tokens(self, tree: str, agents: Mapping[str, int]) -> dict[str, float]:
        """What answers of `agents` came to lately, tokens; those are left out that have not answered.

        `agents` has the most tokens of each."""
        return {agent: min(known, most) for agent, most in agents.items() if (known := self._tokens.get(tree, agent))}

    def seconds(self, model: str, tokens: float) -> float | None:
        """From the commit of a prompt of `model` to the end of an answer of `tokens`; None while that is not known."""
        first_s, token_s = self._first_s.get(model), self._token_s.get(model)
        return None if first_s is None or token_s is None else first_s + tokens * token_s
