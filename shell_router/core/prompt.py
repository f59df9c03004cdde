"""Prompts as token ids: compiling a template once, and splicing answers into its slots as they stream in."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from shell_router.core.apart import Piece
from shell_router.core.messages import Message, TemplateRefusal
from shell_router.core.slots import AnswerProgress, next_bound
from shell_router.core.tree import Agent, Slot, Text

Before: TypeAlias = Literal["nothing", "control", "text"]
"""What comes before a text: nothing, as it begins the prompt; a control token; or other text."""


class ChatTokenizer(Protocol):
    """What compiling needs of a model's tokenizer."""

    def chat(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> Sequence[Piece]:
        """The model's chat template around `messages`, ending where the assistant begins to answer.

        The template's control tokens are apart from all text; what messages say is text, whatever it spells. Raises
        `TemplateRefusal`.
        """

    def encode_after(self, text: str, before: Before) -> Sequence[int]:
        """Token ids of `text` where it stands; what spells a control token is ordinary text."""


@dataclass(frozen=True)
class Static:
    """Prompt tokens known when the run starts."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class AnswerSlot:
    """The place of an answer. The slots of a list stand side by side, and close up when an answer is missing."""

    agent: str
    before: tuple[int, ...] = ()
    """Tokens that come before the answer if there is one."""
    closing: tuple[int, ...] | None = None
    """For a slot of a list: what follows it when no other answer of the list does. None for a slot of its own."""


Segment: TypeAlias = Static | AnswerSlot


def compile_prompt(
    agent: Agent,
    conversation: Sequence[Message],
    tokenizer: ChatTokenizer,
    arguments: Mapping[str, object] | None = None,
) -> tuple[Segment, ...]:
    """Turn `agent`'s template and the conversation into segments: static token runs and slots.

    The last message of `conversation` is the question; what stands before it is kept as history. A system message
    of the template is put before one of the conversation. The chat template is rendered once, given `arguments`, with
    unguessable marks where the answers go, and divided at its control tokens and at the marks. No message and no
    template of a tree can forge a control token.

    Without slots the ids are those of tokenizing all that was rendered at once. A slot parts the text: what is before
    it is tokenized as if nothing followed, what is behind it as behind other text. So a prompt's tokens never depend on
    its answers, nor on when they arrive. Raises `TemplateRefusal`.
    """
    *history, question = conversation
    nonce = secrets.token_hex(8)
    slots = [part for part in agent.parts if isinstance(part, Slot)]
    marks = [f"\u27e6{nonce}:{number}\u27e7" for number in range(len(slots))]
    left = iter(marks)
    user = "".join(
        part.text if isinstance(part, Text) else next(left) if isinstance(part, Slot) else question.content
        for part in agent.parts
    )
    messages = [*_with_system(agent.system, history), Message("user", user)]

    runs = [_Run("nothing")]
    number = 0
    for piece in tokenizer.chat(messages, arguments or {}):
        rest = piece
        while isinstance(rest, str) and number < len(marks) and marks[number] in rest:
            before, rest = rest.split(marks[number], maxsplit=1)
            runs[-1].pieces.append(before)
            runs.append(_Run("text"))
            number += 1
        runs[-1].pieces.append(rest)
    if number < len(marks) or any(nonce in piece for run in runs for piece in run.pieces if isinstance(piece, str)):
        raise TemplateRefusal("it does not show the user's message once, as it is")

    def ids(run: _Run) -> tuple[int, ...]:
        return tuple(_ids(run, tokenizer))

    return tuple(_segments(slots, runs, ids))


@dataclass
class _Run:
    """What stands between two slots; the first piece is text, which may be empty, unless the prompt begins with it."""

    before: Before
    pieces: list[Piece] = field(default_factory=list)


def _ids(run: _Run, tokenizer: ChatTokenizer) -> Iterator[int]:
    before = run.before
    for piece in run.pieces:
        if isinstance(piece, int):
            yield piece
            before = "control"
        elif piece:
            yield from tokenizer.encode_after(piece, before)
            before = "text"


def _segments(slots: Sequence[Slot], runs: Sequence[_Run], ids: Callable[[_Run], tuple[int, ...]]) -> Iterator[Segment]:
    """The segments of `slots` between `runs`, of which there is one more."""
    listed = [position for position, slot in enumerate(slots) if slot.after is not None]
    for position, slot in enumerate(slots):
        before = ids(runs[position])
        if slot.after is None or position == listed[0]:
            # What comes after a list is in its closings.
            if before and position - 1 not in listed:
                yield Static(before)
            before = ()
        closing = None
        if slot.after is not None:
            closing = ids(_closing(runs[listed[-1] + 1], slot, slots[listed[-1]]))
        yield AnswerSlot(slot.agent, before, closing)
    if len(slots) - 1 not in listed and (rest := ids(runs[-1])):
        yield Static(rest)


def _closing(run: _Run, slot: Slot, last: Slot) -> _Run:
    """What follows `slot` if its list ends with it, when `run` follows the list's `last` slot."""
    assert slot.after is not None
    assert last.after is not None
    if slot.after == last.after:
        return run
    text, *rest = run.pieces
    assert isinstance(text, str)
    own, others = slot.after, last.after
    if not text.startswith(others):
        # A chat template may cut white space at the end of a message.
        own, others = own.rstrip(), others.rstrip()
    return _Run(run.before, [own + text.removeprefix(others), *rest])


def _with_system(system: str | None, history: Sequence[Message]) -> Iterator[Message]:
    if system is None:
        yield from history
    elif history and history[0].role == "system":
        yield Message("system", f"{system}\n\n{history[0].content}")
        yield from history[1:]
    else:
        yield Message("system", system)
        yield from history


class Answers(AnswerProgress, Protocol):
    """What splicing needs of the run's answers so far, as one successor reads them."""

    def ids(self, agent: str) -> Sequence[int]:
        """Token ids `agent` has answered so far. It grows; only at its end may an answer turn out to differ."""

    def gone(self, agent: str) -> bool:
        """Whether the answer will not be read by anyone."""


class Prompt:
    """An agent's prompt while it is being written.

    Invariant: `ids` is a prefix of the whole prompt as far as is known: it reaches to the last token known of the first
    slot whose answer is not final yet, since only a contiguous prefix can be prefilled. It is taken back only when the
    answer that is being written goes; then what was sent may not be the prompt's beginning any more, and no other
    `take` follows but `take_rest`.
    """

    def __init__(self, segments: Sequence[Segment], order: Sequence[str] | None = None) -> None:
        """`order` names the precursors in the order of the slots, and leaves out those that are not to be read.

        Without it a slot is bound when the prompt reaches it.
        """
        self._segments = tuple(segments)
        self._segment = 0
        self._slot_open = False
        """Whether the slot at hand is bound."""
        self._slot_start = 0
        """Length of the prompt before the slot at hand."""
        self._slot_taken = 0
        self._in_order = order is not None
        self._unbound = _candidates(self._segments, order)
        self._stale: list[int] | None = None
        """What had been sent when some of it was taken back."""
        self.ids: list[int] = []
        self.bound: list[str] = []
        """Precursors in the order of the slots they fill, as far as the prompt has come."""
        self.answer_spans: list[tuple[int, int]] = []
        """Where in `ids` the answers of `bound` stand, as far as they are final: from a position to before another."""
        self.sent = 0
        """Tokens handed out by `take`."""

    @property
    def whole(self) -> bool:
        """Whether `ids` is the final prompt."""
        return self._segment == len(self._segments)

    @property
    def taken_back(self) -> bool:
        """Whether some of what was sent may not be the prompt's any more."""
        return self._stale is not None

    def advance(self, answers: Answers) -> None:
        """Take up all tokens that are known and contiguous now. Costs what is new, not what is there."""
        while not self.whole:
            segment = self._segments[self._segment]
            if isinstance(segment, Static):
                self.ids.extend(segment.ids)
                self._segment += 1
            elif self._slot_open:
                if not self._write(segment, self.bound[-1], answers):
                    return
            else:
                unbound = self._unbound[self._segment]
                self._drop_gone(segment, unbound, answers)
                if not unbound:
                    self._leave(segment)
                elif not self._bind(segment, unbound, answers):
                    return

    def _write(self, slot: AnswerSlot, agent: str, answers: Answers) -> bool:
        """Take up what there is of the answer that the slot at hand is bound to; whether that was the last of it."""
        if answers.gone(agent):
            self._cut(self._slot_start)
            self.bound.pop()
            self._slot_open = False
            return True
        known = answers.ids(agent)
        self.ids.extend(known[self._slot_taken :])
        self._slot_taken = len(known)
        if answers.ended_at(agent) is None:
            return False
        start = self._slot_start + len(slot.before)
        if self.ids[start:] != list(known):
            # Tokenized again at its end, the answer came to other tokens than in pieces.
            self._cut(start)
            self.ids.extend(known)
        self.answer_spans.append((start, len(self.ids)))
        self._slot_open = False
        self._segment += 1
        if slot.closing is not None and not self._in_list():
            self.ids.extend(slot.closing)
        return True

    def _drop_gone(self, slot: AnswerSlot, unbound: list[str], answers: Answers) -> None:
        """Forget answers that will not come. In a given order, a slot of its own keeps the place of such a one."""
        if not self._in_order:
            unbound[:] = [agent for agent in unbound if not answers.gone(agent)]
        elif slot.closing is not None:
            while unbound and answers.gone(unbound[0]):
                del unbound[0]

    def _leave(self, slot: AnswerSlot) -> None:
        """No answer is left for the slot at hand, nor for others of its list if it is in one."""
        if slot.closing is not None:
            before = self._segments[self._segment - 1] if self._in_list(-1) else slot
            assert isinstance(before, AnswerSlot)
            assert before.closing is not None
            self.ids.extend(before.closing)
            while self._in_list(1):
                self._segment += 1
        self._segment += 1

    def _in_list(self, offset: int = 0) -> bool:
        """Whether the segment at hand, or that many after it, is a slot of a list."""
        position = self._segment + offset
        if not 0 <= position < len(self._segments):
            return False
        segment = self._segments[position]
        return isinstance(segment, AnswerSlot) and segment.closing is not None

    def _bind(self, slot: AnswerSlot, unbound: list[str], answers: Answers) -> bool:
        """Bind the slot at hand, if it can be told to whom; a slot of its own may stay empty."""
        agent = unbound[0] if self._in_order else next_bound(unbound, answers)
        if agent is None or (answers.undecided(agent) and answers.ended_at(agent) is None):
            return False
        unbound.remove(agent)
        if answers.gone(agent):
            self._segment += 1
            return True
        self.bound.append(agent)
        self._slot_open = True
        self._slot_start = len(self.ids)
        self._slot_taken = 0
        self.ids.extend(slot.before)
        return True

    def _cut(self, length: int) -> None:
        """Take back all beyond `length` tokens."""
        if self.sent > length and self._stale is None:
            self._stale = self.ids[: self.sent]
        del self.ids[length:]

    def take(self, count: int) -> tuple[int, ...]:
        """The next `count` unsent tokens, which are sent now."""
        assert not self.taken_back
        assert 0 <= count <= len(self.ids) - self.sent
        taken = tuple(self.ids[self.sent : self.sent + count])
        self.sent += count
        return taken

    def take_rest(self) -> Rest:
        """What makes a whole prompt of what was sent."""
        assert self.whole
        keep = self.sent
        if self._stale is not None:
            same = (sent == now for sent, now in zip(self._stale, self.ids, strict=False))
            keep = next(
                (position for position, equal in enumerate(same) if not equal), min(len(self._stale), len(self.ids))
            )
        rest = Rest(keep, tuple(self.ids[keep:]))
        self.sent = len(self.ids)
        self._stale = None
        return rest


def _candidates(segments: Sequence[Segment], order: Sequence[str] | None) -> dict[int, list[str]]:
    """For the position of each slot the agents that may fill it, those that may fill the same in one list.

    An order that names all agents gives slots of their own their agents; else any slot takes the next.
    """
    slots = {at: segment for at, segment in enumerate(segments) if isinstance(segment, AnswerSlot)}
    agents = [slot.agent for slot in slots.values()] if order is None else list(order)
    if order is None or len(agents) < len(slots):
        return dict.fromkeys(slots, agents)
    of_list: list[str] = []
    candidates: dict[int, list[str]] = {}
    for (at, slot), agent in zip(slots.items(), agents, strict=True):
        if slot.closing is None:
            candidates[at] = [agent]
        else:
            of_list.append(agent)
            candidates[at] = of_list
    return candidates


@dataclass(frozen=True)
class Rest:
    """The end of a prompt: `ids` come after the first `keep` tokens of what was sent before."""

    keep: int
    ids: tuple[int, ...]


def last_ids(segments: Sequence[Segment]) -> tuple[int, ...]:
    """The tokens that a prompt ends with, whatever its answers are."""
    if not segments:
        # An empty question, alone.
        return ()
    last = segments[-1]
    return last.ids if isinstance(last, Static) else last.closing or ()


def max_prompt_tokens(segments: Sequence[Segment], max_new_tokens: Mapping[str, int]) -> int:
    """Most tokens the prompt can come to, when each agent answers at most `max_new_tokens[agent]` tokens."""
    fixed, frames = prompt_lengths(segments)
    return fixed + sum(frame + max_new_tokens[agent] for agent, frame in frames.items())


def prompt_lengths(segments: Sequence[Segment]) -> tuple[int, dict[str, int]]:
    """Tokens of the prompt without answers, the longest end of a list included; and for each precursor, those that come
    before its answer if there is one."""
    fixed = closing = 0
    frames: dict[str, int] = {}
    for segment in segments:
        if isinstance(segment, Static):
            fixed += len(segment.ids)
        else:
            frames[segment.agent] = len(segment.before)
            closing = max(closing, len(segment.closing or ()))
    return fixed + closing, frames
