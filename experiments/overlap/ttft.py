"""How long the first token takes once the prompt is whole, and what had to happen before.

A prompt of random tokens is written in chunks, each as soon as the one before has been answered; then comes the tail
with the commit. Between the two the counters of the prefill worker are read, which no time counts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import msgspec

from experiments.kernel.client import ClientError
from experiments.overlap import show, stats
from experiments.overlap.client import EngineClient, Facts, Snapshot
from experiments.overlap.loads import BusyDecode, Load, LoadParameters, TokenSource, busy, press
from experiments.overlap.prompts import Marks, Mode, discard, make_prompt
from experiments.overlap.stats import Goal, Sample, goal


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


RESEND_BOUNDS: dict[Load, float] = {"idle": 1.1, "busy_decode": 0.7, "pressure": 0.3}
BLOCKING_BOUND = 0.2
SCALING_BOUND = 2.5


class Bench:
    """Takes samples on one running pair. `samples` holds what has ended, whatever happens."""

    def __init__(
        self,
        client: EngineClient,
        facts: Facts,
        tokens: TokenSource,
        parameters: TtftParameters,
        told: Callable[[Sample], None] = show.announce,
    ) -> None:
        """`told` is called with each sample that has ended."""
        self._client = client
        self._facts = facts
        self._tokens = tokens
        self._parameters = parameters
        self._told = told
        self._last: Snapshot | None = None
        self.samples: list[Sample] = []

    async def run(self, load: Load, prompts: Sequence[int], *, cases: Sequence[str]) -> None:
        """All repetitions under `load`, for each prompt length under its name in `cases`; what comes first is drawn."""
        parameters = self._parameters
        draw = random.Random(f"{parameters.seed}/{load}")
        self._last = await self._client.snapshot()
        async with busy(load, self._client, self._tokens, parameters.loads) as background:
            for repetition in range(-parameters.warmups, parameters.repetitions):
                steps = [
                    (case, prompt, mode)
                    for case, prompt in zip(cases, prompts, strict=True)
                    for mode in parameters.modes
                ]
                draw.shuffle(steps)
                for case, prompt, mode in steps:
                    named = Sample(case=case, mode=mode, repetition=repetition, warmup=repetition < 0)
                    try:
                        sample = await self._measure(named, prompt, load, background)
                    except ClientError as error:
                        sample = msgspec.structs.replace(named, error=str(error))
                    self.samples.append(sample)
                    self._told(sample)

    async def _measure(self, named: Sample, length: int, load: Load, background: BusyDecode | None) -> Sample:
        if background is not None:
            await background.check()
        parameters, client = self._parameters, self._client
        prompt = make_prompt(named.mode, client, self._facts)
        ids = self._tokens(length)
        early_tokens = length - parameters.tail
        before = await client.snapshot(self._last)
        begun = background.begun if background else 0
        append_s: list[float] = []
        try:
            await prompt.begin(length)
            for start in range(0, early_tokens, parameters.chunk):
                seconds = await prompt.append(ids[start : min(start + parameters.chunk, early_tokens)])
                if seconds is not None:
                    append_s.append(seconds)
            early = await client.snapshot(before)
            if load == "pressure":
                await press(client, self._tokens, self._facts.pool_tokens, parameters.loads)
            ready = await client.snapshot(before)
            sampling = {"max_new_tokens": parameters.answer, "ignore_eos": True, "temperature": 0}
            answer = await prompt.commit(ids[early_tokens:], sampling)
            after = await client.snapshot(before)
        except BaseException:
            await discard(prompt)
            raise
        self._last = after
        if background is not None:
            await background.check()
        account = prompt.account(Marks(before=before, early=early, ready=ready, after=after), answer)
        # Plain modes read the bytes of all requests: with another one in between they are not this prompt's.
        alone = named.mode == "incremental" or background is None or background.begun == begun
        return msgspec.structs.replace(
            named,
            prompt_tokens=answer.prompt_tokens,
            ttft_s=answer.ttft_s,
            append_s=tuple(append_s),
            bytes_before_commit=account.bytes_before_commit if alone else None,
            bytes_after_commit=account.bytes_after_commit if alone else None,
            recomputed_tokens=account.recomputed_tokens,
            hidden_prefill_fraction=None if account.hidden_tokens is None else account.hidden_tokens / length,
        )


VALUES: dict[str, stats.Value] = {
    "ttft_s": lambda s: s.ttft_s,
    "bytes_before_commit": lambda s: s.bytes_before_commit,
    "bytes_after_commit": lambda s: s.bytes_after_commit,
    "recomputed_tokens": lambda s: s.recomputed_tokens,
    "hidden_prefill_fraction": lambda s: s.hidden_prefill_fraction,
}
"""What a sample tells, by name."""
COMPARED: tuple[str, ...] = ("ttft_s", "bytes_after_commit")
"""What modes are compared by."""


def result(samples: Sequence[Sample]) -> dict[str, object]:
    """All numbers by case and mode."""
    tables = {name: stats.by_case_and_mode(samples, value) for name, value in VALUES.items()}
    return {**tables, "append_s": stats.append_spreads(samples)}


def goals(samples: Sequence[Sample], parameters: TtftParameters, facts: Facts) -> list[Goal]:
    """Of the part `ttft`, whose cases are loads."""
    found: list[Goal] = []
    cases = dict.fromkeys(sample.case for sample in samples)
    for load, bound in RESEND_BOUNDS.items():
        if load not in cases:
            continue
        mine: tuple[str, Mode] = (load, "incremental")
        if load == "idle":
            against = stats.ratio(samples, _ttft, mine, (load, "blocking"))
            found.append(goal("idle: ttft against blocking", stats.median(against), BLOCKING_BOUND))
        against = stats.ratio(samples, _ttft, mine, (load, "resend"))
        found.append(goal(f"{load}: ttft against resend", stats.median(against), bound))
        again = stats.largest(samples, *mine, lambda s: s.recomputed_tokens)
        found.append(goal(f"{load}: recomputed tokens", again, 0))
        if facts.sessions is not None:
            pages = -(-parameters.tail // facts.page_size) + 1
            late = stats.largest(samples, *mine, lambda s: s.bytes_after_commit)
            found.append(goal(f"{load}: bytes after the commit", late, pages * facts.sessions.page_bytes))
    return found


def scaling_goals(samples: Sequence[Sample], short: str, long: str) -> list[Goal]:
    """Of the part `scaling`, whose cases are prompt lengths."""
    growth = stats.ratio(samples, _ttft, (long, "incremental"), (short, "incremental"))
    return [goal(f"incremental: ttft at {long} against {short}", stats.median(growth), SCALING_BOUND)]


def _ttft(sample: Sample) -> float | None:
    return sample.ttft_s
