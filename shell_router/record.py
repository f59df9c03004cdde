"""The record of a run: what `GET /v1/runs/{id}` answers. Times are seconds since the run began, counts are tokens."""

from __future__ import annotations

from typing import Literal

import msgspec

Mode = Literal["blocking", "spliced"]
Transport = Literal["incremental", "resend"]
"""How a prompt that is still being written reaches the engine: over sessions of incremental prefill, or as a plain
request for each append."""
ServedBy = Literal["incremental", "resend", "plain"]
"""The transport that carried a prompt; `plain` is one request with all of it."""
Fallback = Literal["not_offered", "refused", "lost", "broken"]
"""Why a prompt did not go the way it was meant to. `not_offered`: no pair of the model has incremental prefill, so it
was resent. The others ended in a plain request. `refused`: a worker would not open the session. `lost`: a worker had
dropped it, or would not go on. `broken`: a connection or an answer broke, before the first token."""
RunState = Literal["running", "done", "failed", "cancelled"]
AgentState = Literal["waiting", "streaming", "done", "cancelled", "failed"]


class ChunkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One append of a successor's prompt."""

    sent_s: float
    answered_s: float | None
    tokens: int


class AgentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One agent of a run. A time is None while (or when) the event has not happened."""

    id: str
    model: str
    layer: int
    """0 for proposers."""
    cluster: int
    """Numbers the clusters of a run from 0; agents of one cluster feed the same successors."""
    precursors: tuple[str, ...]
    """In the order of the template."""
    slot_order: tuple[str, ...]
    """Precursors in the order of the slots they fill, as far as the prompt has come."""
    state: AgentState
    finish_reason: str | None
    """`stop`, `length` or `abort`, as SGLang says it."""
    attempts: int
    """How often the answer was asked for: 2 when a first request failed before any token came."""
    served_by: ServedBy
    fallback: Fallback | None
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    """Prompt tokens whose KV the engine already had when the answer's request came."""
    ready_s: float | None
    """When the last precursor ended; 0 for proposers."""
    committed_s: float | None
    """When the request that decodes the answer was sent."""
    first_token_s: float | None
    ended_s: float | None
    chunks: tuple[ChunkRecord, ...]
    """Appends before the commit, in order; empty for proposers and in blocking mode."""
    hidden_prefill_s: float
    """Time this agent's appends were in flight while a precursor was still decoding."""
    exposed_prefill_s: float | None
    """From the end of the last precursor (proposers: the run's start) to the first token: what a user waits for."""
    hidden_prefill_tokens: int
    """Prompt tokens whose append had answered before the last precursor ended."""
    text: str
    output_ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    """The prompt as it was sent; empty until it is whole."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of all agents together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class RunRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One run of a tree."""

    id: str
    tree: str
    mode: Mode
    seed: int
    created: float
    """Unix time, seconds."""
    state: RunState
    error: str | None
    question: str
    agents: tuple[AgentRecord, ...]
    ttft_s: float | None
    """First token of the root."""
    duration_s: float | None
    """End of the root's answer."""
    usage: Usage
