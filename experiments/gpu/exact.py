"""Whether sessions answer as plain requests do, many at once and beside plain requests that end meanwhile.

Not only the answer's tokens are compared but how likely the first one was: a wrong page of KV shows there first.

What is looked for are orders of memory that only a busy card comes upon: pages that a request left while a forward pass
still writes them, handed to a session that grows (see docs/sessions.md). With random weights and bfloat16 a greedy
answer may turn on a rounding error, so it is compared with what two plain requests of the same prompt do. In float32
answers are equal. Where the decode worker drafts, these two do without, sessions draft as they like, and a third plain
request has the first one's answer for its draft.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Sequence

import msgspec

from experiments.kernel.engine import PairClient, TokenSource, all_of, closing, open_pair, read_answer
from experiments.kernel.pair import Pair
from experiments.kernel.statistics import Spread, spread
from sglang_ext.protocol import Drafts
from shell_router.errors import EngineError

_ANSWER = 24
Answer = tuple[list[int], float | None]
"""Its ids, and the log-probability of the first of them."""
_PIECES = (16, 50, 100, 250)
_SETTLE_S = 30.0


class Parameters(msgspec.Struct, frozen=True, kw_only=True):
    """How much is asked."""

    rounds: int
    at_once: int
    """Sessions of a round, and plain requests beside them."""
    longest: int
    """Of a prompt, tokens; the shortest have 40."""


class Exactness(msgspec.Struct, kw_only=True):
    """What came of it. Counts are of prompts."""

    sessions: int = 0
    equal: int = 0
    """Sessions whose answer is the plain request's, token for token."""
    plain_equal: int = 0
    """Plain requests whose answer is that of the one before: what prefix caching alone changes."""
    first_logprob_off: Spread | None = None
    """How far the log-probability of a session's first token is from the plain request's, nats, if it is the same."""
    plain_logprob_off: Spread | None = None
    """The same of the second plain request."""
    drafted: int = 0
    """Plain requests whose draft was the answer,"""
    drafted_equal: int = 0
    """of these, those that gave that answer,"""
    drafted_steps: int = 0
    """in so many steps after the first token, all together."""
    beside: int = 0
    """Plain requests that ended beside the sessions."""
    problems: list[str] = []
    """What failed, fell back to a plain request or was still held at the end."""

    def exact(self, *, dtype: str) -> bool:
        """Whether all is as it should be; of answers in less than float32 nothing is demanded."""
        equal = self.equal == self.sessions and self.drafted_equal == self.drafted
        return not self.problems and self.sessions > 0 and (dtype != "float32" or equal)


async def measure(pair: Pair, tokens: TokenSource, parameters: Parameters, within_s: float | None = None) -> Exactness:
    """Ask each prompt plainly, twice, and then of a session; no new round begins after `within_s`.

    Raises `EngineError` when the pair is not there.
    """
    began = time.monotonic()
    found = Exactness()
    off: list[float] = []
    plain_off: list[float] = []
    draw = random.Random(1)
    async with open_pair(pair, timeout_s=120.0) as client:
        drafts = (await client.decode_status()).drafts is not None
        for done in range(parameters.rounds):
            if done and within_s is not None and time.monotonic() - began > within_s:
                break
            prompts = [tokens(draw.randint(40, parameters.longest)) for _ in range(parameters.at_once)]
            first = await asyncio.gather(*(_plain(client, prompt) for prompt in prompts))
            again = await asyncio.gather(*(_plain(client, prompt) for prompt in prompts))
            if drafts:
                await _drafted(client, prompts, first, found)
            busy = [asyncio.create_task(_short_requests(client, tokens, draw, found)) for _ in prompts]
            given = await asyncio.gather(
                *(_session(client, prompt, _cuts(prompt, draw)) for prompt in prompts), return_exceptions=True
            )
            for task in busy:
                task.cancel()
            ended = await asyncio.gather(*busy, return_exceptions=True)
            found.problems += [f"a plain request: {error}" for error in ended if isinstance(error, EngineError)]
            for one, two, answer in zip(first, again, given, strict=True):
                found.plain_equal += one[0] == two[0]
                plain_off += _off(one, two)
                found.sessions += 1
                if isinstance(answer, BaseException):
                    if not isinstance(answer, EngineError):
                        raise answer
                    found.problems.append(f"a session: {answer}")
                else:
                    found.equal += answer[0] == one[0]
                    off += _off(one, answer)
        if (held := await _held(client)) is not None:
            found.problems.append(held)
    found.first_logprob_off, found.plain_logprob_off = spread(off), spread(plain_off)
    return found


def _off(one: Answer, other: Answer) -> list[float]:
    """How far apart the first tokens' log-probabilities are, if there is something to compare."""
    if one[1] is None or other[1] is None or one[0][:1] != other[0][:1]:
        return []
    return [abs(one[1] - other[1])]


async def _plain(client: PairClient, prompt: Sequence[int]) -> Answer:
    ids: list[int] = []
    answered = await client.ask("exact-plain", prompt, _ANSWER, ids.extend, drafts=Drafts(off=True))
    return ids, answered.first_logprob


async def _drafted(
    client: PairClient, prompts: Sequence[Sequence[int]], first: Sequence[Answer], found: Exactness
) -> None:
    """All at once, each with its answer for a draft."""
    read: list[list[int]] = [[] for _ in prompts]
    answered = await all_of(
        client.ask("exact-drafted", prompt, _ANSWER, new.extend, drafts=Drafts(predicted=tuple(ids)))
        for prompt, (ids, _), new in zip(prompts, first, read, strict=True)
    )
    for (ids, _), new, answer in zip(first, read, answered, strict=True):
        found.drafted += 1
        found.drafted_equal += new == ids
        found.drafted_steps += 0 if answer.finish.drafts is None else answer.finish.drafts.steps


async def _short_requests(client: PairClient, tokens: TokenSource, draw: random.Random, found: Exactness) -> None:
    """One after the other: each end frees pages while batches are in flight."""
    while True:
        await client.ask("exact-beside", tokens(draw.randint(20, 200)), draw.randint(2, 12))
        found.beside += 1


async def _session(client: PairClient, prompt: Sequence[int], cuts: Sequence[int]) -> Answer:
    ids: list[int] = []
    _, session = client.session("exact", transport="incremental", answer=_ANSWER, max_prompt_tokens=len(prompt))
    async with closing(session):
        for start, end in itertools.pairwise(cuts):
            await session.append(prompt[start:end])
        answered = await read_answer(session.commit(prompt[cuts[-1] :]), ids.extend)
        if session.fallback is not None:
            raise EngineError(f"it fell back to a plain request: {session.fallback}")
    return ids, answered.first_logprob


def _cuts(prompt: Sequence[int], draw: random.Random) -> list[int]:
    """Where the pieces of `prompt` begin; the last one is the tail."""
    cuts = [0]
    while (end := cuts[-1] + draw.choice(_PIECES)) < len(prompt):
        cuts.append(end)
    return cuts


async def _held(client: PairClient) -> str | None:
    """What is still held a while after the last answer."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _SETTLE_S
    while True:
        sessions = await client.sessions_status()
        pools = await client.pools()
        if sessions is not None and not sessions.open and not any(pool.used for pool in pools):
            return None
        if loop.time() > deadline:
            used = [pool.used for pool in pools]
            return f"still held: {len(sessions.open) if sessions else 0} sessions, tokens {used} of prefill and decode"
        await asyncio.sleep(0.2)
