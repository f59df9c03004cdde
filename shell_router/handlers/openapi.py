"""`/openapi.json`: the endpoints as an OpenAPI document, from the types that the handlers read and write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from aiohttp import web

from shell_router.handlers.endpoints import Endpoint
from shell_router.handlers.openai_answers import ErrorBody

_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_KEY = "key"


def openapi(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document, OpenAPI 3.1 (JSON Schema 2020-12)."""
    types = {kind for each in endpoints for kind in (each.body, each.query, each.answer, each.event)} - {None}
    types |= {ErrorBody}
    made, components = msgspec.json.schema_components(types, ref_template=_REF)
    schemas = dict(zip(types, made, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for each in endpoints:
        paths.setdefault(each.path, {})[each.method.lower()] = {
            "summary": each.summary,
            "operationId": each.method.lower() + re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"[{}]", "", each.path)),
            "parameters": _parameters(each, components),
            **({} if each.body is None else {"requestBody": _content(schemas[each.body], required=True)}),
            "responses": {
                str(each.status): _answer(each, schemas),
                "default": {"description": "An error, in OpenAI's form", **_content(schemas[ErrorBody])},
            },
            "security": [] if each.open else [{_KEY: []}],
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Graft",
            "version": "1",
            "description": "Trees of agents behind OpenAI's API. A key is wanted where the router has keys.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
        },
    }


class Document:
    """The handler of `/openapi.json`; its document is made once, of what it is then told to be."""

    def __init__(self) -> None:
        self._body = b"{}"

    def describe(self, endpoints: Sequence[Endpoint]) -> None:
        self._body = msgspec.json.encode(openapi(endpoints))

    async def get(self, _request: web.Request) -> web.Response:
        """`GET /openapi.json`"""
        return web.Response(body=self._body, content_type="application/json")


def _content(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}, **more}


def _answer(endpoint: Endpoint, schemas: Mapping[Any, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if endpoint.answer is not None:
        content["application/json"] = {"schema": schemas[endpoint.answer]}
    if endpoint.event is not None:
        # OpenAPI 3.1 has no word for the type of a stream's events.
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-event": schemas[endpoint.event]}
    if endpoint.media is not None:
        content[endpoint.media] = {}
    return {"description": endpoint.summary, **({"content": content} if content else {})}


def _parameters(endpoint: Endpoint, components: dict[str, Any]) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(endpoint.path)
    ]
    if endpoint.query is not None:
        fields = components[endpoint.query.__name__]["properties"]
        parameters += [{"name": name, "in": "query", "schema": field} for name, field in fields.items()]
    if endpoint.resumes:
        parameters.append({"name": "Last-Event-ID", "in": "header", "schema": {"type": "string"}})
    return parameters
