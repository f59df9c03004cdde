"""What a run adds to OpenTelemetry's metrics for generative AI. Pure: from its record.

The shell router is a client of the engines, which serve its agents' models, and a server of trees, which are its own
models: of the latter the provider is `graft`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from shell_router.record import AgentRecord, RunRecord
from shell_router.telemetry.description import (
    FAILED,
    Attributes,
    error_type,
    first_asked,
    first_chunk_s,
    interval_of,
    known,
)

PROVIDER = "graft"


class Instrument(NamedTuple):
    """A histogram. Buckets are those that the conventions advise."""

    name: str
    unit: str
    meaning: str
    buckets: tuple[float, ...]


_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
WORKFLOW = Instrument(
    "gen_ai.workflow.duration", "s", "GenAI workflow duration.", (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
)
AGENT = Instrument(
    "gen_ai.invoke_agent.duration",
    "s",
    "The end-to-end duration of a single agent invocation.",
    (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6),
)
SERVED = Instrument(
    "gen_ai.server.request.duration",
    "s",
    "Generative AI server request duration such as time-to-last byte or last output token.",
    _SECONDS,
)
SERVED_FIRST = Instrument(
    "gen_ai.server.time_to_first_token",
    "s",
    "Time to generate first token for successful responses.",
    (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
ASKED = Instrument("gen_ai.client.operation.duration", "s", "GenAI operation duration.", _SECONDS)
ASKED_FIRST = Instrument(
    "gen_ai.client.operation.time_to_first_chunk", "s", "Time to receive the first chunk.", _SECONDS
)
TOKENS = Instrument(
    "gen_ai.client.token.usage", "{token}", "Number of input and output tokens used.", tuple(4**n for n in range(14))
)
INSTRUMENTS = (WORKFLOW, AGENT, SERVED, SERVED_FIRST, ASKED, ASKED_FIRST, TOKENS)


class Measurement(NamedTuple):
    instrument: Instrument
    value: float
    attributes: Attributes


def measurements_of(record: RunRecord, providers: Mapping[str, str], queued_s: float = 0.0) -> Iterator[Measurement]:
    """What a run that has ended adds. `providers` has for each model what serves it; the run had waited `queued_s` for
    its place, which its client has waited, too."""
    if record.duration_s is not None:
        yield from _run(record, record.duration_s, queued_s)
    for agent in record.agents:
        yield from _agent(record, agent, providers[agent.model])


def _run(record: RunRecord, duration_s: float, queued_s: float) -> Iterator[Measurement]:
    error = {"error.type": error_type(record.state)}
    yield Measurement(WORKFLOW, duration_s, known({"gen_ai.workflow.name": record.tree, **error}))
    served = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": PROVIDER, "gen_ai.request.model": record.tree}
    yield Measurement(SERVED, queued_s + duration_s, known({**served, **error}))
    if record.state == "done" and record.ttft_s is not None:
        yield Measurement(SERVED_FIRST, queued_s + record.ttft_s, served)


def _agent(record: RunRecord, agent: AgentRecord, provider: str) -> Iterator[Measurement]:
    if (interval := interval_of(agent)) is None:
        return
    start, end = interval
    error = {"error.type": FAILED if agent.state == "failed" else None}
    named = {
        "gen_ai.agent.name": agent.id,
        "gen_ai.workflow.name": record.tree,
        "gen_ai.request.model": agent.model,
    }
    yield Measurement(AGENT, end - start, known({**named, **error}))
    if (asked := first_asked(agent)) is None:
        return
    chat = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": provider, "gen_ai.request.model": agent.model}
    yield Measurement(ASKED, max(0.0, end - asked), known({**chat, **error}))
    if (first := first_chunk_s(agent)) is not None:
        yield Measurement(ASKED_FIRST, first, chat)
    for kind, tokens in (("input", agent.prompt_tokens), ("output", agent.output_tokens)):
        yield Measurement(TOKENS, tokens, {**chat, "gen_ai.token.type": kind})
