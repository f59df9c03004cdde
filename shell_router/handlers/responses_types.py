"""The body of `POST /v1/responses`, as far as this router reads it. What it cannot honour is refused by name.

Nothing is kept between two calls: a conversation is sent whole, as `input`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta

from shell_router.core.messages import Message
from shell_router.core.tree import SamplingOverride
from shell_router.errors import RequestError
from shell_router.form import AnswerForm
from shell_router.handlers.forms import FormatName, refuse, schema_of
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest


class InputText(msgspec.Struct, frozen=True, tag_field="type", tag="input_text"):
    text: str


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    """Of an answer of before."""

    text: str


class InputMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One turn. Answers of before may be sent as they came."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText | OutputText]
    type: Literal["message"] = "message"

    def message(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


class TextFormat(msgspec.Struct, frozen=True, kw_only=True):
    """`text.format`"""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: FormatName | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, kw_only=True):
    format: TextFormat = TextFormat()
    verbosity: Any = None


class ResponsesRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Sampling fields are for the root agent, whose answer the client reads."""

    model: str
    input: Annotated[list[InputMessage], Meta(min_length=1)] | str
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    text: TextConfig = TextConfig()
    metadata: dict[str, str] | None = None
    """Given back with the answer."""
    graft: RunOptions = RunOptions()
    """Ours: how the tree is run."""
    previous_response_id: Any = None
    conversation: Any = None
    store: Any = None
    background: Any = None
    tools: Any = None
    tool_choice: Any = None
    max_tool_calls: Any = None
    include: Any = None
    prompt: Any = None
    reasoning: Any = None
    truncation: Any = None
    top_logprobs: Any = None

    def run_request(self) -> RunRequest:
        """Raises `RequestError` for what this router cannot honour."""
        refuse(
            self,
            {
                "previous_response_id": (),
                "conversation": (),
                "store": (False,),
                "background": (False,),
                "tools": ([],),
                "tool_choice": ("none", "auto"),
                "max_tool_calls": (),
                "include": ([],),
                "prompt": (),
                "reasoning": ({},),
                "truncation": ("disabled",),
                "top_logprobs": (0,),
            },
        )
        if self.text.verbosity is not None:
            raise RequestError("text.verbosity: this router does not offer it", param="text.verbosity")
        if isinstance(self.input, str):
            turns: tuple[Message, ...] = (Message("user", self.input),)
        else:
            turns = tuple(turn.message() for turn in self.input)
        if turns[-1].role != "user":
            raise RequestError("the last turn must be the user's: it is the question", param="input")
        system = () if self.instructions is None else (Message("system", self.instructions),)
        return RunRequest(
            tree=self.model,
            conversation=(*system, *turns),
            options=self.graft,
            root_sampling=SamplingOverride(
                max_new_tokens=UNSET if self.max_output_tokens is None else self.max_output_tokens,
                temperature=UNSET if self.temperature is None else self.temperature,
                top_p=UNSET if self.top_p is None else self.top_p,
            ),
            form=AnswerForm(
                json_schema=schema_of(self.text.format.type, self.text.format.schema, "text.format.schema")
            ),
        )
