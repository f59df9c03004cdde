"""The Chrome trace of a run: of generated records, of real ones from the fake engine, and over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_args

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shell_router.core.agent_progress import AgentState
from shell_router.core.early_exit import Verdict
from shell_router.core.events import Appended, Milestones
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import AgentRecord, CheckRecord, ChunkRecord, RunRecord, RunState, Usage
from shell_router.trace import chrome_trace
from shell_router.transport.base import GenerateRequest
from shell_router.transport.fake import FakeEngine
from tests.shell_router.scripted import agent_of
from tests.shell_router.serving import serving_service
from tests.shell_router.test_openai_schema import CASES, EXIT, Case
from tests.shell_router.test_run import QUESTION, finish, make_service
from tests.shell_router.trees import agent, tree

_WHOLE = {"type": "integer", "minimum": 0}
_NAME = {"type": "string", "minLength": 1}


def _phase(phase: str, **fields: Any) -> dict[str, Any]:
    """The schema of one phase's events: these fields and no others."""
    common = {"ph": {"const": phase}, "name": _NAME, "pid": {"type": "integer", "minimum": 1}}
    properties = common | fields
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


_TIMED = {"ts": _WHOLE, "tid": _WHOLE}
_ARGS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
_ARROW = _TIMED | {"cat": _NAME, "id": _WHOLE}
_NAMES = {"type": "object", "properties": {"name": _NAME, "sort_index": _WHOLE}, "minProperties": 1, "maxProperties": 1}
_process_names, _thread_names = _phase("M", args=_NAMES), _phase("M", tid=_WHOLE, args=_NAMES)

SCHEMA = {
    "type": "object",
    "required": ["traceEvents", "displayTimeUnit", "otherData"],
    "additionalProperties": False,
    "properties": {
        "displayTimeUnit": {"enum": ["ms", "ns"]},
        "otherData": {"type": "object"},
        "traceEvents": {
            "type": "array",
            "items": {
                "oneOf": [
                    _process_names,
                    _thread_names,
                    _phase("X", **_TIMED, dur=_WHOLE, cat=_NAME, args=_ARGS),
                    _phase("s", **_ARROW),
                    _phase("f", **_ARROW, bp={"const": "e"}),
                    _phase("i", **_TIMED, cat=_NAME, args=_ARGS, s={"enum": ["g", "t"]}),
                    _phase("C", ts=_WHOLE, args={"type": "object", "additionalProperties": _WHOLE}),
                ]
            },
        },
    },
}
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


class Trace:
    """A trace as a viewer reads it, after the checks that hold for every trace."""

    def __init__(self, record: RunRecord) -> None:
        # Through JSON, as it is answered: whatever is in it must survive that.
        self.json = msgspec.json.decode(msgspec.json.encode(chrome_trace(record)))
        VALIDATOR.validate(self.json)
        self.events: list[dict[str, Any]] = self.json["traceEvents"]
        names = {event["tid"]: event["args"]["name"] for event in self.of("M", "thread_name")}
        checked = [f"checks of cluster {cluster}" for cluster in sorted({check.cluster for check in record.checks})]
        assert list(names.values()) == [each.id for each in record.agents] + checked, "one track each, root last"
        assert not names.keys() & {event["pid"] for event in self.events}, "Perfetto tells threads by tid alone"
        for event in self.events:
            event["agent"] = names.get(event.get("tid"))
        self._check_order()

    def of(self, phase: str, name: str | None = None, agent: str | None = None) -> list[dict[str, Any]]:
        return [
            event
            for event in self.events
            if event["ph"] == phase and name in (None, event["name"]) and agent in (None, event.get("agent"))
        ]

    def spans(self, agent: str) -> list[tuple[str, int, int]]:
        """Name, start and end of an agent's spans."""
        return [_ends(event) for event in self.of("X", agent=agent) if event["cat"] != "step"]

    def steps(self, agent: str) -> list[tuple[str, int, int]]:
        """Those of its exposed prefill."""
        return [_ends(event) for event in self.of("X", agent=agent) if event["cat"] == "step"]

    def seconds(self, category: str, agent: str) -> float:
        """The time an agent spent on spans of `category`."""
        durations: list[int] = [event["dur"] for event in self.of("X", agent=agent) if event["cat"] == category]
        return sum(durations) / 1e6

    def arrows(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Tail and head of each."""
        heads = {event["id"]: event for event in self.of("f")}
        tails = self.of("s")
        assert heads.keys() == {event["id"] for event in tails}
        assert len(heads) == len(tails) == len(self.of("f"))
        return ((tail, heads[tail["id"]]) for tail in tails)

    def _check_order(self) -> None:
        times = [event["ts"] for event in self.events if event["ph"] != "M"]
        assert times == sorted(times)
        for name in {event["agent"] for event in self.of("X")}:
            spans = self.spans(name)
            if name.startswith("checks of"):
                assert all(before[2] <= after[1] for before, after in pairwise(spans)), "spans do not overlap"
                continue
            assert spans[0][1] == 0
            assert all(before[2] == after[1] for before, after in pairwise(spans)), "spans neither overlap nor gape"
            exposed = [span for span in spans if span[0] == "exposed prefill"]
            for _, start, end in self.steps(name):
                assert any(first <= start < end <= last for _, first, last in exposed), "a step is within its span"
            assert all(before[2] <= after[1] for before, after in pairwise(self.steps(name)))


def _ends(event: dict[str, Any]) -> tuple[str, int, int]:
    return event["name"], event["ts"], event["ts"] + event["dur"]


_seconds = st.integers(0, 4096).map(lambda steps: steps / 512)
# Clocks of other machines may say anything.
_milestones = st.fixed_dictionaries({name: st.none() | _seconds for name in Milestones.__struct_fields__}).map(
    lambda times: Milestones(**times)
)


def _finished_agent(draw: st.DrawFn, name: str, layer: int, before: list[AgentRecord]) -> AgentRecord:
    """An agent of a run that went well, reading all agents `before` it."""
    ready = max((each.ended_s or 0.0 for each in before), default=0.0)
    chunks: list[ChunkRecord] = []
    at = max((each.first_token_s or 0.0 for each in before), default=0.0)
    for tokens in draw(st.lists(st.integers(1, 64), max_size=3)) if before else []:
        sent = at + draw(_seconds)
        if sent > ready:
            break
        at = sent + draw(_seconds)
        chunks.append(ChunkRecord(sent_s=sent, answered_s=at, tokens=tokens))
    # An answer may have been asked for again, and waits for the append in flight.
    committed = ready + draw(st.sampled_from([0.0, 0.5]))
    first = max(committed, at if chunks else 0.0) + draw(_seconds)
    return AgentRecord(
        id=name,
        model="m",
        layer=layer,
        cluster=2 * layer + int(name[-1]) % 2,
        precursors=tuple(each.id for each in before),
        slot_order=tuple(each.id for each in before),
        state=AgentState.DONE,
        finish_reason="stop",
        attempts=1 if committed == ready else 2,
        resumed_tokens=draw(st.integers(0, 9)) if committed != ready else 0,
        confidence=draw(st.none() | st.floats(0, 1)),
        served_by="resend" if chunks else "plain",
        fallback=None,
        prompt_tokens=draw(st.integers(1, 999)),
        output_tokens=draw(st.integers(1, 99)),
        cached_tokens=draw(st.integers(0, 99)),
        ready_s=ready,
        committed_s=committed,
        milestones=draw(st.none() | _milestones),
        first_token_s=first,
        ended_s=first + draw(_seconds),
        chunks=tuple(chunks),
        hidden_prefill_s=sum(min(chunk.answered_s or 0.0, ready) - chunk.sent_s for chunk in chunks),
        exposed_prefill_s=first - ready,
        hidden_prefill_tokens=sum(chunk.tokens for chunk in chunks if (chunk.answered_s or 0.0) <= ready),
        taken_back_tokens=draw(st.integers(0, 9)) if chunks else 0,
        held_back_tokens=draw(st.integers(0, 9)) if before else 0,
        text="",
        output_ids=(),
        prompt_ids=(),
    )


def _as_of(agent: AgentRecord, now: float, state: RunState) -> AgentRecord:
    """What is known of `agent` at `now`, in a run that is still running or that failed or was cancelled then."""

    def known(time: float | None) -> float | None:
        return time if time is not None and time <= now else None

    if known(agent.ended_s) is not None:
        return agent
    began = known(agent.first_token_s) is not None
    chunks = tuple(
        msgspec.structs.replace(chunk, answered_s=known(chunk.answered_s))
        for chunk in agent.chunks
        if chunk.sent_s <= now
    )
    held = bool(chunks) or known(agent.committed_s) is not None
    here = AgentState.STREAMING if began else AgentState.WAITING
    if state != "running":
        stopped = AgentState.CANCELLED if held else AgentState.SKIPPED
        here = AgentState.FAILED if state == "failed" and agent.id == "0.0" else stopped
    return msgspec.structs.replace(
        agent,
        state=here,
        finish_reason=None,
        ready_s=known(agent.ready_s),
        committed_s=known(agent.committed_s),
        first_token_s=known(agent.first_token_s),
        # Who holds something on an engine ends when the run does; who only waits has no end.
        ended_s=now if held and state != "running" else None,
        chunks=chunks,
        exposed_prefill_s=agent.exposed_prefill_s if began else None,
        output_tokens=agent.output_tokens if began else 0,
    )


def _left_out(draw: st.DrawFn, agent: AgentRecord) -> AgentRecord:
    """`agent`, if an early exit ends it at some time before its own end, or keeps it from starting."""
    if not draw(st.booleans()):
        return _as_of(agent, draw(_seconds) / 8 * (agent.ended_s or 0.0), "cancelled")
    return msgspec.structs.replace(
        agent,
        state=AgentState.SKIPPED,
        finish_reason=None,
        attempts=0,
        resumed_tokens=0,
        ready_s=None,
        committed_s=None,
        first_token_s=None,
        ended_s=None,
        chunks=(),
        hidden_prefill_s=0.0,
        exposed_prefill_s=None,
        output_tokens=0,
        tokens_saved=draw(st.integers(0, 99)),
    )


def _verdict(draw: st.DrawFn) -> Verdict:
    exits, agrees = draw(st.booleans()), draw(st.booleans())
    if draw(st.booleans()):
        return Verdict(exits=exits, agrees=agrees, votes=(2, 1))
    numbers = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    return Verdict(
        exits=exits, agrees=agrees, quality=numbers[0], agreement=numbers[1], draw=draw(st.none() | _seconds)
    )


def _checks(draw: st.DrawFn, agents: list[AgentRecord], now: float) -> Iterator[CheckRecord]:
    """Of each cluster some, one after the other, as far as they are known at `now`."""
    for cluster in sorted({each.cluster for each in agents}):
        members = [each for each in agents if each.cluster == cluster]
        at = 0.0
        for step in range(1, draw(st.integers(0, 2)) + 1):
            asked = at + draw(_seconds) / 4
            at = asked + draw(_seconds) / 4
            if asked > now:
                break
            answered = at if at <= now and draw(st.integers(0, 3)) else None
            verdict = _verdict(draw) if answered is not None and draw(st.booleans()) else None
            ended = [
                each.id
                for each in members
                if each.state == "skipped" or (each.state == "cancelled" and (each.ended_s or 0.0) <= at)
            ]
            yield CheckRecord(
                cluster=cluster,
                step=step,
                agents=tuple(each.id for each in members[:step]),
                asked_s=asked,
                answered_s=answered,
                likeness=None,
                ballots=None,
                verdict=verdict,
                error="why" if answered is not None and verdict is None else None,
                cancelled=tuple(ended) if verdict is not None and verdict.exits else (),
            )
            if answered is None:
                break


@st.composite
def records(draw: st.DrawFn) -> RunRecord:
    """Runs of layered trees: done, or as they stood at some moment, which may have been their last."""
    agents: list[AgentRecord] = []
    before: list[AgentRecord] = []
    for layer, size in enumerate([*draw(st.lists(st.integers(1, 3), max_size=3)), 1]):
        before = [_finished_agent(draw, f"{layer}.{number}", layer, before) for number in range(size)]
        agents += before
    end = agents[-1].ended_s
    assert end is not None
    # Not all of those whom somebody reads, for then there would be nothing to read.
    spare = {each.id for each in agents if each.layer == 0 and each.id != "0.0" and each is not agents[-1]}
    agents = [_left_out(draw, each) if each.id in spare and draw(st.booleans()) else each for each in agents]
    state: RunState = draw(st.sampled_from(get_args(RunState)))
    now = end
    if state != "done":
        now = draw(_seconds) / 8 * end
        agents = [each if each.id in spare and each.state != "done" else _as_of(each, now, state) for each in agents]
    return RunRecord(
        id="run-1",
        tree="t",
        mode="spliced",
        seed=0,
        created=1.0,
        state=state,
        error="why" if state in ("failed", "cancelled") else None,
        answered_by=draw(st.sampled_from([agents[-1].id, agents[0].id])) if state == "done" else None,
        checks=tuple(sorted(_checks(draw, agents, now), key=lambda check: check.asked_s)),
        question="why?",
        agents=tuple(agents),
        ttft_s=agents[-1].first_token_s,
        duration_s=end if state == "done" else None,
        usage=Usage(prompt_tokens=0, completion_tokens=0, cached_tokens=0),
    )


@given(records())
def test_every_record_gives_a_trace_that_viewers_take(record: RunRecord) -> None:
    trace = Trace(record)
    by_id = {each.id: each for each in record.agents}
    for each in record.agents:
        appends = trace.of("X", "hidden prefill", each.id)
        assert [event["args"]["tokens"] for event in appends] == [chunk.tokens for chunk in each.chunks]
        decode = trace.of("X", "decode", each.id)
        assert len(decode) == (each.first_token_s is not None)
        if trace.steps(each.id):
            assert (
                trace.steps(each.id)[-1][2]
                == trace.of("X", "exposed prefill", each.id)[0]["ts"]
                + (trace.of("X", "exposed prefill", each.id)[0]["dur"])
            )
        if each.exposed_prefill_s is not None:
            assert trace.seconds("prefill,exposed", each.id) == pytest.approx(each.exposed_prefill_s, abs=1e-5)
            assert trace.seconds("prefill,hidden", each.id) == pytest.approx(each.hidden_prefill_s, abs=1e-5)
        if each.ended_s is not None and trace.spans(each.id):
            assert trace.spans(each.id)[-1][2] == round(each.ended_s * 1e6)
        assert len(trace.of("i", "commit", each.id)) == (each.committed_s is not None)
        assert len(trace.of("i", each.state, each.id)) == (each.state in ("failed", "cancelled", "skipped"))
        exits = [check for check in record.checks if each.id in check.cancelled]
        assert [event["args"]["step"] for event in trace.of("i", "exit", each.id)] == [check.step for check in exits]
        for event in decode:
            assert event["args"]["attempts"] == each.attempts
            assert event["args"]["served_by"] == each.served_by
            assert event["args"].get("resumed_tokens", 0) == each.resumed_tokens
        for event in trace.of("i", "commit", each.id):
            assert event["args"].get("taken_back_tokens", 0) == each.taken_back_tokens
            assert event["args"].get("held_back_tokens", 0) == each.held_back_tokens
        unfinished = [event for event in trace.of("X", agent=each.id) if event["args"].get("unfinished")]
        assert not unfinished or not each.state.ended
    for tail, head in trace.arrows():
        assert tail["agent"] in by_id[head["agent"]].precursors
        assert tail["ts"] <= head["ts"]
        ended = by_id[tail["agent"]].ended_s
        assert ended is not None
        assert 0 <= round(ended * 1e6) - tail["ts"] <= 1
        # Perfetto binds an arrow's end to what the file opened last on the track.
        told = [event for event in trace.events[: trace.events.index(head)] if event["ph"] in ("X", "i", "s")]
        assert tail in told
        opened = [event for event in told if event["ph"] != "s" and event["tid"] == head["tid"]][-1]
        begun = [event for event in trace.of("X", agent=head["agent"]) if event["ts"] <= head["ts"]]
        assert opened == begun[-1]
        for end in (tail, head):
            assert any(start <= end["ts"] <= stop for _, start, stop in trace.spans(end["agent"])), "bound to a span"
    committed = [each for each in record.agents if each.committed_s is not None]
    answers = {each.id for each in record.agents if each.state == "done"}
    assert len(trace.of("s")) == sum(len(answers.intersection(each.precursors)) for each in committed)
    stands_in = record.answered_by not in (None, record.agents[-1].id)
    assert [event["agent"] for event in trace.of("i", "stands in for the root")] == [record.answered_by] * stands_in
    assert len(trace.of("i", f"run {record.state}")) == (record.state in ("failed", "cancelled"))


@given(records())
def test_every_check_is_on_its_clusters_track(record: RunRecord) -> None:
    trace = Trace(record)
    layers = {each.cluster: each.layer for each in record.agents}
    for cluster in {check.cluster for check in record.checks}:
        checks = [check for check in record.checks if check.cluster == cluster]
        spans = trace.of("X", "check", f"checks of cluster {cluster}")
        assert [span["args"]["step"] for span in spans] == [check.step for check in checks]
        for check, span in zip(checks, spans, strict=True):
            assert span["ts"] == round(check.asked_s * 1e6)
            if check.answered_s is not None:
                assert span["ts"] + span["dur"] == round(check.answered_s * 1e6)
            assert span["args"].get("unfinished", False) == (check.answered_s is None and record.state == "running")
            assert span["args"].get("error") == check.error
            assert span["args"]["agents"] == ", ".join(check.agents)
            for name in ("quality", "draw", "agreement"):
                assert span["args"].get(name) == getattr(check.verdict, name, None)
            (process,) = [event for event in trace.of("M", "process_name") if event["pid"] == span["pid"]]
            assert process["args"]["name"].startswith(f"layer {layers[cluster]}: ")
    exits = [check for check in record.checks if check.cancelled]
    marks = trace.of("i", "early exit")
    assert sorted((mark["ts"], mark["args"]["cancelled"]) for mark in marks) == sorted(
        (round((check.answered_s or 0.0) * 1e6), ", ".join(check.cancelled)) for check in exits
    )
    assert all(mark["s"] == "g" for mark in marks)


@given(records())
def test_the_counter_follows_the_decode_spans(record: RunRecord) -> None:
    trace = Trace(record)
    for pid in {event["pid"] for event in trace.of("C")}:
        spans = [event for event in trace.of("X", "decode") if event["pid"] == pid]
        counts = [event for event in trace.of("C", "decoding") if event["pid"] == pid]
        assert counts[0]["ts"] == 0
        assert counts[-1]["args"] == {"agents": 0}
        for count in counts:
            decoding = sum(span["ts"] <= count["ts"] < span["ts"] + span["dur"] for span in spans)
            assert count["args"] == {"agents": decoding}


_maybe = st.none() | _seconds
_chunks = st.builds(ChunkRecord, sent_s=_seconds, answered_s=_maybe, tokens=st.just(8))


@given(records(), _maybe, _maybe, _maybe, _maybe, st.lists(_chunks, max_size=3))
def test_times_that_make_no_sense_still_give_a_valid_trace(
    record: RunRecord,
    ready: float | None,
    committed: float | None,
    first: float | None,
    ended: float | None,
    chunks: list[ChunkRecord],
) -> None:
    root = msgspec.structs.replace(
        record.agents[-1],
        ready_s=ready,
        committed_s=committed,
        first_token_s=first,
        ended_s=ended,
        chunks=tuple(chunks),
    )
    Trace(msgspec.structs.replace(record, agents=(*record.agents[:-1], root)))


async def held_pair() -> tuple[RunRecord, RunRecord]:
    """The records of a chain of two, while its proposer is held after an append was answered, and at its end."""
    hold = asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        return hold if request.request_id.endswith("-first") and position == 20 else None

    engine = FakeEngine(gate=gate)
    run = make_service(engine, tree(agent("first", max_new_tokens=48), agent("second", ["first"]))).start(
        RunRequest(tree="t", conversation=QUESTION)
    )
    async for event in run.events():
        if isinstance(event, Appended) and not hold.is_set():
            meanwhile = run.record()
            hold.set()
    return meanwhile, run.record()


async def test_a_spliced_run_while_it_runs_and_at_its_end() -> None:
    meanwhile, record = await held_pair()
    first, second = record.agents

    trace = Trace(meanwhile)
    assert meanwhile.state == "running"
    assert [name for name, *_ in trace.spans("first")] == ["exposed prefill", "decode"]
    assert trace.of("X", "decode", "first")[0]["args"]["unfinished"] is True
    assert trace.of("X", "hidden prefill", "second")[0]["args"]["tokens"] == second.chunks[0].tokens
    assert not trace.of("X", "decode", "second")
    assert not trace.of("s"), "nobody has been committed to"

    trace = Trace(record)
    assert trace.json["displayTimeUnit"] == "ms"
    assert trace.json["otherData"]["run"] == record.id
    layers = {event["pid"]: event["args"]["name"] for event in trace.of("M", "process_name")}
    assert list(layers.values()) == ["layer 0: proposers", "layer 1: root"]
    assert [event["args"]["sort_index"] for event in trace.of("M", "process_sort_index")] == [0, 1]
    assert [event["args"]["sort_index"] for event in trace.of("M", "thread_sort_index")] == [0, 1]
    identifiers = [event["tid"] for event in trace.of("M", "thread_name")]
    assert len({*identifiers, *layers}) == 4, "Perfetto tells threads by tid alone"
    names = [name for name, *_ in trace.spans("second")]
    assert names[:2] == ["waiting for precursors", "hidden prefill"]
    assert names[-2:] == ["exposed prefill", "decode"]
    assert len(trace.of("X", "hidden prefill")) == len(second.chunks)
    assert first.ended_s is not None
    assert second.first_token_s is not None
    ((tail, head),) = trace.arrows()
    assert (tail["agent"], head["agent"]) == ("first", "second")
    assert tail["ts"] == round(first.ended_s * 1e6) - 1
    assert [event["ts"] for event in trace.of("i", "first token of the root")] == [round(second.first_token_s * 1e6)]
    args = trace.of("X", "decode", "second")[0]["args"]
    assert args["tokens_per_second"] > 0
    assert "unfinished" not in args
    assert (args["output_tokens"], args["prompt_tokens"]) == (second.output_tokens, second.prompt_tokens)
    assert (args["finish_reason"], args["cached_tokens"]) == (second.finish_reason, 0)


async def test_an_append_that_outlasts_the_last_precursor_is_cut_there() -> None:
    _, record = await held_pair()
    first, second = record.agents
    chunk = ChunkRecord(sent_s=1.0, answered_s=3.0, tokens=8)
    first = msgspec.structs.replace(first, first_token_s=0.5, ended_s=2.0)
    second = msgspec.structs.replace(
        second, chunks=(chunk,), ready_s=2.0, committed_s=2.0, first_token_s=3.5, ended_s=5.0, output_tokens=4
    )
    trace = Trace(msgspec.structs.replace(record, agents=(first, second), ttft_s=3.5, duration_s=5.0))
    assert trace.spans("second") == [
        ("waiting for precursors", 0, 1_000_000),
        ("hidden prefill", 1_000_000, 2_000_000),
        ("exposed append", 2_000_000, 3_000_000),
        ("exposed prefill", 3_000_000, 3_500_000),
        ("decode", 3_500_000, 5_000_000),
    ]
    assert trace.of("X", "decode", "second")[0]["args"]["tokens_per_second"] == 2.0
    assert [event["args"]["chunk"] for event in trace.of("X", agent="second") if "chunk" in event["args"]] == [1, 1]

    # One that failed is never answered, although the answer after it is: nobody knows how long it took.
    failed = msgspec.structs.replace(second, chunks=(msgspec.structs.replace(chunk, answered_s=None),))
    trace = Trace(msgspec.structs.replace(record, agents=(first, failed), ttft_s=3.5, duration_s=5.0))
    assert [name for name, *_ in trace.spans("second")] == ["waiting for precursors", "exposed prefill", "decode"]
    assert [event["ts"] for event in trace.of("i", "append failed")] == [1_000_000]


async def test_failed_and_cancelled_runs_tell_what_ended_them() -> None:
    engine = FakeEngine(fail_at=lambda request: 3 if agent_of(request) == "a1" else None)
    run = make_service(engine).start(RunRequest(tree="t", conversation=QUESTION, options=RunOptions(mode="blocking")))
    async for _ in run.events():
        pass
    trace = Trace(run.record())
    (mark,) = trace.of("i", "run failed")
    assert mark["s"] == "g"
    assert "agent 'a1'" in mark["args"]["error"]
    assert [event["agent"] for event in trace.of("i", "failed")] == ["a1"]
    assert trace.spans("a1")[-1][0] == "decode"
    assert [name for name, *_ in trace.spans("root")] == ["waiting for precursors"]

    reached = asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        if request.request_id.endswith("-root") and position == 1:
            reached.set()
            return asyncio.Event()
        return None

    service = make_service(FakeEngine(gate=gate))
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    await asyncio.wait_for(reached.wait(), 10)
    await service.cancel(run, "enough")
    trace = Trace(run.record())
    assert [event["args"]["error"] for event in trace.of("i", "run cancelled")] == ["enough"]
    assert [event["agent"] for event in trace.of("i", "cancelled")] == ["root"]
    assert len(trace.of("s")) == 6


async def record_of(case: Case) -> RunRecord:
    run = case.service().start(RunRequest(tree="t", conversation=QUESTION))
    await finish(run)
    return run.record()


async def test_an_early_exit_and_whom_it_ended() -> None:
    record = await record_of(CASES["exited"])
    trace = Trace(record)
    (check,) = record.checks
    assert check.answered_s is not None
    assert check.verdict is not None
    (span,) = trace.of("X", "check")
    assert span["agent"] == "checks of cluster 0"
    assert span["args"]["quality"] == check.verdict.quality
    (mark,) = trace.of("i", "early exit")
    assert (mark["s"], mark["agent"], mark["args"]["cancelled"]) == ("g", "checks of cluster 0", "p3")
    (ended,) = trace.of("i", "exit")
    assert (ended["agent"], ended["ts"]) == ("p3", round(check.answered_s * 1e6))
    (cancelled,) = trace.of("i", "cancelled")
    assert cancelled["agent"] == "p3"
    assert cancelled["args"]["tokens_saved"] == record.tokens_saved
    assert cancelled["args"]["kv_freed_tokens"] == record.kv_freed_tokens
    assert trace.json["otherData"]["early_exit"] == "threshold"


async def test_a_root_that_was_left_out() -> None:
    record = await record_of(CASES["bypassed"])
    trace = Trace(record)
    assert sorted(event["agent"] for event in trace.of("i", "exit")) == ["p3", "root"]
    (mark,) = trace.of("i", "stands in for the root")
    assert record.duration_s is not None
    assert (mark["agent"], mark["ts"]) == ("p1", round(record.duration_s * 1e6))
    assert not trace.of("i", "first token of the root")
    assert trace.json["otherData"]["answered_by"] == "p1"


async def test_an_answer_that_was_gone_on_with() -> None:
    broke: set[str] = set()

    def fail_at(request: GenerateRequest) -> int | None:
        if "-p1" in request.request_id and not broke:
            broke.add("p1")
            return 4
        return None

    run = make_service(FakeEngine(fail_at=fail_at)).start(RunRequest(tree="t", conversation=QUESTION))
    await finish(run)
    (span,) = Trace(run.record()).of("X", "decode", "p1")
    assert (span["args"]["attempts"], span["args"]["resumed_tokens"]) == (2, 4)


async def test_an_agent_whose_stage_never_opens() -> None:
    staged = msgspec.structs.replace(agent("p3"), stage=1)
    of = tree(agent("p1"), agent("p2"), staged, agent("root", ["p1", "p2", "p3"]))
    service = make_service(FakeEngine(), dataclasses.replace(of, early_exit=EXIT))
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    await finish(run)
    trace = Trace(run.record())
    assert [name for name, *_ in trace.spans("p3")] == ["waiting for its stage"]
    assert [event["agent"] for event in trace.of("i", "skipped")] == ["p3"]


async def test_over_http() -> None:
    service = make_service(FakeEngine())
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    await finish(run)
    async with serving_service(service) as client:
        url = f"{client.url}/v1/runs"
        async with client.session.get(f"{url}/{run.head.id}/trace") as reply:
            assert reply.status == 200
            assert reply.content_type == "application/json"
            disposition = f'attachment; filename="{run.head.id}.trace.json"'
            assert reply.headers["Content-Disposition"] == disposition
            assert await reply.json() == chrome_trace(run.record())
        status, told, _ = await client.call("GET", "/v1/runs/run-x/trace")
        assert status == 404
        assert told["error"].keys() == {"message", "type", "param", "code"}
        assert told["error"]["code"] == "run_not_found"
