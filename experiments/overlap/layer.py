"""A second layer: precursors decode, a successor reads their answers. With one precursor it is a two-agent chain.

Each sample is a run of a tree by the router's own service, in this process: its plan decides on appends and slots, its
sessions talk to the workers, its record has the times. Prompts are of random tokens, and so are the answers that
successors read (`ForcedAnswer`): they are as long as they shall be, and the engine decodes as many tokens for each.

Several such runs may go on at once. A sample is one of them; what they moved together is shared out evenly.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence

import msgspec

from experiments.kernel.engine import MODEL, PairClient, TokenSource
from experiments.kernel.statistics import Spread, spread
from experiments.overlap import stats
from experiments.overlap.counters import Snapshot, moved, snapshot
from experiments.overlap.stats import Goal, Mode, Sample, goal
from shell_router.assess.base import AssessError
from shell_router.config import ConfigError
from shell_router.core.apart import Piece
from shell_router.core.early_exit import BallotKind
from shell_router.core.marks import ANSWER_MARK, ANSWERS_MARK
from shell_router.core.messages import Message
from shell_router.core.passing import AddedToken
from shell_router.core.plan import ChunkPolicy
from shell_router.core.prompt import Before
from shell_router.core.retokenize import Pieces, Vocabulary
from shell_router.core.routing import Evidence
from shell_router.core.tree import (
    AgentConfig,
    FailurePolicy,
    TemplateConfig,
    Tree,
    TreeConfig,
    build_tree,
)
from shell_router.errors import RouterError
from shell_router.milestones import Part, steps_of
from shell_router.options import ForcedAnswer, RunOptions
from shell_router.prepare import Preparer, RunRequest
from shell_router.record import RunRecord
from shell_router.service import Service
from shell_router.transport.capabilities import SGLANG

ROOT = "successor"
VALUES = (
    "ttft_s",
    "layer_s",
    "total_s",
    "run_ttft_s",
    "hidden_prefill_s",
    "hidden_prefill_fraction",
    "bytes_before_commit",
    "bytes_after_commit",
    "prompt_tokens",
)
"""What a sample tells."""
WORK: tuple[Part, ...] = ("prefilled", "moved", "told")
"""Of a hop's steps, what has to be done."""
HOP_BOUND = 1.5
COMPARED = ("ttft_s", "layer_s", "total_s", "run_ttft_s", "bytes_after_commit")
"""What modes are compared by."""


class LayerParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Lengths are tokens."""

    input_range: tuple[int, int] = (1, 2048)
    """Precursors' prompts and the successor's head are this long, drawn uniformly."""
    answer: int = 16
    concurrency: int = 1
    """Runs that go on at once, each with tokens of its own."""
    chunks: ChunkPolicy = ChunkPolicy()
    """When the successor's appends are sent."""
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


class LayerBench:
    """Takes samples of a second layer on one running pair."""

    def __init__(self, client: PairClient, tokens: TokenSource, parameters: LayerParameters) -> None:
        self._client = client
        self._tokens = tokens
        self._parameters = parameters

    async def run(self, cases: Sequence[Case]) -> AsyncGenerator[Sample]:
        """All repetitions, samples as they end. Within one, all modes of a case have prompts of the same lengths, each
        its own tokens.

        Raises `ConfigError` before anything is sent when a prompt could become longer than the pair can hold.
        """
        parameters = self._parameters
        for case in cases:
            longest = parameters.input_range[1] + sum(case.answers) + parameters.answer
            if longest > self._client.pool_tokens:
                raise ConfigError(
                    f"{case.name}: a prompt and its answer may have {longest} tokens, "
                    f"the prefill worker's KV pool has {self._client.pool_tokens}"
                )
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
                    yield sample

    async def _side_by_side(self, named: Sample, case: Case, lengths: Sequence[Sequence[int]]) -> list[Sample]:
        """One sample of each run; of those that failed with the reason."""
        before = await snapshot(self._client)
        ended = await asyncio.gather(*(self._try(named.mode, case, each) for each in lengths))
        samples = [_sample(named, number, record) for number, record in enumerate(ended)]
        if any(sample.error is not None for sample in samples):
            # What the failed ones moved is not known.
            return samples
        records = [record for record in ended if isinstance(record, RunRecord)]
        early, late = self._bytes(named.mode, records, before, await snapshot(self._client, before))
        return [msgspec.structs.replace(each, bytes_before_commit=early, bytes_after_commit=late) for each in samples]

    async def _try(self, mode: Mode, case: Case, lengths: Sequence[int]) -> RunRecord | RouterError:
        head, *inputs = [self._tokens(length) for length in lengths]
        answers = {f"precursor-{n}": length for n, length in enumerate(case.answers)} | {ROOT: self._parameters.answer}
        tree = layer_tree(head, dict(zip(answers, inputs, strict=False)))
        preparer = Preparer(
            trees=[tree],
            models=self._client.models,
            tokenizers={MODEL: _Characters()},
            capabilities={MODEL: SGLANG},
            compares=False,
            allow_forced=True,
        )
        service = Service(
            preparer=preparer,
            engine=self._client.engine,
            sessions=self._client.sessions,
            assessor=_NothingCompared(),
        )
        options = RunOptions(
            mode="blocking" if mode == "blocking" else "spliced",
            transport=stats.transport_of(mode),
            chunks=stats.chunks_of(mode, self._parameters.chunks),
            forced={agent: ForcedAnswer(ids=tuple(self._tokens(length)), text="") for agent, length in answers.items()},
        )
        try:
            run = service.start(RunRequest(tree=tree.name, conversation=(Message("user", ""),), options=options))
            async for _ in run.text():
                pass
        except RouterError as error:
            return error
        finally:
            await service.close()
        return run.record()

    def _bytes(
        self, mode: Mode, runs: Sequence[RunRecord], before: Snapshot, after: Snapshot
    ) -> tuple[float | None, float | None]:
        """KV bytes moved before and after the commit, for each of `runs` the mean of all. None when unknown."""
        if before.sessions is None or after.sessions is None:
            return None, None
        page_bytes = after.sessions.page_bytes
        roots = [run.root for run in runs]
        if mode in ("incremental", "paying"):
            then, now = before.sessions.counters, after.sessions.counters
            early, late = now.early_pages - then.early_pages, now.commit_pages - then.commit_pages
            # Where there was no time for an append there was no session.
            late += sum(self._pages(root.prompt_tokens) for root in roots if root.served_by == "plain")
            return early * page_bytes / len(runs), late * page_bytes / len(runs)
        transferred = moved(before, after)
        if transferred is None:
            return None, None
        # The precursors' prompts are in no cache: all their pages are moved.
        precursors = [agent for run in runs for agent in run.agents if agent.id != ROOT]
        transferred -= sum(self._pages(agent.prompt_tokens) for agent in precursors) * page_bytes
        if mode == "blocking":
            return 0.0, transferred / len(runs)
        late = sum(self._pages(root.prompt_tokens - sum(chunk.tokens for chunk in root.chunks)) for root in roots)
        return (transferred - late * page_bytes) / len(runs), late * page_bytes / len(runs)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self._client.status.page_size)


def steps(samples: Sequence[Sample]) -> dict[str, dict[str, dict[Part, Spread]]]:
    """By case and mode: what the way to the successor's first token is made of."""
    groups: dict[str, dict[str, list[dict[Part, float]]]] = {}
    for sample in stats.measured(samples):
        groups.setdefault(sample.case, {}).setdefault(sample.mode, []).append(sample.steps_s)
    return {
        case: {mode: stats.spread_steps(each) for mode, each in sorted(modes.items())} for case, modes in groups.items()
    }


def goals(samples: Sequence[Sample]) -> list[Goal]:
    """A hop of an idle pair against what of it is work. Of prompts sent at once, and of those over sessions."""
    found = []
    for mode in ("blocking", "incremental"):
        ratios = [
            sample.ttft_s / work
            for sample in stats.measured(samples)
            if sample.mode == mode and sample.ttft_s and (work := sum(sample.steps_s.get(part, 0.0) for part in WORK))
        ]
        hop = spread(ratios)
        value = None if hop is None else hop.median
        found.append(goal(f"{mode}: a hop against its forward pass, transfer and step", value, HOP_BOUND))
    return found


def layer_tree(head: Sequence[int], inputs: Mapping[str, Sequence[int]]) -> Tree:
    """Precursors with `inputs` for prompts, and a successor whose prompt is `head` and then their answers.

    Nothing is asked for twice: a run in which something failed is no measurement.
    """
    templates = {name: TemplateConfig(user=_spell(ids)) for name, ids in inputs.items()}
    templates[ROOT] = TemplateConfig(user=_spell(head) + ANSWERS_MARK, answer=ANSWER_MARK)
    return build_tree(
        TreeConfig(
            name="second-layer",
            model=MODEL,
            agents=(
                *(AgentConfig(id=name, template=name) for name in inputs),
                AgentConfig(id=ROOT, template=ROOT, inputs=tuple(inputs)),
            ),
            templates=templates,
            failures=FailurePolicy(attempts=1),
        )
    )


def _sample(named: Sample, number: int, record: RunRecord | RouterError) -> Sample:
    named = msgspec.structs.replace(named, run=number)
    if isinstance(record, RouterError):
        return msgspec.structs.replace(named, error=record.message)
    root = record.root
    if root.fallback is not None:
        return msgspec.structs.replace(named, error=f"it fell back to plain requests ({root.fallback})")
    assert root.ready_s is not None
    assert root.ended_s is not None
    return msgspec.structs.replace(
        named,
        prompt_tokens=root.prompt_tokens,
        append_s=tuple(chunk.answered_s - chunk.sent_s for chunk in root.chunks if chunk.answered_s is not None),
        ttft_s=root.exposed_prefill_s,
        steps_s={step.part: step.end - step.start for step in steps_of(root)},
        hidden_prefill_s=root.hidden_prefill_s,
        hidden_prefill_fraction=root.hidden_prefill_tokens / root.prompt_tokens,
        run_ttft_s=record.ttft_s,
        layer_s=root.ended_s - root.ready_s,
        total_s=record.duration_s,
    )


def _spell(ids: Sequence[int]) -> str:
    return "".join(map(chr, ids))


class _Characters:
    """A tokenizer of which each character is the token of its code point: prompts of given ids, without a model's
    files."""

    fingerprint = "characters"
    vocabulary = Vocabulary((), ())
    added: Mapping[int, AddedToken] = {}
    chat_template = ""
    vocabulary_size = sys.maxunicode + 1

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    most_characters = None

    def render(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> str:
        return "".join(message.content for message in messages)

    def chat(self, messages: Sequence[Message], arguments: Mapping[str, object]) -> Sequence[Piece]:
        return [self.render(messages, arguments)]

    def encode_after(self, text: str, before: Before) -> Sequence[int]:
        return self.encode(text, special=False)

    def encode(self, text: str, *, special: bool) -> list[int]:
        return list(map(ord, text))

    def pieces(self, text: str) -> Pieces:
        places = range(len(text))
        return Pieces(list(map(ord, text)), [(at, at + 1) for at in places], places, list(text))

    def text_of(self, ids: Sequence[int], *, special: bool) -> str:
        return "".join(map(chr, ids))


class _NothingCompared:
    """The assessor of trees without an early exit."""

    def extend(self, run: str, agent: str, text: str) -> None: ...

    def end(self, run: str, agent: str) -> None: ...

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        raise AssessError("nothing is compared")

    async def evidence(self, tree: str, question: str) -> Mapping[str, Evidence]:
        raise AssessError("nothing is compared")

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        raise AssessError("nothing is compared")

    def forget(self, run: str, agent: str | None = None) -> None: ...
