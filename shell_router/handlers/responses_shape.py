"""What `POST /v1/responses` answers, and the events that it streams, in OpenAI's shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from shell_router.errors import RouterError
from shell_router.handlers import account
from shell_router.handlers.responses_types import ResponsesRequest
from shell_router.run import Run


class Shape:
    """The answer of one run; events are numbered."""

    def __init__(self, body: ResponsesRequest, run: Run) -> None:
        self._body = body
        self._run = run
        self._number = 0
        self._text = ""
        self._item = f"msg_{run.head.id.removeprefix('run-')}"

    def whole(self, text: str) -> dict[str, Any]:
        """The answer of a run that is done."""
        record = self._run.record()
        used = record.usage
        cut = self._run.finish_reason == "length"
        return self._response(
            "incomplete" if cut else "completed",
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            output=[self._message("incomplete" if cut else "completed", [_part(text)])],
            usage={
                "input_tokens": used.prompt_tokens,
                "input_tokens_details": {"cached_tokens": used.cached_tokens},
                "output_tokens": used.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": sum(agent.thinking_tokens for agent in record.agents)},
                "total_tokens": used.prompt_tokens + used.completion_tokens,
                "agents": account.usage(record)["agents"],
            },
            graft=account.graft(record),
        )

    def opening(self) -> Iterator[dict[str, Any]]:
        """Events before the first text."""
        begun = self._response("in_progress")
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event("response.output_item.added", output_index=0, item=self._message("in_progress", []))
        yield self._of_part("response.content_part.added", part=_part(""))

    def delta(self, text: str) -> dict[str, Any]:
        """The event of new text."""
        self._text += text
        return self._of_part("response.output_text.delta", delta=text, logprobs=[])

    def ending(self) -> Iterator[dict[str, Any]]:
        """Events after the last text, of a run that is done."""
        response = self.whole(self._text)
        yield self._of_part("response.output_text.done", text=self._text, logprobs=[])
        yield self._of_part("response.content_part.done", part=_part(self._text))
        yield self._event("response.output_item.done", output_index=0, item=response["output"][0])
        yield self._event(f"response.{response['status']}", response=response)

    def failing(self, error: RouterError) -> dict[str, Any]:
        """The event that ends the stream of a run that failed."""
        told = {"code": error.code or "server_error", "message": error.message}
        return self._event("response.failed", response=self._response("failed", error=told))

    def _response(self, status: str, **known: Any) -> dict[str, Any]:
        body = self._body
        asked: dict[str, Any] = {
            "id": self._run.head.id,
            "object": "response",
            "created_at": int(self._run.head.created),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._run.tree_name,
            "output": [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": msgspec.to_builtins(body.text.format)},
            "tool_choice": "none",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }
        return asked | known

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": content}

    def _of_part(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._item, output_index=0, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
