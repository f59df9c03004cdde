"""A second layer: precursors decode, a successor reads their answers. With one precursor it is a two-agent chain.

The successor's prompt is a head and then the answers, each bound to its place when the prompt gets there: to the one
that ended first, else to the one that is longest. Appends are whole pages, begin once all precursors decode, and go out
one at a time with all that has become known; the commit follows the last token of the last answer.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Sequence

import msgspec

from experiments.client import ClientError
from experiments.overlap import show, stats
from experiments.overlap.client import EngineClient, Facts, Generated, stop
from experiments.overlap.loads import TokenSource
from experiments.overlap.prompts import Mode, Prompt, discard, make_prompt
from experiments.overlap.stats import Sample


class LayerParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are tokens."""

    precursors: int = 3
    input_range: tuple[int, int] = (1, 1024)
    """Precursors' prompts and the successor's head are this long, drawn uniformly."""
    precursor_answer: int = 64
    answer: int = 16
    modes: tuple[Mode, ...]
    repetitions: int = 5
    warmups: int = 1
    seed: int = 0


class Splice:
    """The successor's prompt as far as it is known. Pure."""

    def __init__(self, head: Sequence[int], answers: int) -> None:
        self._prefix = list(head)
        self._answers: list[list[int]] = [[] for _ in range(answers)]
        self._unbound = dict.fromkeys(range(answers))
        self._ended: list[int] = []
        self._bound: int | None = None
        self._used = 0
        """Tokens of the bound answer that are in the prefix."""
        self._taken = 0

    @property
    def all_decode(self) -> bool:
        return all(self._answers)

    @property
    def whole(self) -> bool:
        return self._bound is None and not self._unbound

    def add(self, answer: int, ids: Sequence[int]) -> None:
        self._answers[answer].extend(ids)
        self._advance()

    def end(self, answer: int) -> None:
        self._ended.append(answer)
        self._advance()

    def take(self, page_size: int) -> list[int]:
        """Whole pages that have not been taken yet."""
        return self._take(len(self._prefix) // page_size * page_size)

    def rest(self) -> list[int]:
        """All that has not been taken yet."""
        return self._take(len(self._prefix))

    def _take(self, until: int) -> list[int]:
        ids = self._prefix[self._taken : until]
        self._taken = max(self._taken, until)
        return ids

    def _advance(self) -> None:
        while True:
            if self._bound is None:
                if not self._unbound or not self.all_decode:
                    return
                self._bound, self._used = self._next(), 0
                del self._unbound[self._bound]
            answer = self._answers[self._bound]
            self._prefix += answer[self._used :]
            self._used = len(answer)
            if self._bound not in self._ended:
                return
            self._bound = None

    def _next(self) -> int:
        ended = [answer for answer in self._ended if answer in self._unbound]
        return ended[0] if ended else max(self._unbound, key=lambda answer: len(self._answers[answer]))


class LayerBench:
    """Takes samples of a second layer. `samples` holds what has ended, whatever happens."""

    def __init__(
        self, client: EngineClient, facts: Facts, tokens: TokenSource, parameters: LayerParameters, case: str
    ) -> None:
        self._client = client
        self._facts = facts
        self._tokens = tokens
        self._parameters = parameters
        self._case = case
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """All repetitions. Within one, all modes have prompts of the same lengths, each its own tokens."""
        parameters = self._parameters
        draw = random.Random(f"{parameters.seed}/{self._case}")
        for repetition in range(-parameters.warmups, parameters.repetitions):
            lengths = [draw.randint(*parameters.input_range) for _ in range(parameters.precursors + 1)]
            for mode in draw.sample(parameters.modes, len(parameters.modes)):
                named = Sample(case=self._case, mode=mode, repetition=repetition, warmup=repetition < 0)
                try:
                    sample = await self._measure(named, lengths)
                except ClientError as error:
                    sample = msgspec.structs.replace(named, error=str(error))
                self.samples.append(sample)
                show.announce(sample)

    async def _measure(self, named: Sample, lengths: Sequence[int]) -> Sample:
        head, *inputs = [self._tokens(length) for length in lengths]
        splice = Splice(head, len(inputs))
        news = asyncio.Event()
        prompt = make_prompt(named.mode, self._client, self._facts)
        begin = time.perf_counter()
        precursors = [asyncio.create_task(self._precursor(i, ids, splice, news)) for i, ids in enumerate(inputs)]
        # Told of a failure as of a token.
        for task in precursors:
            task.add_done_callback(lambda _: news.set())
        append_s: list[float] = []
        try:
            answer = await self._successor(prompt, splice, news, precursors, append_s)
        except BaseException:
            await stop(precursors)
            await discard(prompt)
            raise
        last = max(task.result().ended for task in precursors)
        return msgspec.structs.replace(
            named,
            prompt_tokens=answer.prompt_tokens,
            append_s=tuple(append_s),
            ttft_s=answer.first - last,
            layer_s=answer.ended - last,
            total_s=answer.ended - begin,
        )

    async def _precursor(self, index: int, ids: Sequence[int], splice: Splice, news: asyncio.Event) -> Generated:
        def on_tokens(new: Sequence[int]) -> None:
            splice.add(index, new)
            news.set()

        sampling = {"max_new_tokens": self._parameters.precursor_answer, "ignore_eos": True, "temperature": 0}
        answer = await self._client.generate(f"precursor-{uuid.uuid4().hex}", ids, sampling, on_tokens)
        splice.end(index)
        return answer

    async def _successor(
        self,
        prompt: Prompt,
        splice: Splice,
        news: asyncio.Event,
        precursors: Sequence[asyncio.Task[Generated]],
        append_s: list[float],
    ) -> Generated:
        parameters = self._parameters
        bound = parameters.input_range[1] + parameters.precursors * parameters.precursor_answer
        await prompt.begin(bound)
        while not splice.whole:
            news.clear()
            ids = splice.take(self._facts.page_size) if splice.all_decode else []
            if ids:
                seconds = await prompt.append(ids)
                if seconds is not None:
                    append_s.append(seconds)
            else:
                await news.wait()
            for task in precursors:
                if task.done():
                    task.result()
        sampling = {"max_new_tokens": parameters.answer, "ignore_eos": True, "temperature": 0}
        return await prompt.commit(splice.rest(), sampling)


def result(samples: Sequence[Sample]) -> dict[str, object]:
    """All numbers by mode, and each mode against blocking."""
    numbers: dict[str, stats.Table] = {
        "ttft_s": stats.by_case_and_mode(samples, lambda s: s.ttft_s),
        "layer_s": stats.by_case_and_mode(samples, lambda s: s.layer_s),
        "total_s": stats.by_case_and_mode(samples, lambda s: s.total_s),
        "append_s": stats.append_spreads(samples),
        "prompt_tokens": stats.by_case_and_mode(samples, lambda s: s.prompt_tokens),
    }
    against: dict[str, dict[str, object]] = {}
    for case, mode in dict.fromkeys((s.case, s.mode) for s in samples if s.mode != "blocking"):
        above: tuple[str, Mode] = (case, mode)
        below: tuple[str, Mode] = (case, "blocking")
        against.setdefault(case, {})[mode] = {
            "layer": stats.ratio(samples, lambda s: s.layer_s, above, below),
            "total": stats.ratio(samples, lambda s: s.total_s, above, below),
        }
    return {**numbers, "ratio_to_blocking": against}
