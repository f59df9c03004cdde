"""What a chat template writes, told apart from what messages say: only the template writes control tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from shell_router.core.messages import Message, TemplateRefusal

_FIRST_VEIL = 0xD800
"""Surrogates: no text that was once UTF-8 has them."""

Piece: TypeAlias = str | int
"""Text, or the id of a control token."""


class ControlToken(NamedTuple):
    """A token that no text comes to."""

    id: int
    spelling: str
    takes_left: bool = False
    """Whether it swallows the white space before it."""
    takes_right: bool = False


class Divider:
    """Divides rendered messages at the control tokens that the template wrote.

    Characters that a control token may begin or end with are exchanged, in messages, for such that no text has, before
    the template sees them, and put back when its own control tokens have been found.
    """

    def __init__(self, tokens: Iterable[ControlToken]) -> None:
        self._by_first: dict[str, list[ControlToken]] = {}
        for token in sorted(tokens, key=lambda each: -len(each.spelling)):
            self._by_first.setdefault(token.spelling[0], []).append(token)
        # White space is left for the template to trim.
        spellings = [token.spelling.strip() for each in self._by_first.values() for token in each]
        edges = sorted({spelling[at] for spelling in spellings if spelling for at in (0, -1)})
        self._veil = {ord(edge): _FIRST_VEIL + number for number, edge in enumerate(edges)}
        self._unveil = {veil: edge for edge, veil in self._veil.items()}
        self._firsts = re.compile("[" + re.escape("".join(self._by_first)) + "]") if self._by_first else None

    def divide(self, messages: Sequence[Message], render: Callable[[Sequence[Message]], str]) -> tuple[Piece, ...]:
        """`render` is the template. Raises `TemplateRefusal` when it does not take `messages`, or leaves out what one
        says: assistant messages aside, of which templates leave out thinking."""
        veiled = [Message(message.role, message.content.translate(self._veil)) for message in messages]
        try:
            rendered = render(veiled)
        except TemplateRefusal as refusal:
            raise TemplateRefusal(str(refusal).translate(self._unveil)) from refusal
        for message in veiled:
            if message.role != "assistant" and message.content.strip() not in rendered:
                raise TemplateRefusal(f"it leaves out what a message of role {message.role!r} says")
        return tuple(self._pieces(rendered))

    def _pieces(self, rendered: str) -> Iterator[Piece]:
        end = 0
        take = False
        for token, start in self._written(rendered):
            text = rendered[end:start]
            text = text.lstrip() if take else text
            text = text.rstrip() if token.takes_left else text
            if text:
                yield text.translate(self._unveil)
            yield token.id
            end, take = start + len(token.spelling), token.takes_right
        text = rendered[end:].lstrip() if take else rendered[end:]
        if text:
            yield text.translate(self._unveil)

    def _written(self, rendered: str) -> Iterator[tuple[ControlToken, int]]:
        """The control tokens in `rendered`, of two that begin at one place the longer."""
        at = 0
        while self._firsts is not None and (found := self._firsts.search(rendered, at)):
            at = found.start()
            spelled = (each for each in self._by_first[rendered[at]] if rendered.startswith(each.spelling, at))
            token = next(spelled, None)
            if token is not None:
                yield token, at
            at += len(token.spelling) if token else 1
