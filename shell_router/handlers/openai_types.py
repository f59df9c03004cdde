"""The parts of OpenAI's request bodies that this router reads. Fields it does not know are ignored, as OpenAI's are.

What it cannot honour (several choices, tools, log-probabilities) is refused by name, never silently dropped.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta

from shell_router.core.prompt import Message
from shell_router.core.tree import SamplingOverride
from shell_router.errors import RequestError
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest

_TokenCount = Annotated[int, Meta(ge=1)]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: int | None = None
    max_tokens: _TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    graft: RunOptions = RunOptions()
    """Ours: how the tree is run."""

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def _run_request(self, conversation: tuple[Message, ...], max_tokens: int | None) -> RunRequest:
        if self.n not in (None, 1):
            raise RequestError("a tree gives one answer: n must be 1", param="n")
        sampling = SamplingOverride(
            max_new_tokens=UNSET if max_tokens is None else max_tokens,
            temperature=UNSET if self.temperature is None else self.temperature,
            top_p=UNSET if self.top_p is None else self.top_p,
        )
        return RunRequest(
            tree=self.model,
            conversation=conversation,
            options=self.graft,
            seed=self.seed or 0,
            root_sampling=sampling,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
        )


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class ChatRequest(_Common, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`. Sampling fields and `stop` are for the root agent."""

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: _TokenCount | None = None
    logprobs: bool | None = None
    tools: list[msgspec.Raw] | None = None

    def run_request(self) -> RunRequest:
        """Raises `RequestError` for what this router cannot honour."""
        if self.logprobs:
            raise RequestError("log-probabilities are not offered", param="logprobs")
        if self.tools:
            raise RequestError("tools are not offered", param="tools")
        if self.messages[-1].role != "user":
            raise RequestError("the last message must be the user's: it is the question", param="messages")
        conversation = tuple(message.message() for message in self.messages)
        return self._run_request(conversation, self.max_completion_tokens or self.max_tokens)


class CompletionRequest(_Common, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`: the prompt is the question. Sampling fields and `stop` are for the root agent."""

    prompt: str | list[str]
    logprobs: int | None = None
    echo: bool = False

    def run_request(self) -> RunRequest:
        """Raises `RequestError` for what this router cannot honour."""
        if self.logprobs is not None:
            raise RequestError("log-probabilities are not offered", param="logprobs")
        if self.echo:
            raise RequestError("echo is not offered", param="echo")
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise RequestError("a request takes one prompt", param="prompt")
        return self._run_request((Message("user", prompts[0]),), self.max_tokens)
