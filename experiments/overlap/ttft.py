"""How long the first token takes once the prompt is whole, and what had to happen before.

A prompt of random tokens is written in chunks, each as soon as the one before has been answered; then comes the tail
with the commit. Between the two the counters of the prefill worker are read, which no time counts. Who writes is the
session that a run of the router would use: `resend` and `incremental` are its transports, and `blocking` commits all.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext

import msgspec

from experiments.kernel.engine import PairClient, TokenSource, closing, read_answer
from experiments.overlap import stats
from experiments.overlap.counters import Snapshot, moved, snapshot
from experiments.overlap.loads import BusyDecode, Load, LoadParameters, press
from experiments.overlap.stats import Goal, Mode, Sample, goal
from sglang_ext.protocol import Status
from shell_router.errors import EngineError
from shell_router.transport.base import Finish


class TtftParameters(msgspec.Struct, frozen=True, kw_only=True):
    """What is written, how often and in which modes. Lengths are tokens."""

    prompt: int = 1024
    chunk: int = 64
    tail: int = 32
    """Comes with the commit."""
    answer: int = 4
    modes: tuple[Mode, ...]
    repetitions: int = 5
    warmups: int = 1
    seed: int = 0
    loads: LoadParameters = LoadParameters()


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared within: `prompt` tokens under `load`."""

    name: str
    load: Load
    prompt: int


RESEND_BOUNDS: dict[str, float] = {"idle": 1.1, "busy_decode": 0.7, "pressure": 0.3}
BLOCKING_BOUND = 0.2
SCALING_BOUND = 2.5
VALUES = ("ttft_s", "bytes_before_commit", "bytes_after_commit", "recomputed_tokens", "hidden_prefill_fraction")
"""What a sample tells."""
COMPARED = ("ttft_s", "bytes_after_commit")
"""What modes are compared by."""


class Marks(msgspec.Struct, frozen=True, kw_only=True):
    """The prefill worker's counters around the parts of one prompt's life."""

    before: Snapshot
    """Nothing was sent yet."""
    early: Snapshot
    """The last append has been answered."""
    ready: Snapshot
    """Just before the commit; foreign requests may have come in between."""
    after: Snapshot
    """The answer has ended."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """What a prompt cost. None where there is no way to know."""

    bytes_before_commit: int | None = None
    bytes_after_commit: int | None = None
    """KV moved from prefill to decode worker."""
    recomputed_tokens: int | None = None
    """Prompt tokens whose KV was computed more than once."""
    hidden_tokens: int | None = None
    """Prompt tokens whose KV had been computed before the commit and still was there for it."""


class Bench:
    """Takes samples on one running pair."""

    def __init__(self, client: PairClient, tokens: TokenSource, parameters: TtftParameters) -> None:
        self._client = client
        self._tokens = tokens
        self._parameters = parameters
        self._last: Snapshot | None = None

    async def run(self, cases: Sequence[Case]) -> AsyncGenerator[Sample]:
        """All repetitions of `cases`, load by load; under one, which case and mode come first is drawn.

        Samples come as they end, those that failed too. Raises `EngineError` when a load does not begin.
        """
        parameters = self._parameters
        for load, under in itertools.groupby(cases, key=lambda case: case.load):
            draw = random.Random(f"{parameters.seed}/{load}")
            each = [(case, mode) for case in under for mode in parameters.modes]
            self._last = await snapshot(self._client)
            busy = BusyDecode(self._client, self._tokens, parameters.loads) if load == "busy_decode" else nullcontext()
            async with busy as background:
                for repetition in range(-parameters.warmups, parameters.repetitions):
                    for case, mode in draw.sample(each, len(each)):
                        named = Sample(case=case.name, mode=mode, repetition=repetition, warmup=repetition < 0)
                        try:
                            yield await self._measure(named, case, background)
                        except EngineError as error:
                            yield msgspec.structs.replace(named, error=str(error))

    async def _measure(self, named: Sample, case: Case, background: BusyDecode | None) -> Sample:
        if background is not None:
            await background.check()
        parameters, client, length = self._parameters, self._client, case.prompt
        name, session = client.session(
            "overlap",
            transport=stats.transport_of(named.mode),
            answer=parameters.answer,
            max_prompt_tokens=length,
            rest=stats.REST.get(named.mode),
        )
        ids = self._tokens(length)
        sent = 0 if named.mode == "blocking" else length - parameters.tail
        before = await snapshot(client, self._last)
        begun = background.begun if background else 0
        append_s: list[float] = []
        async with closing(session):
            for start in range(0, sent, parameters.chunk):
                began = time.perf_counter()
                await session.append(ids[start : min(start + parameters.chunk, sent)])
                append_s.append(time.perf_counter() - began)
            early = await snapshot(client, before)
            if case.load == "pressure":
                await press(client, self._tokens, parameters.loads)
            ready = await snapshot(client, before)
            answer = await read_answer(session.commit(ids[sent:]))
            after = await snapshot(client, before)
        self._last = after
        if session.fallback is not None:
            raise EngineError(f"it fell back to plain requests ({session.fallback})")
        if background is not None:
            await background.check()
        requests = [finish for request, finish in client.engine.finished if request.startswith(name)]
        account = account_of(named.mode, name, Marks(before=before, early=early, ready=ready, after=after), requests)
        # Plain modes read the bytes of all requests: with another one in between they are not this prompt's.
        alone = named.mode in stats.SESSIONS or background is None or background.begun == begun
        return msgspec.structs.replace(
            named,
            prompt_tokens=answer.finish.prompt_tokens,
            ttft_s=answer.ttft_s,
            append_s=tuple(append_s),
            bytes_before_commit=account.bytes_before_commit if alone else None,
            bytes_after_commit=account.bytes_after_commit if alone else None,
            recomputed_tokens=account.recomputed_tokens,
            hidden_prefill_fraction=None if account.hidden_tokens is None else account.hidden_tokens / length,
        )


def account_of(mode: Mode, session: str, marks: Marks, requests: Sequence[Finish]) -> Account:
    """What the prompt of the session of this id cost. `requests` are its plain requests, the committed one last."""
    if mode in stats.SESSIONS:
        return _of_session(session, marks)
    again = sent = 0
    for request in requests:
        # What earlier requests had computed and no cache had any more.
        again += max(0, sent - request.cached_tokens)
        sent = request.prompt_tokens
    return Account(
        bytes_before_commit=0 if mode == "blocking" else moved(marks.before, marks.early),
        bytes_after_commit=moved(marks.ready, marks.after),
        recomputed_tokens=again,
        hidden_tokens=0 if mode == "blocking" else requests[-1].cached_tokens,
    )


def _of_session(session: str, marks: Marks) -> Account:
    status = marks.early.sessions
    if status is None or not (marks.before.sessions and marks.ready.sessions and marks.after.sessions):
        return Account()
    before, early, ready, after = (
        each.counters for each in (marks.before.sessions, status, marks.ready.sessions, marks.after.sessions)
    )
    held = sum(each.held_tokens for each in status.open if each.session_id == session)
    again_late = after.recomputed_tokens - ready.recomputed_tokens
    # What was let go after the last append must be computed again; without a count of it there is no number.
    counted = after.lets_go == early.lets_go or again_late > 0
    return Account(
        bytes_before_commit=(after.early_pages - before.early_pages) * status.page_bytes,
        bytes_after_commit=(after.commit_pages - before.commit_pages) * status.page_bytes,
        recomputed_tokens=after.recomputed_tokens - before.recomputed_tokens if counted else None,
        hidden_tokens=held - again_late if counted else None,
    )


def goals(samples: Sequence[Sample], parameters: TtftParameters, status: Status) -> list[Goal]:
    """Of the part `ttft`, whose cases are loads, on a prefill worker of this `status`."""
    assert status.sessions is not None
    found: list[Goal] = []
    last_pages = -(-parameters.tail // status.page_size) + 1
    for load in dict.fromkeys(sample.case for sample in samples):
        mine: tuple[str, Mode] = (load, "incremental")
        if load == "idle":
            value = stats.median_ratio(samples, "ttft_s", mine, (load, "blocking"))
            found.append(goal("idle: ttft against blocking", value, BLOCKING_BOUND))
        value = stats.median_ratio(samples, "ttft_s", mine, (load, "resend"))
        found.append(goal(f"{load}: ttft against resend", value, RESEND_BOUNDS[load]))
        found.append(goal(f"{load}: recomputed tokens", stats.largest(samples, *mine, "recomputed_tokens"), 0))
        late = stats.largest(samples, *mine, "bytes_after_commit")
        found.append(goal(f"{load}: bytes after the commit", late, last_pages * status.sessions.page_bytes))
    return found


def scaling_goals(samples: Sequence[Sample], short: str, long: str) -> list[Goal]:
    """Of the part `scaling`, whose cases are prompt lengths."""
    growth = stats.median_ratio(samples, "ttft_s", (long, "incremental"), (short, "incremental"))
    return [goal(f"incremental: ttft at {long} against {short}", growth, SCALING_BOUND)]
