"""Random schedules of sessions and plain requests, and every way in which a session can end."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import aiohttp

from sglang_ext.protocol import (
    CLOSE_PATH,
    COMMIT_PATH,
    FINISH_PATH,
    OPEN_PATH,
    CloseRequest,
    CommitRequest,
    Drafts,
    FinishRequest,
    drafts_to,
)
from tests.engine.pair import GREEDY, CallRefused, Pair, Session, random_cuts, random_prompt

MOST_REST = 64
"""Tokens that decode computes itself."""
SIZES = (1, 3, 15, 16, 17, 48, 64, 100, 250)


@dataclass
class Outcome:
    """What became of the sessions of a schedule."""

    right: int = 0
    wrong: list[str] = field(default_factory=list)
    fallbacks: Counter[str] = field(default_factory=Counter)


async def run_schedules(
    pair: Pair,
    seed: int,
    count: int,
    at_once: int,
    *,
    longest: int = 900,
    sizes: Sequence[int] = SIZES,
    heads: int = 3,
) -> Outcome:
    """`count` sessions with random prompts in random pieces, `at_once` at a time, beside plain requests.

    Some prompts begin with one of `heads` common heads. The answer of each is compared with that of one plain request
    for the same prompt, whose KV is computed apart (another namespace of the prefix cache), before or after.

    Where the workers draft, the reference is decoded without, and the others with drafts of each other: answers to one
    prompt are of one group, so that nearly all drafts are right.
    """
    draw = random.Random(seed)
    shared = [random_prompt(draw, 20, longest // 3) for _ in range(heads)]
    places = asyncio.Semaphore(at_once)
    outcome = Outcome()

    async def one(number: int) -> None:
        own = random.Random(f"{seed}-{number}")
        head = own.choice(shared) if shared and own.random() < 0.5 else []
        prompt = head + random_prompt(own, 1, longest - len(head))
        sibling = None
        async with places:
            if own.random() < 0.2:
                await pair.generate(random_prompt(own, 1, longest))
            reference = partial(
                pair.generate,
                prompt,
                extra_key=f"reference-{seed}-{number}",
                sampling_params=drafting(Drafts(off=True)),
            )
            siblings = drafting(Drafts(group=f"{seed}-{number}"))
            expected = await reference() if own.random() < 0.5 else None
            if own.random() < 0.5:
                sibling = await pair.generate_directly(prompt, sampling_params=siblings)
            pieces = random_cuts(own, prompt, sizes)
            try:
                found = await _write(pair, own, pieces, len(prompt), siblings)
            except CallRefused as refused:
                outcome.fallbacks[refused.problem.code] += 1
                found = await pair.generate(prompt, sampling_params=siblings)
            if expected is None:
                expected = await reference()
            if found == expected and sibling in (None, expected):
                outcome.right += 1
            else:
                outcome.wrong.append(f"{number}: {len(prompt)} tokens in {[len(p) for p in pieces]}")

    await asyncio.gather(*(one(number) for number in range(count)))
    return outcome


def drafting(drafts: Drafts) -> dict[str, Any]:
    """Sampling parameters of a greedy request with or without drafts."""
    return {**GREEDY, "custom_params": drafts_to(drafts)}


async def _write(
    pair: Pair, draw: random.Random, pieces: Sequence[Sequence[int]], tokens: int, sampling: dict[str, Any]
) -> list[int]:
    session = Session(pair, max_prompt_tokens=tokens + draw.randrange(50))
    try:
        first = 0 if draw.random() < 0.3 else 1
        await session.open(pieces[0] if first else ())
        for piece in pieces[first:-1]:
            if piece:
                await session.append(piece)
            if draw.random() < 0.2:
                await asyncio.sleep(draw.random() * 0.1)
        rest = session.rest(len(pieces[-1]))
        decode_goes_on = rest is not None and 0 < rest <= MOST_REST and draw.random() < 0.7
        at_once = decode_goes_on and draw.random() < 0.5
        try:
            answer = await session.commit(pieces[-1], at_once, sampling_params=sampling, rest=decode_goes_on)
        except CallRefused as refused:
            # What the prefill worker had let go it cannot have sent; the router asks anew then, and so does this.
            if not at_once or refused.problem.code != "closed":
                raise
            await session.close()
            whole = [token for piece in pieces for token in piece]
            return await pair.generate(whole, sampling_params=sampling)
    except BaseException:
        await session.close()
        raise
    ids: list[int] = answer["output_ids"]
    return ids


ENDS = (
    "close", "close_prefill", "close_decode", "abort_prefill", "abort_decode", "close_in_append", "abort_in_append",
    "abort_in_commit", "leave_in_append", "leave_in_commit", "leave", "commit", "open_one_side", "commit_one_side",
    "rest", "abort_in_rest", "finish_one_side", "rest_one_side",
)  # fmt: skip


async def end_somehow(pair: Pair, draw: random.Random, end: str, *, longest: int = 600, ttl_s: float = 2.0) -> None:
    """One session that comes to the given end at a random point. With `leave` its time to live must end it."""
    prompt = random_prompt(draw, 1, longest)
    pieces = random_cuts(draw, prompt, SIZES)
    session = Session(pair, max_prompt_tokens=len(prompt) + 300, ttl_s=ttl_s)
    if end == "open_one_side":
        worker = draw.choice(pair.workers)
        # Refused when sessions that were left fill the budget.
        with suppress(CallRefused):
            await pair.call(worker, OPEN_PATH, session.open_request(prompt))
        return
    try:
        await session.open(pieces[0])
        for piece in pieces[1 : draw.randint(1, len(pieces))]:
            if piece:
                await session.append(piece)
    except CallRefused as refused:
        await session.close()
        if refused.problem.code not in ("over_budget", "closed"):
            raise
        # Sessions that were left fill the budget until they expire; on a busy machine this one may expire, too.
        return
    more = random_prompt(draw, 1, 250)
    long_answer = {"max_new_tokens": 64, "temperature": 0, "ignore_eos": True}
    match end:
        case "close":
            await session.close()
        case "close_prefill" | "close_decode":
            worker = pair.prefill if end == "close_prefill" else pair.decode
            await pair.call(worker, CLOSE_PATH, CloseRequest(session_id=session.id))
        case "abort_prefill" | "abort_decode":
            await pair.abort(pair.prefill if end == "abort_prefill" else pair.decode, session.id)
        case "close_in_append" | "abort_in_append":
            append = asyncio.ensure_future(session.append(more))
            await asyncio.sleep(draw.random() * 0.03)
            if end == "close_in_append":
                await session.close()
            else:
                await asyncio.gather(*(pair.abort(worker, session.id) for worker in pair.workers))
            await _settle(append)
        case "abort_in_commit":
            commit = asyncio.ensure_future(session.commit(more, sampling_params=long_answer))
            await asyncio.sleep(draw.random() * 0.2)
            await asyncio.gather(*(pair.abort(worker, session.id) for worker in pair.workers))
            await _settle(commit)
        case "leave_in_append" | "leave_in_commit":
            call: Any = session.append(more) if end == "leave_in_append" else session.commit(more, stream=True)
            task = asyncio.ensure_future(call)
            await asyncio.sleep(draw.random() * 0.05)
            task.cancel()
            await _settle(task)
        case "commit_one_side":
            worker = draw.choice(pair.workers)
            request = CommitRequest(session_id=session.id, seq=session.next_seq, input_ids=more)
            task = asyncio.ensure_future(pair.call(worker, COMMIT_PATH, request))
            await asyncio.sleep(draw.random() * 0.1)
            await session.close()
            await asyncio.gather(*(pair.abort(worker, session.id) for worker in pair.workers))
            await _settle(task)
        case "rest" | "abort_in_rest":
            # Of any size: what is too much, or not there, ends with an error.
            answer = session.commit(more, sampling_params=long_answer, rest=True)
            task = asyncio.ensure_future(answer)
            if end == "abort_in_rest":
                await asyncio.sleep(draw.random() * 0.1)
            else:
                await asyncio.wait([task], timeout=1.0)
            await session.close()
            await asyncio.gather(*(pair.abort(worker, session.id) for worker in pair.workers))
            await _settle(task)
        case "finish_one_side" | "rest_one_side":
            if end == "finish_one_side":
                one = pair.call(pair.prefill, FINISH_PATH, FinishRequest(session_id=session.id))
            else:
                request = CommitRequest(session_id=session.id, seq=session.next_seq, input_ids=more, rest=True)
                one = pair.call(pair.decode, COMMIT_PATH, request)
            task = asyncio.ensure_future(one)
            await asyncio.sleep(draw.random() * 0.1)
            await session.close()
            await asyncio.gather(*(pair.abort(worker, session.id) for worker in pair.workers))
            await _settle(task)
        case "commit":
            await _settle(asyncio.ensure_future(session.commit(more)))


async def _settle(task: asyncio.Future[Any]) -> None:
    """Wait for the end of a call that may be refused, broken off or cancelled."""
    with suppress(CallRefused, aiohttp.ClientError, asyncio.CancelledError):
        await task
