"""What a client may ask of the root's answer: penalties, biases, JSON, log-probabilities; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator
from typing import Any

import openai
import pytest

from shell_router.core.early_exit import BypassPolicy, ExitPolicy
from shell_router.errors import EngineError
from shell_router.transport.base import Delta, GenerateRequest
from shell_router.transport.capabilities import SGLANG
from shell_router.transport.fake import FakeEngine
from shell_router.transport.generate import AnswerReader, sampling_params
from shell_router.transport.http import request_body
from tests.fakes.sglang import chunk
from tests.shell_router.serving import CHAT, CHAT_PATH, fake_service, serving_service
from tests.shell_router.test_app import events
from tests.shell_router.test_openai_sdk import WHY, sdk
from tests.shell_router.trees import ThinkingTokenizer, agent, tree

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}


class Spelling(FakeEngine):
    """An engine whose text is that of its tokens."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        async for delta in super().generate(request):
            yield dataclasses.replace(delta, text="".join(map(chr, delta.ids)))


async def asked_of(engine: FakeEngine, **fields: Any) -> dict[str, GenerateRequest]:
    """What `fields` make of the last request for each agent."""
    async with serving_service(fake_service(engine)) as client:
        status, answer, _ = await client.chat(**fields)
    assert status == 200, answer
    return {request.request_id.partition("-")[2].split("-", 2)[-1]: request for request in engine.requests}


async def test_the_root_alone_is_sampled_as_the_request_says() -> None:
    asked = await asked_of(
        FakeEngine(),
        presence_penalty=1.5,
        frequency_penalty=-1,
        logit_bias={"7": 2.5, "8": -100},
        response_format=AS_JSON,
    )
    root = sampling_params(asked["root"])
    assert (root["presence_penalty"], root["frequency_penalty"]) == (1.5, -1)
    assert root["logit_bias"] == {"7": 2.5, "8": -100}
    assert json.loads(root["json_schema"]) == SCHEMA
    for name in ("p1", "a1"):
        other = sampling_params(asked[name])
        assert (other["presence_penalty"], other["frequency_penalty"]) == (0, 0)
        assert not {"logit_bias", "json_schema"} & other.keys()


async def test_a_json_object_is_any_object_and_text_is_anything() -> None:
    asked = await asked_of(FakeEngine(), response_format={"type": "json_object"})
    assert asked["root"].form.json_schema == '{"type":"object"}'
    asked = await asked_of(FakeEngine(), response_format={"type": "text"})
    assert asked["root"].form.json_schema is None


@pytest.mark.parametrize("wanted", [False, True])
async def test_the_engine_tells_of_the_roots_tokens_who_wants_them(wanted: bool) -> None:
    asked = await asked_of(FakeEngine(), logprobs=wanted)
    assert asked["root"].logprobs is wanted


def test_likeliest_tokens_are_asked_for_and_read() -> None:
    request = GenerateRequest("r", "m", (1,), tree(agent("root")).root.sampling)
    assert "top_logprobs_num" not in request_body(request)
    form = dataclasses.replace(request, form=type(request.form)(top_logprobs=2))
    assert request_body(form)["top_logprobs_num"] == 2
    event = chunk([5, 6], "ab")
    event["meta_info"]["output_top_logprobs"] = [[[-0.5, 5, None], [-1.5, 9, None]], [[-0.5, 6, None], [None, 3, None]]]
    delta = AnswerReader().read(json.dumps(event).encode())
    assert delta.tops == (((5, -0.5), (9, -1.5)), ((6, -0.5),))


async def test_answers_that_are_not_the_roots_do_not_stand_in_for_json() -> None:
    of = tree(agent("p1"), agent("p2"), agent("root", ["p1", "p2"]))
    policy = ExitPolicy(mode="threshold", threshold=0, bypass=BypassPolicy(agreement=0, confidence=0))
    async with serving_service(fake_service(FakeEngine(), dataclasses.replace(of, early_exit=policy))) as client:
        _, plain, _ = await client.chat()
        _, formed, _ = await client.chat(response_format=AS_JSON)
    assert plain["graft"]["stand_in"]
    assert not formed["graft"]["stand_in"]


@pytest.mark.parametrize("stream", [False, True])
async def test_log_probabilities_of_a_chat(stream: bool) -> None:
    async with sdk(fake_service(Spelling(vocabulary=100))) as client:
        wanted: dict[str, Any] = {"model": "t", "messages": WHY, "logprobs": True, "top_logprobs": 2}
        if stream:
            chunks = [each async for each in await client.chat.completions.create(**wanted, stream=True)]
            text = "".join(each.choices[0].delta.content or "" for each in chunks)
            told = [
                one for each in chunks if each.choices[0].logprobs for one in each.choices[0].logprobs.content or []
            ]
            first = next(each for each in chunks if each.choices[0].delta.content)
            assert first.choices[0].logprobs is not None, "they come with their text"
        else:
            choice = (await client.chat.completions.create(**wanted)).choices[0]
            assert choice.logprobs is not None
            text, told = choice.message.content or "", choice.logprobs.content or []
    assert "".join(each.token for each in told) == text
    assert all(each.logprob == -0.5 and each.bytes == list(each.token.encode()) for each in told)
    assert [top.logprob for top in told[0].top_logprobs] == [-0.5, -1.5]
    assert told[0].top_logprobs[0].token == told[0].token


async def test_log_probabilities_of_a_completion() -> None:
    async with sdk(fake_service(Spelling(vocabulary=100))) as client:
        choice = (await client.completions.create(model="t", prompt="why?", logprobs=1)).choices[0]
    told = choice.logprobs
    assert told is not None
    assert "".join(told.tokens or []) == choice.text
    assert told.token_logprobs == [-0.5] * len(told.tokens or [])
    assert told.text_offset == list(range(len(choice.text)))
    assert told.top_logprobs == [{token: -0.5} for token in told.tokens or []]


async def test_without_being_asked_nothing_is_told() -> None:
    async with serving_service(fake_service(Spelling(vocabulary=100))) as client:
        _, answer, _ = await client.chat()
    assert answer["choices"][0]["logprobs"] is None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "functions": ({"functions": [{"name": "f"}]}, "functions"),
    "function_call": ({"function_call": {"name": "f"}}, "function_call"),
    "tools": ({"tools": [{"type": "function"}]}, "tools"),
    "tool_choice": ({"tool_choice": "required"}, "tool_choice"),
    "modalities": ({"modalities": ["text", "audio"]}, "modalities"),
    "audio": ({"audio": {"voice": "x"}}, "audio"),
    "prediction without content": ({"prediction": {"type": "content"}}, "prediction.content"),
    "web_search_options": ({"web_search_options": {}}, "web_search_options"),
    "reasoning_effort": ({"reasoning_effort": "low"}, "reasoning_effort"),
    "verbosity": ({"verbosity": "low"}, "verbosity"),
    "store": ({"store": True}, "store"),
    "best_of": ({"best_of": 2}, "best_of"),
    "suffix": ({"suffix": "x"}, "suffix"),
    "echo": ({"echo": True}, "echo"),
    "n": ({"n": 3}, "n"),
    "seed beyond 64 bits": ({"seed": 2**63}, "seed"),
    "negative seed beyond 64 bits": ({"seed": -(2**63) - 1}, "seed"),
    "top_logprobs alone": ({"top_logprobs": 3}, "top_logprobs"),
    "too many top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "frequency_penalty": ({"frequency_penalty": 2.5}, "frequency_penalty"),
    "presence_penalty": ({"presence_penalty": -2.5}, "presence_penalty"),
    "repetition_penalty": (
        {"graft": {"sampling": {"repetition_penalty": 1e-40}}},
        "graft.sampling.repetition_penalty",
    ),
    "bias": ({"logit_bias": {"5": 101}}, "logit_bias[...]"),
    "bias of no token": ({"logit_bias": {"100000": 1}}, "logit_bias.100000"),
    "bias of a word": ({"logit_bias": {"word": 1}}, "logit_bias"),
    "format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "no schema": ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    "name of a schema": (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a b"}}},
        "response_format.json_schema.name",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_is_not_offered_is_refused_by_name(case: str) -> None:
    fields, param = REFUSED[case]
    engine = FakeEngine()
    async with serving_service(fake_service(engine)) as client:
        status, body, _ = await client.chat(**fields)
    assert (status, body["error"]["param"]) == (400, param), body
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"), [({"best_of": 2}, "best_of"), ({"suffix": "x"}, "suffix"), ({"echo": True}, "echo")]
)
async def test_what_completions_do_not_offer(fields: dict[str, Any], param: str) -> None:
    async with serving_service(fake_service(FakeEngine())) as client:
        status, body, _ = await client.call("POST", "/v1/completions", {"model": "t", "prompt": "why?"} | fields)
    assert (status, body["error"]["param"]) == (400, param)


async def test_what_changes_nothing_passes() -> None:
    idle = {
        "tools": [], "tool_choice": "none", "functions": [], "function_call": "auto", "modalities": ["text"],
        "store": False, "n": 1, "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0,
        "logit_bias": {}, "response_format": {"type": "text"}, "user": "x", "metadata": {"a": "b"},
        "parallel_tool_calls": True, "audio": None, "best_of": 1, "suffix": None, "what_nobody_knows": [1],
    }  # fmt: skip
    async with serving_service(fake_service(FakeEngine())) as client:
        status, body, _ = await client.chat(**idle)
        assert status == 200, body
        fields = {"best_of": 1, "suffix": "", "echo": False, "model": "t", "prompt": "why?"}
        status, body, _ = await client.call("POST", "/v1/completions", fields)
        assert status == 200, body


@pytest.mark.parametrize("how", ["deep", "long", "wide"])
async def test_a_schema_is_bounded(how: str) -> None:
    schema: dict[str, Any] = {"type": "object"}
    if how == "deep":
        for _ in range(70):
            schema = {"properties": {"a": schema}}
    elif how == "wide":
        schema["properties"] = {f"p{number}": {} for number in range(201)}
    else:
        schema["description"] = "x" * 70_000
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with serving_service(fake_service(FakeEngine()), body_bytes=100_000) as client:
        status, body, _ = await client.chat(response_format=form)
    assert (status, body["error"]["param"]) == (400, "response_format.json_schema.schema")


async def test_a_server_that_cannot_is_not_asked() -> None:
    other = dataclasses.replace(SGLANG, token_ids=False, appends=False, forms=False)
    async with serving_service(fake_service(FakeEngine(), capabilities={"m": other})) as client:
        for fields, param in (
            ({"response_format": AS_JSON}, "response_format"),
            ({"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
            ({"logprobs": True}, "logprobs"),
        ):
            status, body, _ = await client.chat(**fields)
            assert (status, body["error"]["param"]) == (400, param)


async def test_the_sdk_parses_what_it_asked_for() -> None:
    """`response_format` with a schema, as the SDK sends it."""
    engine = FakeEngine()
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
    async with sdk(fake_service(engine)) as client:
        await client.chat.completions.create(model="t", messages=WHY, response_format=form)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="t", messages=WHY, n=2)
    assert refused.value.param == "n"
    roots = [request for request in engine.requests if request.request_id.endswith("-root")]
    assert json.loads(roots[-1].form.json_schema or "") == SCHEMA


class Refusing(FakeEngine):
    """An engine that takes no schema."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        if request.form.json_schema is not None:
            refusal = EngineError("the schema is none")
            refusal.refused = True
            raise refusal
        async for delta in super().generate(request):
            yield delta


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_that_the_engine_does_not_take_is_the_clients_error(stream: bool) -> None:
    async with serving_service(fake_service(Refusing())) as client:
        if stream:
            fields = CHAT | {"stream": True, "response_format": AS_JSON}
            async with client.session.post(client.url + CHAT_PATH, json=fields) as reply:
                *_, body = [event async for event in events(reply)]
        else:
            status, body, _ = await client.chat(response_format=AS_JSON)
            assert status == 400
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["param"] == "response_format"
    assert "the schema is none" in body["error"]["message"]


@pytest.mark.parametrize(("status", "refused"), [(400, True), (503, False), (None, False)])
def test_what_an_engine_refuses_is_told_from_what_fails(status: int | None, refused: bool) -> None:
    aborted = chunk([], finish={"type": "abort", "message": "no", "status_code": status})
    with pytest.raises(EngineError) as ended:
        AnswerReader().read(json.dumps(aborted).encode())
    assert ended.value.refused is refused


@pytest.mark.parametrize("form", [None, AS_JSON])
async def test_half_an_answer_in_a_form_is_not_gone_on_with(form: Any) -> None:
    """The rest of it alone would be begun as a whole."""
    engine = FakeEngine(fail_at=lambda request: 2 if request.request_id.endswith("-root") else None)
    async with serving_service(fake_service(engine)) as client:
        status, body, _ = await client.chat(response_format=form)
    assert status == (200 if form is None else 502), body
    asked = [each for each in engine.requests if "-root" in each.request_id and "-append" not in each.request_id]
    assert len(asked) == (2 if form is None else 1)


async def test_a_root_that_thinks_is_told_of_no_log_probabilities() -> None:
    service = fake_service(FakeEngine(), tokenizers={"m": ThinkingTokenizer()})
    async with serving_service(service) as client:
        status, body, _ = await client.chat(logprobs=True)
    assert (status, body["error"]["param"]) == (400, "logprobs")
