"""Run records with known numbers: what a shell router would answer for layers of agents that take fixed times."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from experiments.questions import Question
from experiments.settings.plan import Step
from experiments.settings.result import RunResult
from shell_router.core.agent_progress import AgentState
from shell_router.record import AgentRecord, ChunkRecord, DraftRecord, Mode, RunRecord, Usage

PREFILL_S = 2.0
"""Of a successor's whole prompt in blocking mode, and of its tail and its hidden part in spliced mode by halves."""
DECODE_S = 8.0
CHUNKS = 3


def make_record(
    mode: Mode,
    *,
    run_id: str = "run-1",
    tree: str = "tree_3_1",
    layers: Sequence[int] = (3, 1),
    text: str = "The answer is 18.",
    seed: int = 0,
) -> RunRecord:
    """A run that went well. Each layer's agents share out the layer before; in spliced mode half the prefill is hidden.

    The second agent of each layer decodes a second longer than the first, the third two seconds, and so on.
    """
    agents: list[AgentRecord] = []
    before: list[AgentRecord] = []
    for layer, count in enumerate(layers):
        share = len(before) // count
        current = [
            _agent(mode, layer, index, before[index * share : (index + 1) * share], text) for index in range(count)
        ]
        agents += current
        before = current
    root = agents[-1]
    return RunRecord(
        id=run_id,
        tree=tree,
        mode=mode,
        seed=seed,
        created=1_700_000_000.0,
        state="done",
        error=None,
        question="How many?",
        agents=tuple(agents),
        ttft_s=root.first_token_s,
        duration_s=root.ended_s,
        usage=Usage(
            prompt_tokens=sum(agent.prompt_tokens for agent in agents),
            completion_tokens=sum(agent.output_tokens for agent in agents),
            cached_tokens=sum(agent.cached_tokens for agent in agents),
        ),
    )


def with_drafts(record: RunRecord) -> RunRecord:
    """The same run as if each layer had drafts of which one more was accepted a step than in the layer before."""
    return msgspec.structs.replace(
        record,
        agents=tuple(
            msgspec.structs.replace(
                agent,
                drafts=DraftRecord(
                    references=((1, 3),) if agent.precursors else (),
                    steps=10,
                    drafted=80,
                    accepted=10 * (agent.layer + 1),
                ),
            )
            for agent in record.agents
        ),
    )


def _agent(mode: Mode, layer: int, index: int, precursors: Sequence[AgentRecord], text: str) -> AgentRecord:
    ready = max((agent.ended_s or 0.0 for agent in precursors), default=0.0)
    hidden = PREFILL_S / 2 if precursors and mode == "spliced" else 0.0
    exposed = PREFILL_S - hidden
    first = ready + exposed
    span = hidden / CHUNKS
    begin = max((agent.first_token_s or 0.0 for agent in precursors), default=0.0)
    chunks = tuple(
        ChunkRecord(sent_s=begin + 2.0 * number, answered_s=begin + 2.0 * number + span, tokens=32)
        for number in range(CHUNKS if hidden else 0)
    )
    return AgentRecord(
        id=f"{'pasr'[layer]}{index + 1}",
        model="smollm2",
        layer=layer,
        cluster=index,
        precursors=tuple(agent.id for agent in precursors),
        slot_order=tuple(agent.id for agent in precursors),
        attempts=1,
        served_by="incremental" if chunks else "plain",
        fallback=None,
        state=AgentState.DONE,
        finish_reason="stop",
        prompt_tokens=100,
        output_tokens=50,
        cached_tokens=10,
        ready_s=ready,
        committed_s=ready,
        first_token_s=first,
        ended_s=first + DECODE_S + index,
        chunks=chunks,
        hidden_prefill_s=hidden,
        exposed_prefill_s=exposed,
        hidden_prefill_tokens=32 * len(chunks),
        text=text,
        output_ids=(1, 2, 3),
        prompt_ids=(4, 5, 6),
    )


def make_result(
    setting: str,
    *,
    question: str = "q1",
    repeat: int = 0,
    latency_s: float = 20.0,
    answer: str = "The answer is 18.",
    error: str | None = None,
    warmup: bool = False,
    tree: str = "tree_3_1",
    layers: Sequence[int] = (3, 1),
    recording: bool = False,
    forced: tuple[str, ...] = (),
    record: RunRecord | None = None,
) -> RunResult:
    """A run as an experiment keeps it; with `error`, one that never began. Setting `blocking` is in that mode."""
    failed = error is not None
    mode: Mode = "blocking" if setting == "blocking" else "spliced"
    return RunResult(
        order=0,
        step=Step(
            name=f"{question}/{repeat}/{setting}",
            setting=setting,
            tree=tree,
            mode=mode,
            question=Question(id=question, prompt="How many?", answer="18"),
            repeat=repeat,
            seed=7,
            warmup=warmup,
            recording=recording,
        ),
        started=1_700_000_000.0,
        flushed=True,
        forced=forced,
        run_id=None if failed else f"{question}-{setting}",
        ttft_s=None if failed else latency_s / 2,
        latency_s=None if failed else latency_s,
        answer=None if failed else answer,
        correct=None if failed else "18" in answer,
        error=error,
        record=None if failed else record or make_record(mode, tree=tree, layers=layers, text=answer),
    )
