"""The parts of OpenAI's request bodies that this router reads.

What of OpenAI's it cannot honour (several choices, tools, sound) is refused by name, never silently dropped. Fields for
bookkeeping (`user`, `metadata`) and those that OpenAI does not have are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta

from shell_router.core.messages import Message
from shell_router.core.tree import SamplingOverride
from shell_router.errors import RequestError
from shell_router.form import AnswerForm
from shell_router.handlers.forms import Bias, ResponseFormat, TokenId, refuse
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest

MAX_STOP_STRINGS = 32
"""SGLang's own bound."""
MAX_PREDICTION = 2**17
"""Characters."""
_TokenCount = Annotated[int, Meta(ge=1)]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = False


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: _TokenCount | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: str | list[str] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Meta(max_length=1024)] | None = None
    n: int | None = None
    echo: Any = None
    best_of: Any = None
    suffix: Any = None
    graft: RunOptions = RunOptions()
    """Ours: how the tree is run."""

    question_field: ClassVar[str]
    """Where the question stands, for errors about it."""

    def named(self, error: RequestError) -> RequestError:
        """`error` with the name that this body has for the field it is about."""
        if error.param == "messages":
            error.param = self.question_field
        return error

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    harmless: ClassVar[dict[str, tuple[Any, ...]]] = {"echo": (False,), "best_of": (1,), "suffix": ("",)}
    """Fields that are refused, each with the values that change nothing."""

    def _run_request(self, conversation: tuple[Message, ...], max_tokens: int | None, form: AnswerForm) -> RunRequest:
        refuse(self, self.harmless)
        if self.n not in (None, 1):
            raise RequestError("a tree gives one answer: n must be 1", param="n")
        sampling = SamplingOverride(
            max_new_tokens=UNSET if max_tokens is None else max_tokens,
            temperature=UNSET if self.temperature is None else self.temperature,
            top_p=UNSET if self.top_p is None else self.top_p,
            presence_penalty=UNSET if self.presence_penalty is None else self.presence_penalty,
            frequency_penalty=UNSET if self.frequency_penalty is None else self.frequency_penalty,
        )
        return RunRequest(
            tree=self.model,
            conversation=conversation,
            options=self.graft,
            seed=self.seed or 0,
            root_sampling=sampling,
            form=msgspec.structs.replace(form, logit_bias=self.logit_bias or {}),
            stop=_stop_strings(self.stop),
        )


def _stop_strings(stop: str | list[str] | None) -> tuple[str, ...]:
    """Raises `RequestError` for what no engine takes."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if len(strings) > MAX_STOP_STRINGS:
        raise RequestError(f"{len(strings)} stop strings; there may be {MAX_STOP_STRINGS}", param="stop")
    for number, string in enumerate(strings):
        if not string:
            field = "stop" if isinstance(stop, str) else f"stop[{number}]"
            raise RequestError(f"{field}: a stop string cannot be empty", param=field)
    return strings


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    text: str


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, _text(self.content))


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """OpenAI's predicted output: what the answer may well be. It is drafted from, and changes no token."""

    type: Literal["content"]
    content: str | list[TextPart]


class ChatRequest(_Common, frozen=True, kw_only=True):
    """Body of `POST /v1/chat/completions`. Sampling fields and `stop` are for the root agent."""

    question_field = "messages"

    messages: Annotated[list[ChatMessage], Meta(min_length=1)]
    max_completion_tokens: _TokenCount | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Prediction | None = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    store: Any = None

    harmless = _Common.harmless | {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "web_search_options": (),
        "reasoning_effort": (),
        "verbosity": (),
        "store": (False,),
    }

    def named(self, error: RequestError) -> RequestError:
        if error.param == "max_tokens" and self.max_completion_tokens is not None:
            error.param = "max_completion_tokens"
        return super().named(error)

    def run_request(self) -> RunRequest:
        """Raises `RequestError` for what this router cannot honour."""
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs goes with `logprobs: true`", param="top_logprobs")
        if self.messages[-1].role != "user":
            raise RequestError("the last message must be the user's: it is the question", param="messages")
        conversation = tuple(message.message() for message in self.messages)
        form = AnswerForm(
            json_schema=self.response_format.schema() if self.response_format is not None else None,
            logprobs=bool(self.logprobs),
            top_logprobs=self.top_logprobs or 0,
        )
        request = self._run_request(conversation, self.max_completion_tokens or self.max_tokens, form)
        if self.prediction is None:
            return request
        predicted = _text(self.prediction.content)
        if len(predicted) > MAX_PREDICTION:
            raise RequestError(
                f"prediction: {len(predicted):,} characters; there may be {MAX_PREDICTION:,}", param="prediction"
            )
        return msgspec.structs.replace(request, predicted=predicted)


class CompletionRequest(_Common, frozen=True, kw_only=True):
    """Body of `POST /v1/completions`: the prompt is the question. Sampling fields and `stop` are for the root agent."""

    question_field = "prompt"

    prompt: str | list[str]
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None

    def run_request(self) -> RunRequest:
        """Raises `RequestError` for what this router cannot honour."""
        prompts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if len(prompts) != 1:
            raise RequestError("a request takes one prompt", param="prompt")
        form = AnswerForm(logprobs=self.logprobs is not None, top_logprobs=self.logprobs or 0)
        return self._run_request((Message("user", prompts[0]),), self.max_tokens, form)
