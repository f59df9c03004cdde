"""`/openapi.json` against the handlers: their routes, what they take and what they answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import jsonschema
import pytest

from shell_router.app import build_app
from shell_router.transport.fake import FakeEngine
from tests.shell_router.recorded_runs import UnevenEngine, UnlikeAssessor, wide
from tests.shell_router.serving import CHAT, Client, fake_service, limited_service, serving_service

QUESTION = {"model": "t", "prompt": "why?"}


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    service = fake_service(UnevenEngine(2, drafts=2), wide(), assessor=UnlikeAssessor())
    async with serving_service(service) as found:
        yield found


async def document(client: Client) -> Any:
    status, told, _ = await client.call("GET", "/openapi.json")
    assert status == 200
    return told


def validator(told: Any, schema: Any) -> Any:
    """Of `schema`, in which nothing may stand that the document does not name."""
    whole = json.loads(json.dumps({"components": told["components"], **schema}))
    for each in walk(whole):
        if each.get("type") == "object" and "properties" in each:
            each.setdefault("additionalProperties", False)
    return jsonschema.Draft202012Validator(whole)


def walk(part: Any) -> Iterator[Any]:
    if isinstance(part, dict):
        yield part
        for inner in part.values():
            yield from walk(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from walk(inner)


async def test_it_has_the_routes_that_are_served(client: Client) -> None:
    app = build_app(limited_service(FakeEngine()), body_bytes=10_000)
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert len(routes) > 20
    paths = (await document(client))["paths"]
    assert {(method.upper(), path) for path, each in paths.items() for method in each} == routes


async def test_it_is_sound(client: Client) -> None:
    told = await document(client)
    assert told["openapi"] == "3.1.0"
    for name, schema in told["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert name
    refs = {each["$ref"] for each in walk(told) if "$ref" in each}
    assert refs
    assert {ref.removeprefix("#/components/schemas/") for ref in refs} <= told["components"]["schemas"].keys()
    operations = [each["operationId"] for path in told["paths"].values() for each in path.values()]
    assert len(set(operations)) == len(operations)
    for path, methods in told["paths"].items():
        for each in methods.values():
            named = {one["name"] for one in each["parameters"] if one["in"] == "path"}
            assert all(f"{{{name}}}" in path for name in named)
            assert path.count("{") == len(named)


async def test_answers_and_events_are_what_it_says(client: Client) -> None:
    told = await document(client)
    graft = {"early_exit": {"mode": "threshold", "threshold": 0.3}}
    bodies = {
        "/v1/chat/completions": CHAT | {"graft": graft, "logprobs": True, "top_logprobs": 1},
        "/v1/completions": QUESTION,
        "/v1/responses": {"model": "t", "input": "why?"},
        "/v1/runs": CHAT,
        "/v1/runs/{id}/feedback": {"score": 1},
    }
    _, chat, _ = await client.call("POST", "/v1/chat/completions", bodies["/v1/chat/completions"])
    names = {"id": chat["id"], "agent": "root"}
    checked: set[tuple[str, str]] = set()
    for path, methods in told["paths"].items():
        for method, operation in methods.items():
            if method == "delete":
                continue
            filled = path.replace("{id}", "t" if path.startswith("/v1/models") else names["id"])
            filled = filled.replace("{agent}", names["agent"])
            ((status, answer), _) = operation["responses"].items()
            for media, content in answer.get("content", {}).items():
                schema = content.get("x-event") or content.get("schema")
                if schema is None:
                    continue
                streams = media == "text/event-stream"
                body = bodies.get(path)
                if streams and body is not None:
                    body = {**body, "stream": True}
                async with client.session.request(method, client.url + filled, json=body) as reply:
                    raw = await reply.text()
                    assert reply.status == int(status), (path, raw)
                    assert reply.content_type == media
                documents = events(raw) if streams else [json.loads(raw)]
                assert documents
                check = validator(told, schema)
                if path == "/v1/responses" and streams:
                    # What else is in an event depends on its type.
                    check = jsonschema.Draft202012Validator({"components": told["components"], **schema})
                for each in documents:
                    check.validate(each)
                checked.add((method, path))
    assert len(checked) >= 15
    status, wrong, _ = await client.call("GET", "/v1/runs/run-0")
    assert status == 404
    validator(
        told, told["paths"]["/v1/runs"]["get"]["responses"]["default"]["content"]["application/json"]["schema"]
    ).validate(wrong)


def events(stream: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize(
    ("path", "body", "sound"),
    [
        ("/v1/chat/completions", CHAT, True),
        ("/v1/chat/completions", CHAT | {"graft": {"mode": "blocking", "slots": "fixed"}, "max_tokens": 3}, True),
        ("/v1/chat/completions", CHAT | {"response_format": {"type": "json_object"}}, True),
        ("/v1/chat/completions", CHAT | {"max_tokens": 0}, False),
        ("/v1/chat/completions", CHAT | {"graft": {"mod": "blocking"}}, False),
        ("/v1/chat/completions", CHAT | {"messages": []}, False),
        ("/v1/chat/completions", {"model": "t"}, False),
        ("/v1/runs", CHAT | {"temperature": 3}, False),
        ("/v1/runs", CHAT, True),
        ("/v1/completions", QUESTION | {"stop": ["x"]}, True),
        ("/v1/completions", QUESTION | {"logprobs": 6}, False),
        ("/v1/responses", {"model": "t", "input": "why?", "instructions": "be brief"}, True),
        ("/v1/responses", {"model": "t", "input": []}, False),
    ],
)
async def test_bodies_are_taken_as_it_says(client: Client, path: str, body: Any, sound: bool) -> None:
    told = await document(client)
    schema = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    check = jsonschema.Draft202012Validator({"components": told["components"], **schema})
    assert check.is_valid(body) is sound
    status, answer, _ = await client.call("POST", path, body)
    assert (status < 300) is sound, answer


@pytest.mark.parametrize(("query", "sound"), [("limit=5&state=done", True), ("limit=0", False), ("state=x", False)])
async def test_parameters_are_taken_as_it_says(client: Client, query: str, sound: bool) -> None:
    told = await document(client)
    schemas = {each["name"]: each["schema"] for each in told["paths"]["/v1/runs"]["get"]["parameters"]}
    given = [each.split("=") for each in query.split("&")]
    valid = [
        jsonschema.Draft202012Validator({"components": told["components"], **schemas[name]}).is_valid(
            int(value) if value.isdigit() else value
        )
        for name, value in given
    ]
    assert all(valid) is sound
    assert ((await client.call("GET", f"/v1/runs?{query}"))[0] == 200) is sound
