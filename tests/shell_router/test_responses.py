"""`POST /v1/responses` behind the real `openai` client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from openai.types.responses import (
    ResponseCompletedEvent,
    ResponseFailedEvent,
    ResponseIncompleteEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
)

from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import fake_service, serving_service
from tests.shell_router.test_openai_sdk import extra, sdk

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


async def test_an_answer_in_one_piece() -> None:
    service = fake_service(FakeEngine())
    async with sdk(service) as client:
        answer = await client.responses.create(model="t", input="why?", metadata={"a": "b"})
        chat = await client.chat.completions.create(model="t", messages=[{"role": "user", "content": "why?"}])
    assert answer.output_text == chat.choices[0].message.content
    assert answer.status == "completed"
    assert answer.metadata == {"a": "b"}
    assert answer.error is None
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert answer.usage.output_tokens == chat.usage.completion_tokens
    assert extra(answer, "graft")["run"] == answer.id
    assert service.record(answer.id).root.text == answer.output_text


async def test_a_conversation_is_sent_whole() -> None:
    engine = FakeEngine()
    async with sdk(fake_service(engine)) as client:
        first = await client.responses.create(model="t", input="why?")
        turns: Any = [
            {"role": "user", "content": [{"type": "input_text", "text": "why?"}]},
            *(item.model_dump() for item in first.output),
            {"role": "user", "content": "and then?"},
        ]
        second = await client.responses.create(model="t", instructions="Be brief.", input=turns)
        same = await client.chat.completions.create(
            model="t",
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "why?"},
                {"role": "assistant", "content": first.output_text},
                {"role": "user", "content": "and then?"},
            ],
        )
    assert second.output_text == same.choices[0].message.content
    assert second.instructions == "Be brief."


async def test_events_of_a_stream() -> None:
    async with sdk(fake_service(FakeEngine())) as client:
        whole = await client.responses.create(model="t", input="why?")
        events = [event async for event in await client.responses.create(model="t", input="why?", stream=True)]
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert deltas > 2
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    done = next(event for event in events if isinstance(event, ResponseTextDoneEvent))
    text = "".join(event.delta for event in events if isinstance(event, ResponseTextDeltaEvent))
    assert text == done.text == whole.output_text
    last = events[-1]
    assert isinstance(last, ResponseCompletedEvent)
    assert last.response.output_text == text
    assert last.response.usage == whole.usage
    items = {event.item_id for event in events if isinstance(event, ResponseTextDeltaEvent)}
    assert items == {last.response.output[0].id}


async def test_the_clients_own_way_to_stream() -> None:
    async with (
        sdk(fake_service(FakeEngine())) as client,
        client.responses.stream(model="t", input="why?") as stream,
    ):
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        final = await stream.get_final_response()
    assert final.output_text == text


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_cut_is_incomplete(stream: bool) -> None:
    async with sdk(fake_service(FakeEngine())) as client:
        if stream:
            events = [
                event
                async for event in await client.responses.create(
                    model="t", input="why?", max_output_tokens=1, stream=True
                )
            ]
            assert isinstance(events[-1], ResponseIncompleteEvent)
            answer = events[-1].response
        else:
            answer = await client.responses.create(model="t", input="why?", max_output_tokens=1)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_a_failure() -> None:
    engine = FakeEngine(fail_at=lambda request: 1 if "-root" in request.request_id else None)
    async with sdk(fake_service(engine)) as client:
        events = [event async for event in await client.responses.create(model="t", input="why?", stream=True)]
        with pytest.raises(openai.InternalServerError, match="agent 'root'"):
            await client.responses.create(model="t", input="why?")
    failed = events[-1]
    assert isinstance(failed, ResponseFailedEvent)
    assert failed.response.status == "failed"
    assert failed.response.error is not None
    assert "agent 'root'" in failed.response.error.message


async def test_json_is_asked_for_as_in_chats() -> None:
    engine = FakeEngine()
    async with sdk(fake_service(engine)) as client:
        answer = await client.responses.create(
            model="t",
            input="why?",
            text={"format": {"type": "json_schema", "name": "x", "schema": dict(SCHEMA), "strict": True}},
        )
    assert json.loads(engine.requests[-1].form.json_schema or "") == SCHEMA
    assert answer.text is not None
    assert answer.text.format is not None
    assert answer.text.format.type == "json_schema"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"prompt": {"id": "x"}}, "prompt"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"max_output_tokens": 10**9}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": "why? " * 2000}, "input"),
        ({"model": "x"}, "model"),
    ],
)
async def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    async with serving_service(fake_service(engine), body_bytes=20_000) as client:
        status, body, _ = await client.call("POST", "/v1/responses", {"model": "t", "input": "why?"} | fields)
    assert (status, body["error"]["param"]) == (404 if param == "model" else 400, param), body
    assert engine.requests == []
