"""Prompts as token ids: compiling a template once, and splicing answers into its slots as they stream in."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeAlias

from shell_router.core.slots import AnswerProgress, next_bound
from shell_router.core.tree import Agent, Slot, Text


@dataclass(frozen=True)
class Message:
    """A chat message of the conversation."""

    role: str
    content: str


class ChatTokenizer(Protocol):
    """What compiling needs of a model's tokenizer."""

    def render(self, messages: Sequence[Message]) -> str:
        """The model's chat template around `messages`, ending where the assistant begins to answer."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of `text`; with `special` off, text that spells a control token stays ordinary text."""


@dataclass(frozen=True)
class Static:
    """Prompt tokens known when the run starts."""

    ids: tuple[int, ...]


Segment: TypeAlias = Static | Slot


def compile_prompt(agent: Agent, conversation: Sequence[Message], tokenizer: ChatTokenizer) -> tuple[Segment, ...]:
    """Turn `agent`'s template and the conversation into segments: static token runs and slots.

    The last message of `conversation` is the question; what stands before it is kept as history. A system message
    of the template is put before one of the conversation. The chat template is rendered once, with unguessable marks
    where the question and the answers go, and the text between marks is tokenized run by run: a prompt's tokens never
    depend on when its answers arrive, and neither a question nor an answer can forge a control token.
    """
    *history, question = conversation
    nonce = secrets.token_hex(8)
    marks = [f"\u27e6{nonce}:{number}\u27e7" for number in range(len(agent.parts))]
    user = "".join(part.text if isinstance(part, Text) else mark for part, mark in zip(agent.parts, marks, strict=True))
    rendered = tokenizer.render([*_with_system(agent.system, history), Message("user", user)])

    segments: list[Segment] = []
    for part, mark in zip(agent.parts, marks, strict=True):
        if isinstance(part, Text):
            continue
        before, rendered = rendered.split(mark, maxsplit=1)
        segments.append(Static(tuple(tokenizer.encode(before, special=True))))
        if isinstance(part, Slot):
            segments.append(part)
        else:
            segments.append(Static(tuple(tokenizer.encode(question.content, special=False))))
    segments.append(Static(tuple(tokenizer.encode(rendered, special=True))))
    return tuple(_merged(segments))


def _with_system(system: str | None, history: Sequence[Message]) -> Iterator[Message]:
    if system is None:
        yield from history
    elif history and history[0].role == "system":
        yield Message("system", f"{system}\n\n{history[0].content}")
        yield from history[1:]
    else:
        yield Message("system", system)
        yield from history


def _merged(segments: Sequence[Segment]) -> Iterator[Segment]:
    """`segments` with neighbouring static runs joined and empty ones left out."""
    for _, group in groupby(segments, key=lambda segment: segment if isinstance(segment, Slot) else None):
        run = list(group)
        if isinstance(run[0], Slot):
            yield run[0]
        elif ids := tuple(token for segment in run if isinstance(segment, Static) for token in segment.ids):
            yield Static(ids)


class Answers(AnswerProgress, Protocol):
    """What splicing needs of the run's answers so far."""

    def ids(self, agent: str) -> Sequence[int]:
        """Token ids `agent` has answered so far; only ever grows."""


class Prompt:
    """An agent's prompt while it is being written.

    Invariant: `sent <= len(ids)`, and `ids` is a prefix of the whole prompt: it reaches to the last token known of the
    first slot whose answer is not final yet, since only a contiguous prefix can be prefilled.
    """

    def __init__(self, segments: Sequence[Segment], order: Sequence[str] | None = None) -> None:
        """`order` names the precursor of each slot; without it a slot is bound when the prompt reaches it."""
        self._segments = tuple(segments)
        self._segment = 0
        self._slot_open = False
        """Whether the slot at hand is bound."""
        self._slot_taken = 0
        self._order = tuple(order) if order is not None else None
        slots = [segment.agent for segment in self._segments if isinstance(segment, Slot)]
        assert order is None or sorted(order) == sorted(slots)
        self._unbound = slots
        self.ids: list[int] = []
        self.bound: list[str] = []
        """Precursors in the order of the slots they fill, as far as the prompt has come."""
        self.sent = 0
        """Tokens handed out by `take`."""

    @property
    def whole(self) -> bool:
        """Whether `ids` is the final prompt."""
        return self._segment == len(self._segments)

    def advance(self, answers: Answers) -> None:
        """Take up all tokens that are known and contiguous now. Costs what is new, not what is there."""
        while not self.whole:
            segment = self._segments[self._segment]
            if isinstance(segment, Static):
                self.ids.extend(segment.ids)
            else:
                agent = self._agent_of_slot(answers)
                if agent is None:
                    return
                new = answers.ids(agent)[self._slot_taken :]
                self.ids.extend(new)
                self._slot_taken += len(new)
                if answers.ended_at(agent) is None:
                    return
                self._slot_taken = 0
                self._slot_open = False
            self._segment += 1

    def _agent_of_slot(self, answers: Answers) -> str | None:
        """The precursor that the slot at hand is bound to, binding it if need be; None when it cannot be yet."""
        if not self._slot_open:
            agent = self._order[len(self.bound)] if self._order is not None else next_bound(self._unbound, answers)
            if agent is None:
                return None
            self._unbound.remove(agent)
            self.bound.append(agent)
            self._slot_open = True
        return self.bound[-1]

    def take(self, count: int) -> tuple[int, ...]:
        """The next `count` unsent tokens, which are sent now."""
        assert 0 <= count <= len(self.ids) - self.sent
        taken = tuple(self.ids[self.sent : self.sent + count])
        self.sent += count
        return taken

    def take_rest(self) -> tuple[int, ...]:
        """All unsent tokens of a whole prompt."""
        assert self.whole
        return self.take(len(self.ids) - self.sent)


def prompt_bound(segments: Sequence[Segment], answer_bounds: Mapping[str, int]) -> int:
    """Most tokens the prompt can come to, when each agent answers at most `answer_bounds[agent]` tokens."""
    return sum(
        len(segment.ids) if isinstance(segment, Static) else answer_bounds[segment.agent] for segment in segments
    )
