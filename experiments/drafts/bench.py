"""Requests at once whose answers are predicted in a known share: what each token takes with drafts, and without.

Each batch is asked without drafts first, unmeasured: that gives the answers, and the prefill worker their prompts'
KV. Then it is asked again, without drafts and with a prediction of each share, in a drawn order. Answers are greedy, so
that they are the same again, to random prompts: what of them repeats itself is drafted without a prediction, too.
"""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

import msgspec

from experiments.drafts.copying import copying, predict
from experiments.kernel.engine import PairClient, TokenSource, all_of
from sglang_ext.protocol import Drafts
from shell_router.errors import EngineError


class DraftsParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are tokens."""

    batches: tuple[int, ...] = (1, 3, 9, 27)
    """Requests at once."""
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Of each answer, how much is predicted."""
    stretch: float = 16.0
    """What is predicted stands in stretches of so many tokens in the mean."""
    prompt: int = 64
    answer: int = 128
    repetitions: int = 5
    warmups: int = 1
    seed: int = 0


class DraftsSample(msgspec.Struct, frozen=True, kw_only=True):
    """One batch that was asked in one way."""

    batch: int
    share: float | None
    """Of the answers, what was to be predicted; None without drafts."""
    repetition: int
    warmup: bool
    error: str | None = None
    tpot_s: float = 0.0
    """From a request's first token to its end, for each token after the first; the mean of the batch."""
    steps: int = 0
    """Of all requests, after their first tokens."""
    drafted: int = 0
    accepted: int = 0
    step_s: float = 0.0
    """From first token to end, for each of a request's steps; the mean of the batch."""
    copied: float = 0.0
    """What of the answers was predicted as it was written. Less than `share` where rounding changed an answer."""
    stretch: float = 1.0
    """In stretches of what length, in the mean."""
    same: int = 0
    """How many of the answers are those that were given without drafts."""

    @property
    def tokens_per_step(self) -> float:
        return (self.steps + self.accepted) / self.steps


class DraftsBench:
    """Takes samples on one running pair."""

    def __init__(self, client: PairClient, tokens: TokenSource, parameters: DraftsParameters) -> None:
        self._client = client
        self._tokens = tokens
        self._parameters = parameters

    async def run(self) -> AsyncGenerator[DraftsSample]:
        """All repetitions, samples as they end; batches come in a drawn order."""
        parameters = self._parameters
        draw = random.Random(parameters.seed)
        for repetition in range(-parameters.warmups, parameters.repetitions):
            for batch in draw.sample(parameters.batches, len(parameters.batches)):
                async for sample in self._batch(batch, draw):
                    yield msgspec.structs.replace(sample, repetition=repetition, warmup=repetition < 0)

    async def _batch(self, batch: int, draw: random.Random) -> AsyncGenerator[DraftsSample]:
        parameters = self._parameters
        asked = [self._tokens(parameters.prompt) for _ in range(batch)]
        named = DraftsSample(batch=batch, share=None, repetition=0, warmup=False)
        try:
            answers = [each.ids for each in await self._ask(asked, [Drafts(off=True)] * batch)]
        except EngineError as error:
            yield msgspec.structs.replace(named, error=str(error))
            return
        ways: list[float | None] = [None, *parameters.shares]
        for share in draw.sample(ways, len(ways)):
            sample = msgspec.structs.replace(named, share=share)
            predicted: list[list[int]] = [[]] * batch
            if share is not None:
                predicted = [predict(answer, share, parameters.stretch, draw, self._tokens) for answer in answers]
            drafts = [Drafts(off=share is None, predicted=tuple(each)) for each in predicted]
            try:
                found = await self._ask(asked, drafts)
            except EngineError as error:
                yield msgspec.structs.replace(sample, error=str(error))
            else:
                yield _sample(sample, found, answers, predicted)

    async def _ask(self, asked: Sequence[Sequence[int]], drafts: Sequence[Drafts]) -> list[_Answer]:
        return await all_of(self._answer(each, told) for each, told in zip(asked, drafts, strict=True))

    async def _answer(self, prompt: Sequence[int], drafts: Drafts) -> _Answer:
        ids: list[int] = []
        answer = await self._client.ask("drafts", prompt, self._parameters.answer, ids.extend, drafts=drafts)
        if len(ids) < 2:
            raise EngineError("the answer has no two tokens")
        if answer.finish.drafts is None:
            raise EngineError("the decode worker drafts nothing: its cluster wants `drafts`")
        counts = answer.finish.drafts
        return _Answer(ids, answer.ended - answer.first, counts.steps, counts.drafted, counts.accepted)


class _Answer(NamedTuple):
    ids: list[int]
    decoding_s: float
    """From the first token on."""
    steps: int
    drafted: int
    accepted: int


def _sample(
    named: DraftsSample, found: Sequence[_Answer], without: Sequence[list[int]], predicted: Sequence[list[int]]
) -> DraftsSample:
    told = copying([(each.ids, prediction) for each, prediction in zip(found, predicted, strict=True)])
    return msgspec.structs.replace(
        named,
        tpot_s=sum(each.decoding_s / (len(each.ids) - 1) for each in found) / len(found),
        step_s=sum(each.decoding_s / each.steps for each in found) / len(found),
        steps=sum(each.steps for each in found),
        drafted=sum(each.drafted for each in found),
        accepted=sum(each.accepted for each in found),
        copied=told.copied,
        stretch=told.stretch,
        same=sum(each.ids == answer for each, answer in zip(found, without, strict=True)),
    )
