"""A second layer: precursors decode, a successor reads their answers. With one precursor it is a two-agent chain.

The successor's prompt is a head and then the answers, each bound to its place when the prompt gets there: to the one
that ended first, else to the one that is longest. Appends are whole pages, begin once all precursors decode, and go out
one at a time with all that has become known; the commit follows the last token of the last answer.

Several such layers may run at once. A sample is one of them; what they moved together is shared out evenly.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Sequence

import msgspec

from experiments.kernel.client import ClientError
from experiments.overlap import show, stats
from experiments.overlap.client import EngineClient, Facts, Generated, Snapshot, stop
from experiments.overlap.loads import TokenSource
from experiments.overlap.prompts import Mode, Prompt, discard, make_prompt
from experiments.overlap.stats import Sample


class LayerParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are tokens."""

    input_range: tuple[int, int] = (1, 2048)
    """Precursors' prompts and the successor's head are this long, drawn uniformly."""
    answer: int = 16
    concurrency: int = 1
    """Layers that run at once, each with tokens of its own."""
    modes: tuple[Mode, ...]
    repetitions: int = 5
    warmups: int = 1
    seed: int = 0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared within."""

    name: str
    answers: tuple[int, ...]
    """Length of each precursor's answer, tokens."""


def spliced_case(tokens: int, precursors: int) -> Case:
    """`tokens` that `precursors` answer together, as evenly as they can be shared out."""
    each, more = divmod(tokens, precursors)
    return Case(name=f"{tokens} tokens", answers=tuple(each + (i < more) for i in range(precursors)))


class _Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One run that has ended: its sample, and what its share of the moved bytes is found from."""

    sample: Sample
    inputs: tuple[int, ...]
    """Lengths of the precursors' prompts."""
    sent: int
    """Tokens that appends took."""


class _Append(msgspec.Struct, frozen=True, kw_only=True):
    """One that was answered; times of `time.perf_counter()`, seconds."""

    begun: float
    ended: float
    tokens: int


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
        self,
        client: EngineClient,
        facts: Facts,
        tokens: TokenSource,
        parameters: LayerParameters,
        told: Callable[[Sample], None] = show.announce,
    ) -> None:
        """`told` is called with each sample that has ended."""
        self._client = client
        self._facts = facts
        self._tokens = tokens
        self._parameters = parameters
        self._told = told
        self.samples: list[Sample] = []

    async def run(self, cases: Sequence[Case]) -> None:
        """All repetitions. Within one, all modes of a case have prompts of the same lengths, each its own tokens.

        Raises `ClientError` when a prompt could become longer than the pair can hold.
        """
        parameters = self._parameters
        self._check(cases)
        draw = random.Random(f"{parameters.seed}/{'/'.join(case.name for case in cases)}")
        for repetition in range(-parameters.warmups, parameters.repetitions):
            lengths = {
                case.name: [
                    [draw.randint(*parameters.input_range) for _ in range(len(case.answers) + 1)]
                    for _ in range(parameters.concurrency)
                ]
                for case in cases
            }
            steps = [(case, mode) for case in cases for mode in parameters.modes]
            draw.shuffle(steps)
            for case, mode in steps:
                named = Sample(case=case.name, mode=mode, repetition=repetition, warmup=repetition < 0)
                for sample in await self._side_by_side(named, case, lengths[case.name]):
                    self.samples.append(sample)
                    self._told(sample)

    def _check(self, cases: Sequence[Case]) -> None:
        """A prompt that is too long is told before anything is sent."""
        for case in cases:
            longest = self._bound(case) + self._parameters.answer
            if longest > self._facts.pool_tokens:
                raise ClientError(
                    f"{case.name}: a prompt and its answer may have {longest} tokens, "
                    f"the prefill worker's KV pool has {self._facts.pool_tokens}"
                )

    def _bound(self, case: Case) -> int:
        """Most tokens of the successor's prompt."""
        return self._parameters.input_range[1] + sum(case.answers)

    async def _side_by_side(self, named: Sample, case: Case, lengths: Sequence[Sequence[int]]) -> list[Sample]:
        """One sample of each run; of those that failed with the reason."""
        before = await self._client.snapshot()
        ended = await asyncio.gather(
            *(self._try(msgspec.structs.replace(named, run=run), case, each) for run, each in enumerate(lengths))
        )
        layers = [each for each in ended if isinstance(each, _Layer)]
        if len(layers) < len(ended):
            # What the failed ones moved is not known.
            return [each.sample if isinstance(each, _Layer) else each for each in ended]
        after = await self._client.snapshot(before)
        early, late = self._bytes(named.mode, layers, before, after)
        return [
            msgspec.structs.replace(each.sample, bytes_before_commit=early, bytes_after_commit=late) for each in layers
        ]

    async def _try(self, named: Sample, case: Case, lengths: Sequence[int]) -> _Layer | Sample:
        try:
            return await self._measure(named, case, lengths)
        except ClientError as error:
            return msgspec.structs.replace(named, error=str(error))

    async def _measure(self, named: Sample, case: Case, lengths: Sequence[int]) -> _Layer:
        head, *inputs = [self._tokens(length) for length in lengths]
        splice = Splice(head, len(inputs))
        news = asyncio.Event()
        prompt = make_prompt(named.mode, self._client, self._facts)
        begin = time.perf_counter()
        precursors = [
            asyncio.create_task(self._precursor(i, ids, answer, splice, news))
            for i, (ids, answer) in enumerate(zip(inputs, case.answers, strict=True))
        ]
        # Told of a failure as of a token.
        for task in precursors:
            task.add_done_callback(lambda _: news.set())
        appends: list[_Append] = []
        try:
            answer = await self._successor(prompt, self._bound(case), splice, news, precursors, appends)
        except BaseException:
            await stop(precursors)
            await discard(prompt)
            raise
        last = max(task.result().ended for task in precursors)
        sample = msgspec.structs.replace(
            named,
            prompt_tokens=answer.prompt_tokens,
            append_s=tuple(append.ended - append.begun for append in appends),
            ttft_s=answer.first - last,
            hidden_prefill_s=sum(max(0.0, min(append.ended, last) - append.begun) for append in appends),
            hidden_prefill_fraction=sum(append.tokens for append in appends if append.ended <= last)
            / answer.prompt_tokens,
            run_ttft_s=answer.first - begin,
            layer_s=answer.ended - last,
            total_s=answer.ended - begin,
        )
        return _Layer(sample=sample, inputs=tuple(map(len, inputs)), sent=sum(append.tokens for append in appends))

    def _bytes(
        self, mode: Mode, layers: Sequence[_Layer], before: Snapshot, after: Snapshot
    ) -> tuple[float | None, float | None]:
        """KV bytes moved before and after the commit, for each of `layers` the mean of all. None when unknown."""
        sessions, page_size = self._facts.sessions, self._facts.page_size
        if sessions is None:
            return None, None
        if mode == "incremental":
            if before.sessions is None or after.sessions is None:
                return None, None
            early = (after.sessions.early_pages - before.sessions.early_pages) * sessions.page_bytes
            late = (after.sessions.commit_pages - before.sessions.commit_pages) * sessions.page_bytes
            return early / len(layers), late / len(layers)
        if before.transferred_bytes is None or after.transferred_bytes is None:
            return None, None
        moved = after.transferred_bytes - before.transferred_bytes
        # The precursors' prompts are in no cache: all their pages are moved.
        pages = sum(-(-length // page_size) for layer in layers for length in layer.inputs)
        moved -= pages * sessions.page_bytes
        if mode == "blocking":
            return 0.0, moved / len(layers)
        late_pages = sum(-(-((layer.sample.prompt_tokens or 0) - layer.sent) // page_size) for layer in layers)
        late = late_pages * sessions.page_bytes
        return (moved - late) / len(layers), late / len(layers)

    async def _precursor(
        self, index: int, ids: Sequence[int], tokens: int, splice: Splice, news: asyncio.Event
    ) -> Generated:
        def on_tokens(new: Sequence[int]) -> None:
            splice.add(index, new)
            news.set()

        sampling = {"max_new_tokens": tokens, "ignore_eos": True, "temperature": 0}
        answer = await self._client.generate(f"precursor-{uuid.uuid4().hex}", ids, sampling, on_tokens)
        splice.end(index)
        return answer

    async def _successor(
        self,
        prompt: Prompt,
        bound: int,
        splice: Splice,
        news: asyncio.Event,
        precursors: Sequence[asyncio.Task[Generated]],
        appends: list[_Append],
    ) -> Generated:
        await prompt.begin(bound)
        while not splice.whole:
            news.clear()
            ids = splice.take(self._facts.page_size) if splice.all_decode else []
            if ids:
                begun = time.perf_counter()
                seconds = await prompt.append(ids)
                if seconds is not None:
                    appends.append(_Append(begun=begun, ended=begun + seconds, tokens=len(ids)))
            else:
                await news.wait()
            for task in precursors:
                if task.done():
                    task.result()
        sampling = {"max_new_tokens": self._parameters.answer, "ignore_eos": True, "temperature": 0}
        return await prompt.commit(splice.rest(), sampling)


VALUES: dict[str, stats.Value] = {
    "ttft_s": lambda s: s.ttft_s,
    "layer_s": lambda s: s.layer_s,
    "total_s": lambda s: s.total_s,
    "run_ttft_s": lambda s: s.run_ttft_s,
    "hidden_prefill_s": lambda s: s.hidden_prefill_s,
    "hidden_prefill_fraction": lambda s: s.hidden_prefill_fraction,
    "bytes_before_commit": lambda s: s.bytes_before_commit,
    "bytes_after_commit": lambda s: s.bytes_after_commit,
    "prompt_tokens": lambda s: s.prompt_tokens,
}
"""What a sample tells, by name."""
COMPARED: tuple[str, ...] = ("ttft_s", "layer_s", "total_s", "run_ttft_s", "bytes_after_commit")
"""What modes are compared by."""


def result(samples: Sequence[Sample]) -> dict[str, object]:
    """All numbers by case and mode."""
    tables = {name: stats.by_case_and_mode(samples, value) for name, value in VALUES.items()}
    return {**tables, "append_s": stats.append_spreads(samples)}
