"""Bodies and chunks against the JSON schemas of the `openai` client's own types, in which nothing else may stand."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import msgspec
import pytest
from openai.types import Completion, CompletionUsage, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from shell_router.core.early_exit import BypassPolicy, ExitPolicy
from shell_router.core.tree import FailurePolicy
from shell_router.record import RunRecord
from shell_router.service import Service
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.serving import Client, fake_service, serving_service
from tests.shell_router.test_app import events
from tests.shell_router.trees import agent, tree

COUNT = {"type": "integer", "minimum": 0}
AGENT = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "cached_tokens": COUNT,
    },
    "required": ["id", "model", "prompt_tokens", "completion_tokens", "cached_tokens"],
    "additionalProperties": False,
}
GRAFT = {
    "type": "object",
    "properties": {
        "run": {"type": "string", "pattern": "^run-"},
        "answered_by": {"type": "string"},
        "stand_in": {"type": "boolean"},
        "degraded": {"type": "boolean"},
        "missing": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        "early_exits": COUNT,
        "tokens_saved": COUNT,
    },
    "required": ["run", "answered_by", "stand_in", "degraded", "missing", "early_exits", "tokens_saved"],
    "additionalProperties": False,
}


def strict(model: type[BaseModel]) -> Any:
    """The schema of `model` with our two additions, and without its own leave for others."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    for each in (schema, *definitions.values()):
        if "properties" in each:
            each["additionalProperties"] = False
    schema["properties"]["graft"] = GRAFT
    usage = schema if model is CompletionUsage else definitions["CompletionUsage"]
    usage["properties"]["agents"] = {"type": "array", "items": AGENT, "minItems": 1}
    usage["required"] = [*usage["required"], "prompt_tokens_details", "agents"]
    return schema


def validator(schema: Any) -> Any:
    return jsonschema.Draft202012Validator(schema)


def of_streamed_completions() -> Any:
    """OpenAI streams `finish_reason` as null until the end; the client's type is that of a whole completion."""
    schema = strict(Completion)
    reason = schema["$defs"]["CompletionChoice"]["properties"]["finish_reason"]
    reason |= {"type": ["string", "null"], "enum": [*reason["enum"], None]}
    return schema


CHAT = validator(strict(ChatCompletion))
CHAT_CHUNK = validator(strict(ChatCompletionChunk))
COMPLETION = validator(strict(Completion))
COMPLETION_CHUNK = validator(of_streamed_completions())
USAGE = validator(strict(CompletionUsage))


NO_EXIT = ExitPolicy()
EXIT = ExitPolicy(mode="threshold", threshold=0.0)
ONCE = FailurePolicy(attempts=1)


@dataclass(frozen=True)
class Case:
    """A tree of three proposers and a root on a fake engine, and how its answer ends."""

    policy: ExitPolicy = NO_EXIT
    failures: FailurePolicy = ONCE
    fails: str | None = None
    """An agent that fails, before its first token if it is the root."""
    held: str | None = None
    """An agent that never comes to its sixth token."""
    fields: dict[str, Any] = field(default_factory=dict)
    """Of the request."""
    finish_reason: str = "stop"
    graft: dict[str, Any] = field(default_factory=dict)
    """Where the answer's object differs from that of a run in which all goes its way."""
    asked: tuple[str, ...] = ("p1", "p2", "p3", "root")

    def service(self) -> Service:
        never = asyncio.Event()

        def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
            return never if position == 5 and request.request_id.endswith(f"-{self.held}") else None

        def fail_at(request: GenerateRequest) -> int | None:
            if self.fails is None or f"-{self.fails}" not in request.request_id:
                return None
            return 0 if self.fails == "root" else 3

        engine = FakeEngine(gate=gate, fail_at=fail_at)
        of = tree(agent("p1"), agent("p2"), agent("p3"), agent("root", ["p1", "p2", "p3"]))
        return fake_service(engine, dataclasses.replace(of, early_exit=self.policy, failures=self.failures))


CASES = {
    "done": Case(),
    "cut": Case(fields={"max_tokens": 1}, finish_reason="length"),
    "degraded": Case(
        failures=FailurePolicy(attempts=1, missing="drop"),
        fails="p2",
        graft={"degraded": True, "missing": {"root": ["p2"]}},
    ),
    "exited": Case(policy=EXIT, held="p3", graft={"early_exits": 1, "tokens_saved": 24 - 5}),
    "bypassed": Case(
        policy=ExitPolicy(mode="threshold", threshold=0.0, bypass=BypassPolicy(agreement=0.5)),
        held="p3",
        graft={"early_exits": 1, "answered_by": "p1", "stand_in": True, "tokens_saved": 24 - 5 + 24},
        asked=("p1", "p2", "p3"),
    ),
    "stood in": Case(
        failures=FailurePolicy(attempts=1, root_fallback=True),
        fails="root",
        graft={"degraded": True, "answered_by": "p1", "stand_in": True},
    ),
}


def test_the_schemas_refuse_what_is_not_openais() -> None:
    sound = {"id": "x", "object": "text_completion", "created": 1, "model": "t", "choices": []}
    COMPLETION.validate(sound)
    wrongs: dict[str, Any] = {
        "id": 1,
        "object": "text",
        "created": 1.5,
        "more": 1,
        "graft": {},
        "usage": {"agents": []},
    }
    for name, value in wrongs.items():
        assert not COMPLETION.is_valid(sound | {name: value}), name
    choice = {"index": 0, "text": "", "finish_reason": None}
    assert COMPLETION_CHUNK.is_valid(sound | {"choices": [choice]})
    assert not COMPLETION.is_valid(sound | {"choices": [choice]})
    assert not COMPLETION_CHUNK.is_valid(sound | {"choices": [choice | {"finish_reason": "abort"}]})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
async def test_an_answer_in_one_piece(case: str, endpoint: str) -> None:
    of = CASES[case]
    async with serving_service(of.service()) as client:
        status, answer, _ = await client.call("POST", f"/v1/{endpoint}", body(endpoint) | of.fields)
        assert status == 200
        record = await record_of(client, answer["id"])
    (COMPLETION if endpoint == "completions" else CHAT).validate(answer)
    USAGE.validate(answer["usage"])
    (choice,) = answer["choices"]
    assert choice["finish_reason"] == of.finish_reason
    text = choice["text"] if endpoint == "completions" else choice["message"]["content"]
    assert text == next(each.text for each in record.agents if each.id == record.answered_by)
    check_account(of, answer, record)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
async def test_an_answer_as_a_stream(case: str, endpoint: str, include_usage: bool) -> None:
    of = CASES[case]
    wanted = {"stream": True, "stream_options": {"include_usage": include_usage}}
    async with serving_service(of.service()) as client:
        async with client.session.post(
            f"{client.url}/v1/{endpoint}", json=body(endpoint) | of.fields | wanted
        ) as reply:
            assert reply.status == 200
            *chunks, end = [event async for event in events(reply)]
        record = await record_of(client, chunks[0]["id"])
    assert end is None
    for chunk in chunks:
        (COMPLETION_CHUNK if endpoint == "completions" else CHAT_CHUNK).validate(chunk)
        assert ("usage" in chunk) == include_usage
    parts = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [part["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + [of.finish_reason]
    text = "".join(part.get("text") or part.get("delta", {}).get("content") or "" for part in parts)
    assert text == next(each.text for each in record.agents if each.id == record.answered_by)
    ends = chunks[-2:] if include_usage else chunks[-1:]
    assert [chunk for chunk in chunks if "graft" in chunk] == ends
    assert all(chunk["graft"] == ends[0]["graft"] for chunk in ends)
    if include_usage:
        assert [chunk for chunk in chunks if chunk["usage"]] == ends[-1:]
        assert ends[-1]["choices"] == []
        USAGE.validate(ends[-1]["usage"])
        check_account(of, ends[-1], record)


async def test_the_list_of_models() -> None:
    schema = Model.model_json_schema()
    async with serving_service(fake_service(FakeEngine())) as client:
        status, body, _ = await client.call("GET", "/v1/models")
    assert status == 200
    assert body["object"] == "list"
    validator(schema | {"additionalProperties": False}).validate(body["data"][0])


def body(endpoint: str) -> dict[str, Any]:
    if endpoint == "completions":
        return {"model": "t", "prompt": "why?"}
    return {"model": "t", "messages": [{"role": "user", "content": "why?"}]}


async def record_of(client: Client, run_id: str) -> RunRecord:
    return msgspec.convert((await client.call("GET", f"/v1/runs/{run_id}"))[1], RunRecord)


def check_account(of: Case, answer: dict[str, Any], record: RunRecord) -> None:
    """What the answer tells of its run is what the case expects and the record has."""
    assert (
        answer["graft"]
        == {
            "run": record.id,
            "answered_by": "root",
            "stand_in": False,
            "degraded": False,
            "missing": {},
            "early_exits": 0,
            "tokens_saved": 0,
        }
        | of.graft
    )
    usage = answer["usage"]
    agents = {each.id: each for each in record.agents}
    assert tuple(each["id"] for each in usage["agents"]) == of.asked
    for each in usage["agents"]:
        known = agents[each["id"]]
        assert each["model"] == known.model
        assert each["prompt_tokens"] == known.prompt_tokens > 0
        assert each["completion_tokens"] == known.output_tokens
        assert each["cached_tokens"] == known.cached_tokens
    if of.held is not None:
        assert agents[of.held].state == "cancelled"
        assert agents[of.held].output_tokens == 5, "what was generated before is counted"
    for kind in ("prompt_tokens", "completion_tokens"):
        assert usage[kind] == sum(each[kind] for each in usage["agents"])
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
