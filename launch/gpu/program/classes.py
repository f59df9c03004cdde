"""What a run asks of each model: the agents of the trees, as classes of requests that are alike.

Prompts are counted without a tokenizer, which the launcher does not load: four characters of a template are a token,
a question has the tokens that the caller says, and an answer has all that its agent may write. Early exit and votes are
not counted on: every agent is asked once a run, and of a pool's members each by its chance. So a run comes to the most
it can be, and what that is for one model against another is what a placement needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shell_router.core.tree import Agent, Question, Slot, Text, Tree

CHARACTERS_PER_TOKEN = 4
CHAT_TOKENS = 16
"""What a chat template puts around a message or two."""
_GRAIN = 64
"""Prompts are rounded up to so many tokens, so that agents whose templates differ by a word are alike."""


@dataclass(frozen=True)
class RequestClass:
    """Requests that are alike: one model, prompts and answers of one length."""

    name: str
    """The tree, and the agents: `tree_3_1: p1 p2 p3`."""
    model: str
    prompt_tokens: int
    answer_tokens: int
    requests: float
    """In one run; of several trees a run is each of them with the same chance."""

    @property
    def context_tokens(self) -> float:
        """What a decode step finds in the KV pool for it, on average."""
        return self.prompt_tokens + self.answer_tokens / 2


def classes_of(trees: Sequence[Tree], question_tokens: int) -> tuple[RequestClass, ...]:
    """The requests of a run of `trees`, each of which is asked as often as the others, about questions of
    `question_tokens` tokens."""
    found: list[RequestClass] = []
    for tree in trees:
        alike: dict[tuple[str, int, int, float], list[str]] = {}
        chances = _chances(tree)
        for agent in tree.agents:
            prompt = _prompt_tokens(agent, tree, chances, question_tokens)
            key = (agent.model, prompt, agent.sampling.max_new_tokens, chances[agent.id])
            alike.setdefault(key, []).append(agent.id)
        for (model, prompt, answer, chance), agents in alike.items():
            found.append(
                RequestClass(
                    name=f"{tree.name}: {' '.join(agents)}",
                    model=model,
                    prompt_tokens=prompt,
                    answer_tokens=answer,
                    requests=len(agents) * chance / len(trees),
                )
            )
    return tuple(found)


def _chances(tree: Tree) -> Mapping[str, float]:
    """How often each agent is asked in a run. Of a pool's layer any member may be among those that are."""
    chances = {agent.id: 1.0 for agent in tree.agents}
    for layer in tree.pool.layers if tree.pool is not None else ():
        for member in layer.members:
            chances[member.agent] = min(1.0, layer.ask / len(layer.members))
    return chances


def _prompt_tokens(agent: Agent, tree: Tree, chances: Mapping[str, float], question_tokens: int) -> int:
    texts: Iterable[str] = (part.text for part in agent.parts if isinstance(part, Text))
    characters = len(agent.system or "") + sum(map(len, texts))
    tokens: float = CHAT_TOKENS + math.ceil(characters / CHARACTERS_PER_TOKEN)
    for part in agent.parts:
        if isinstance(part, Question):
            tokens += question_tokens
        elif isinstance(part, Slot):
            tokens += chances[part.agent] * tree.agent(part.agent).sampling.max_new_tokens
    return math.ceil(tokens / _GRAIN) * _GRAIN
