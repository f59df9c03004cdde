"""Drafts on the wire: what a worker is told to draft from, and what came of it."""

from __future__ import annotations

import dataclasses

import msgspec

from sglang_ext.protocol import MAX_REFERENCES, Drafts, Status, drafts_to
from shell_router.transport.base import ANY_DRAFTS, GenerateRequest, Spans


def with_references(request: GenerateRequest, references: Spans) -> GenerateRequest:
    """`request`, which may be drafted from these parts of its prompt too."""
    if request.drafts.off or not references:
        return request
    drafts = msgspec.structs.replace(request.drafts, references=tuple(references[:MAX_REFERENCES]))
    return dataclasses.replace(request, drafts=drafts)


def custom_params(drafts: Drafts, worker: Status | None) -> dict[str, str]:
    """What `worker`, as it said of itself, is told of `drafts`: nothing if it drafts nothing, or as it would anyway."""
    if worker is None or worker.drafts is None or drafts == ANY_DRAFTS:
        return {}
    return drafts_to(drafts)
