"""What OpenAI's endpoints answer here, as types: for the document at `/openapi.json`, which a test holds against what
comes. `graft` and `usage.agents` are ours."""

from __future__ import annotations

from typing import Any, Literal, NotRequired, TypedDict


class GraftAccount(TypedDict):
    """What an answer tells of its run."""

    run: str
    answered_by: str | None
    stand_in: bool
    degraded: bool
    missing: dict[str, tuple[str, ...]]
    early_exits: int
    tokens_saved: int


class AgentUsage(TypedDict):
    """Tokens of one agent."""

    id: str
    model: str
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class PromptDetails(TypedDict):
    cached_tokens: int


class CompletionDetails(TypedDict):
    reasoning_tokens: int


class UsageAccount(TypedDict):
    """Tokens of all agents that were asked for an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails
    agents: list[AgentUsage]


class AnswerMessage(TypedDict):
    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: NotRequired[str]
    """What the root thinks."""


class ChatChoice(TypedDict):
    index: int
    message: AnswerMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(TypedDict):
    """The `id` is the run's."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: UsageAccount
    graft: GraftAccount


class ChatDelta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    reasoning_content: NotRequired[str]


class ChunkChoice(TypedDict):
    index: int
    delta: ChatDelta
    logprobs: NotRequired[dict[str, Any] | None]
    finish_reason: Literal["stop", "length"] | None


class ChatCompletionChunk(TypedDict):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[UsageAccount | None]
    """With `stream_options.include_usage`."""
    graft: NotRequired[GraftAccount]
    """Of the last ones."""


class TextChoice(TypedDict):
    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"] | None
    reasoning_content: NotRequired[str]


class TextCompletion(TypedDict):
    """A completion, and each chunk of a streamed one, of which only the last has `graft`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: NotRequired[UsageAccount | None]
    graft: NotRequired[GraftAccount]


class ServedModel(TypedDict):
    """A tree."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["graft"]


class ModelList(TypedDict):
    object: Literal["list"]
    data: list[ServedModel]


class ResponseUsage(TypedDict):
    input_tokens: int
    input_tokens_details: PromptDetails
    output_tokens: int
    output_tokens_details: CompletionDetails
    total_tokens: int
    agents: list[AgentUsage]


class ResponseObject(TypedDict):
    """OpenAI's `response`. What this router has no part in is as OpenAI has it for who asked for nothing."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: Literal[False]
    previous_response_id: None
    reasoning: dict[str, None]
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: Literal["none"]
    tools: list[Any]
    top_p: float | None
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    graft: NotRequired[GraftAccount]


class ResponseEvent(TypedDict):
    """An event of a streamed response; its other fields depend on `type`, as OpenAI has them."""

    type: str
    sequence_number: int


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    """The field that is wrong, as a path."""
    code: str | None


class ErrorBody(TypedDict):
    """OpenAI's error object."""

    error: ErrorDetail
