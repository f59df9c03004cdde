"""A model's chat template: which messages it takes, and its refusals as errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from shell_router.core.messages import Message, TemplateRefusal

_SYSTEM, _USER = "\u27e6system\u27e7", "\u27e6user\u27e7"


class _Shape(NamedTuple):
    """What messages must be like."""

    system: bool
    """Whether there is a system role; else its text goes before the first user message."""
    parts: bool
    """Whether content is a list of parts, as templates of models that take images may want it."""


_SHAPES = (_Shape(True, False), _Shape(True, True), _Shape(False, False), _Shape(False, True))


class ChatTemplate:
    """The template of a tokenizer, tried before it is used: with a system text and without, content as text and as
    parts."""

    def __init__(self, tokenizer: Any) -> None:
        self._apply: Callable[..., Any] = tokenizer.apply_chat_template
        self._shapes: dict[str, _Shape] = {}

    def render(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> str:
        """The template around `messages`, ending where the assistant begins. Raises `TemplateRefusal`."""
        return self._render(messages, arguments, self._shape(arguments))

    def _shape(self, arguments: Mapping[str, object]) -> _Shape:
        key = json.dumps(arguments, sort_keys=True)
        if key not in self._shapes:
            self._shapes[key] = self._try(arguments)
        return self._shapes[key]

    def _try(self, arguments: Mapping[str, object]) -> _Shape:
        trial = (Message("system", _SYSTEM), Message("user", _USER))
        refusal = TemplateRefusal("it does not show what a system and a user message say, once each")
        for shape in _SHAPES:
            try:
                rendered = self._render(trial, arguments, shape)
            except TemplateRefusal as error:
                refusal = error
                continue
            if rendered.count(_SYSTEM) == rendered.count(_USER) == 1:
                return shape
        raise refusal

    def _render(self, messages: Sequence[Message], arguments: Mapping[str, object], shape: _Shape) -> str:
        if not shape.system:
            messages = _without_system(messages)
        try:
            rendered = self._apply(
                [{"role": each.role, "content": _content(each.content, shape)} for each in messages],
                tokenize=False,
                add_generation_prompt=True,
                **arguments,
            )
        except Exception as error:
            raise TemplateRefusal(str(error)) from error
        assert isinstance(rendered, str)
        return rendered


def _content(text: str, shape: _Shape) -> object:
    return [{"type": "text", "text": text}] if shape.parts else text


def _without_system(messages: Sequence[Message]) -> Sequence[Message]:
    """A system text at the beginning goes before what the user says first; others are for the template to refuse."""
    first, *rest = messages
    at = next((position for position, each in enumerate(rest) if each.role == "user"), None)
    if first.role != "system" or at is None:
        return messages
    rest[at] = Message("user", f"{first.content}\n\n{rest[at].content}")
    return rest
