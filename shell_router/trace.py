"""A run as a Chrome trace, for https://ui.perfetto.dev. A record in, a JSON object out.

A layer is a process, an agent a track in it, and what the agent was doing is a row of spans:

waiting for precursors    until the last of them has ended, where no append is in flight
waiting for its stage     of an agent without precursors, until that opens
hidden prefill            an append, while a precursor was still decoding
exposed append            what of an append lies after the last precursor's end
exposed prefill           from there to the first token; in it its steps, as `shell_router.milestones` has them
decode                    from the first token to the end

The hidden and the exposed spans of a finished agent add up to its `hidden_prefill_s` and `exposed_prefill_s`. An arrow
leads from the end of each answer to the commit of who reads it. What has not ended by the last time the record knows
ends there and is marked `unfinished`.

Checks for an early exit are spans of a track of their own for each cluster, from the question to its answer. One that
made agents needless is a mark of the whole trace, and an `exit` on the track of each of these.

Viewers drop spans of one track that overlap. Here each begins where the one before ended, in whole microseconds.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from shell_router.milestones import steps_of
from shell_router.record import AgentRecord, CheckRecord, RunRecord
from shell_router.spans import failed_append, last_known, spans_of

Event = dict[str, Any]

# At one instant viewers take events in the order of the file: an arrow ends in the span opened last, which must be the
# one that begins there and not a mark.
_ORDER = {"X": 0, "s": 1, "f": 2, "i": 3, "C": 4}


class _Track:
    """One agent's events. Spans are laid end to end from the run's start."""

    def __init__(self, pid: int, tid: int) -> None:
        self.pid = pid
        self.tid = tid
        self.spans: list[Event] = []
        self.points: list[Event] = []
        self._end = 0

    def lay(self, name: str, category: str, until: float, **args: Any) -> None:
        """A span from the end of the one before until `until` (seconds). Arguments that are None are left out."""
        start, self._end = self._end, max(self._end, _microseconds(until))
        span = {"ph": "X", "name": name, "cat": category, "ts": start, "dur": self._end - start, "args": _known(args)}
        self.spans.append(span | self._place())

    def divide(self, name: str, start: float, end: float) -> None:
        """A span within the last one (seconds); one without length is none."""
        first, last = _microseconds(start), _microseconds(end)
        if last > first:
            step = {"ph": "X", "name": name, "cat": "step", "ts": first, "dur": last - first, "args": {}}
            self.spans.append(step | self._place())

    def skip(self, until: float) -> None:
        """Nothing until then (seconds)."""
        self._end = max(self._end, _microseconds(until))

    def wait(self, until: float, cause: str, **args: Any) -> None:
        """Like `lay`, but no waiting is no span."""
        if _microseconds(until) > self._end:
            self.lay(f"waiting for {cause}", "wait", until, **args)

    def mark(self, name: str, at: float, scope: str = "t", **args: Any) -> None:
        """A point in time (seconds), of this track (`t`) or of the whole trace (`g`). None is left out, as by `lay`."""
        point = {"ph": "i", "name": name, "cat": "mark", "ts": _microseconds(at), "s": scope, "args": _known(args)}
        self.points.append(point | self._place())

    def leave(self, arrow: int, at: float) -> None:
        """The arrow's tail. It is bound to the span it lies in, so it is put into the last microsecond of that."""
        self.points.append(self._arrow("s", arrow, max(0, _microseconds(at) - 1)))

    def arrive(self, arrow: int, at: float) -> None:
        """The arrow's head, bound to the span that holds `at` (without `bp` it would be the next one)."""
        self.points.append(self._arrow("f", arrow, _microseconds(at)) | {"bp": "e"})

    def _arrow(self, phase: str, arrow: int, ts: int) -> Event:
        return {"ph": phase, "name": "answer", "cat": "answer", "id": arrow, "ts": ts} | self._place()

    def _place(self) -> Event:
        return {"pid": self.pid, "tid": self.tid}


def chrome_trace(record: RunRecord) -> dict[str, Any]:
    """The trace event format's JSON object. Works at any time of a run; times are microseconds since it began."""
    layers = sorted({agent.layer for agent in record.agents})
    pids = {layer: number for number, layer in enumerate(layers, start=1)}
    # Perfetto knows a thread by its tid alone, whatever its pid, and takes one whose tid is its pid for a main thread.
    tids = {agent.id: number for number, agent in enumerate(record.agents, start=len(pids) + 1)}
    tracks = {agent.id: _Track(pids[agent.layer], tids[agent.id]) for agent in record.agents}
    end = last_known(record)
    for agent in record.agents:
        _lay_spans(tracks[agent.id], agent, end)
        _mark_points(tracks[agent.id], agent, end)
    _draw_arrows(tracks, record)
    root = record.root
    if root.first_token_s is not None:
        tracks[root.id].mark("first token of the root", root.first_token_s)
    if record.state in ("failed", "cancelled"):
        tracks[root.id].mark(f"run {record.state}", end, scope="g", error=record.error or "")
    if record.answered_by not in (None, root.id) and record.duration_s is not None:
        tracks[record.answered_by].mark("stands in for the root", record.duration_s)
    checks = _check_tracks(record, pids, len(pids) + len(tids))
    for check in record.checks:
        _lay_check(checks[check.cluster], check, end, running=record.state == "running")
        for agent_id in check.cancelled:
            tracks[agent_id].mark("exit", end if check.answered_s is None else check.answered_s, step=check.step)

    timed = [event for track in (*tracks.values(), *checks.values()) for event in (*track.spans, *track.points)]
    for pid in pids.values():
        spans = [span for track in tracks.values() if track.pid == pid for span in track.spans]
        timed += _count_decoding(pid, spans)
    timed.sort(key=lambda event: (event["ts"], _ORDER[event["ph"]]))
    return {
        "traceEvents": [*_names(record, pids, tids, checks), *timed],
        "displayTimeUnit": "ms",
        "otherData": {
            "run": record.id,
            "tree": record.tree,
            "mode": record.mode,
            "drafts": record.drafts,
            "seed": record.seed,
            "created": record.created,
            "state": record.state,
            "answered_by": record.answered_by,
            "degraded": record.degraded,
            "early_exit": record.early_exit.mode,
            "tokens_saved": record.tokens_saved,
            "kv_freed_tokens": record.kv_freed_tokens,
        },
    }


def _known(args: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in args.items() if value is not None}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _lay_spans(track: _Track, agent: AgentRecord, end: float) -> None:
    """What `agent` did until it ended, at the latest until `end`."""
    for number, chunk in enumerate(agent.chunks, start=1):
        if failed_append(agent, number):
            track.mark("append failed", chunk.sent_s, chunk=number, tokens=chunk.tokens)
    for span in spans_of(agent, end):
        unfinished = True if span.unfinished else None
        tokens = agent.chunks[span.chunk - 1].tokens if span.chunk else None
        match span.kind:
            case "waiting":
                track.wait(span.end, "precursors" if agent.precursors else "its stage", unfinished=unfinished)
            case "hidden":
                track.lay(
                    "hidden prefill", "prefill,hidden", span.end, chunk=span.chunk, tokens=tokens, unfinished=unfinished
                )
            case "exposed_append":
                track.lay("exposed append", "prefill,exposed", span.end, chunk=span.chunk, tokens=tokens)
            case "exposed":
                track.lay(
                    "exposed prefill",
                    "prefill,exposed",
                    span.end,
                    model=agent.model,
                    prompt_tokens=agent.prompt_tokens,
                    hidden_prefill_tokens=agent.hidden_prefill_tokens,
                    **_way(agent),
                    unfinished=unfinished,
                )
                for step in steps_of(agent):
                    # Those before `span.start` were in an append's.
                    track.divide(step.part, max(step.start, span.start), step.end)
            case "thinking":
                # It is decoded like an answer.
                track.lay(
                    "thinking",
                    "decode",
                    span.end,
                    model=agent.model,
                    thinking_tokens=agent.thinking_tokens,
                    unfinished=unfinished,
                )
            case "decode":
                track.lay(
                    "decode",
                    "decode",
                    span.end,
                    model=agent.model,
                    prompt_tokens=agent.prompt_tokens,
                    cached_tokens=agent.cached_tokens,
                    output_tokens=agent.output_tokens,
                    thinking_tokens=agent.thinking_tokens or None,
                    tokens_per_second=_rate(agent),
                    **_drafts(agent),
                    confidence=agent.confidence,
                    finish_reason=agent.finish_reason,
                    **_way(agent),
                    resumed_tokens=agent.resumed_tokens or None,
                    unfinished=unfinished,
                )


def _way(agent: AgentRecord) -> dict[str, Any]:
    """How the prompt reached the engine."""
    return {"attempts": agent.attempts, "served_by": agent.served_by, "fallback": agent.fallback}


def _drafts(agent: AgentRecord) -> dict[str, Any]:
    """How much of the answer was drafted; nothing where nothing was."""
    drafts = agent.drafts
    if drafts is None:
        return {}
    return {
        "steps": drafts.steps,
        "drafted_tokens": drafts.drafted,
        "accepted_tokens": drafts.accepted,
        "tokens_per_step": drafts.tokens_per_step,
    }


def _rate(agent: AgentRecord) -> float | None:
    """Tokens after the first, which ends the prefill, by the seconds they took."""
    if agent.first_token_s is None or agent.ended_s is None or agent.ended_s <= agent.first_token_s:
        return None
    return max(0, agent.output_tokens - 1) / (agent.ended_s - agent.first_token_s)


def _mark_points(track: _Track, agent: AgentRecord, end: float) -> None:
    for precursor, bound in zip(agent.slot_order, agent.bound_s, strict=False):
        track.mark(f"splice {precursor}", bound)
    if agent.committed_s is not None:
        track.mark(
            "commit",
            agent.committed_s,
            slot_order=", ".join(agent.slot_order),
            taken_back_tokens=agent.taken_back_tokens or None,
            held_back_tokens=agent.held_back_tokens or None,
        )
    if agent.state in ("failed", "cancelled", "skipped"):
        # An agent that only waited holds nothing to be ended: it is over with the run.
        track.mark(
            agent.state,
            end if agent.ended_s is None else agent.ended_s,
            error=agent.error,
            tokens_saved=agent.tokens_saved or None,
            kv_freed_tokens=agent.kv_freed_tokens or None,
        )


def _check_tracks(record: RunRecord, pids: dict[int, int], last_tid: int) -> dict[int, _Track]:
    """A track for each cluster that was checked, in the process of its layer: clusters are checked side by side."""
    layers = {agent.cluster: agent.layer for agent in record.agents}
    clusters = sorted({check.cluster for check in record.checks})
    return {cluster: _Track(pids[layers[cluster]], tid) for tid, cluster in enumerate(clusters, start=last_tid + 1)}


def _lay_check(track: _Track, check: CheckRecord, end: float, *, running: bool) -> None:
    """One check of a cluster: a span, and a mark where agents were cancelled."""
    verdict = check.verdict
    told: dict[str, Any] = {"step": check.step, "agents": ", ".join(check.agents), "error": check.error}
    if verdict is not None:
        told |= {
            "exits": verdict.exits,
            "agrees": verdict.agrees,
            "quality": verdict.quality,
            "draw": verdict.draw,
            "confidence": verdict.confidence,
            "agreement": verdict.agreement,
            "balance": verdict.balance,
            "votes": ", ".join(map(str, verdict.votes)) or None,
            "cancelled": ", ".join(check.cancelled) or None,
        }
    track.skip(check.asked_s)
    unfinished = True if running and check.answered_s is None else None
    track.lay("check", "check", end if check.answered_s is None else check.answered_s, **told, unfinished=unfinished)
    if check.cancelled and check.answered_s is not None:
        track.mark("early exit", check.answered_s, scope="g", cluster=check.cluster, **told)


def _draw_arrows(tracks: dict[str, _Track], record: RunRecord) -> None:
    """From the end of each finished answer to the commits of those who read it."""
    ended = {agent.id: agent.ended_s for agent in record.agents if agent.state == "done"}
    arrow = 0
    for agent in record.agents:
        for precursor in agent.precursors:
            at = ended.get(precursor)
            if at is not None and agent.committed_s is not None:
                arrow += 1
                tracks[precursor].leave(arrow, at)
                tracks[agent.id].arrive(arrow, agent.committed_s)


def _count_decoding(pid: int, spans: list[Event]) -> list[Event]:
    """How many of a layer's agents decode, each time that changes."""
    changes = Counter({0: 0})
    for span in spans:
        if span["cat"] == "decode":
            changes[span["ts"]] += 1
            changes[span["ts"] + span["dur"]] -= 1
    events: list[Event] = []
    agents = 0
    for ts, change in sorted(changes.items()):
        agents += change
        events.append({"ph": "C", "name": "decoding", "ts": ts, "pid": pid, "args": {"agents": agents}})
    return events


def _names(record: RunRecord, pids: dict[int, int], tids: dict[str, int], checks: dict[int, _Track]) -> list[Event]:
    """Names and order of processes and tracks: layers from the proposers down, agents as in the record, root last.

    Checks come below the agents of their layer.
    """
    events: list[Event] = []

    def tell(name: str, place: Event, args: Event) -> None:
        events.append({"ph": "M", "name": name, "args": args} | place)

    root = record.root
    for layer, pid in pids.items():
        role = "root" if layer == root.layer else "aggregators" if layer else "proposers"
        tell("process_name", {"pid": pid}, {"name": f"layer {layer}: {role}"})
        tell("process_sort_index", {"pid": pid}, {"sort_index": layer})
    for position, agent in enumerate(record.agents):
        place = {"pid": pids[agent.layer], "tid": tids[agent.id]}
        tell("thread_name", place, {"name": agent.id})
        tell("thread_sort_index", place, {"sort_index": position})
    for position, (cluster, track) in enumerate(checks.items(), start=len(record.agents)):
        place = {"pid": track.pid, "tid": track.tid}
        tell("thread_name", place, {"name": f"checks of cluster {cluster}"})
        tell("thread_sort_index", place, {"sort_index": position})
    return events
