"""Prompts of several lengths one after the other, and answers in several numbers side by side, of one pair.

A prompt's seconds are those to its first token: prefill, and the way of its KV to the decode worker. Prompts are
random, so that no cache has them. Steps are without drafts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from experiments.kernel.engine import PairClient, TokenSource, all_of
from experiments.profile.fit import Arrival, step_seconds
from sglang_ext.protocol import Drafts
from shell_router.errors import EngineError

LENGTHS = (64, 256, 1024)
"""Tokens of the prompts that are timed."""
BATCHES = (1, 4, 8)
"""Answers at once."""
ANSWER = 64
"""Tokens of each answer whose steps are timed; its prompt is the shortest one."""
_OFF = Drafts(off=True)

Done = Callable[[str], None]
"""Told of each sample."""


class ProfileBench:
    """Takes samples on one running pair."""

    def __init__(self, client: PairClient, tokens: TokenSource, repetitions: int) -> None:
        """One more repetition comes first and does not count."""
        self._client = client
        self._tokens = tokens
        self._repetitions = repetitions

    @property
    def samples(self) -> int:
        return (self._repetitions + 1) * (len(LENGTHS) + len(BATCHES))

    async def run(self, done: Done) -> tuple[dict[int, list[float]], dict[int, list[float]]]:
        """Seconds of prompts by their length, and of decode steps by the answers at once. Raises `EngineError`."""
        prompts: dict[int, list[float]] = {length: [] for length in LENGTHS}
        steps: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        for repetition in range(-1, self._repetitions):
            for length, values in prompts.items():
                values.append(await self._prompt(length))
                done(f"{length} tokens: {values[-1] * 1000:.1f} ms")
            for batch, values in steps.items():
                values.append(await self._step(batch))
                done(f"{batch} at once: {values[-1] * 1000:.2f} ms a step")
            if repetition < 0:
                for values in (*prompts.values(), *steps.values()):
                    values.clear()
        return prompts, steps

    async def _prompt(self, length: int) -> float:
        return (await self._client.ask("profile", self._tokens(length), 1, drafts=_OFF)).ttft_s

    async def _step(self, batch: int) -> float:
        answers = await all_of(self._answer() for _ in range(batch))
        try:
            return step_seconds(answers)
        except ValueError as error:
            raise EngineError(f"{batch} at once: {error}") from error

    async def _answer(self) -> list[Arrival]:
        arrivals: list[Arrival] = []

        def arrive(ids: Sequence[int]) -> None:
            arrivals.append(Arrival(time.perf_counter(), len(ids)))

        await self._client.ask("profile", self._tokens(LENGTHS[0]), ANSWER, arrive, drafts=_OFF)
        return arrivals
