"""Recorded runs that decide again: bit for bit from record and log, and by other settings from what was recorded."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from experiments.replay.command import make_report
from experiments.replay.redecide import Decision, redecide
from experiments.replay.settings import SettingsError, describe, parse_settings
from experiments.replay.source import Recorded, SourceError, fetch, load
from graft import cli
from shell_router.client import ClientError
from shell_router.core.early_exit import BallotKind, BypassPolicy, ExitOverride, ExitPolicy, draw
from shell_router.core.events import Appended, Assessed, Event, Finished, Settled, Started, Tokens
from shell_router.core.plan import ChunkPolicy, Plan, PlanOptions
from shell_router.core.prompt import Message
from shell_router.core.tree import AgentConfig, FailurePolicy, Sampling, Tree, TreeConfig, build_tree
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.record import RunHead, RunRecord
from shell_router.replay.verify import replay
from shell_router.run import Run
from shell_router.service import Service
from shell_router.transport.base import GenerateRequest
from shell_router.transport.capabilities import Capabilities
from shell_router.transport.fake import FakeEngine, Gate
from shell_router.transport.resend import ResendSessions
from tests.commands import command
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.serving import fake_service, serving_service
from tests.shell_router.test_run_exits import TextEngine, WordTokenizer
from tests.shell_router.trees import AGGREGATE, PROPOSE, ByteTokenizer, agent, segments, tree, tree_4_2_1
from tests.waiting import until

main = command("replay")


QUESTION = (Message("user", "why?"),)


class UnevenEngine(FakeEngine):
    """Answers at paces that a seed decides, so that answers end in any order and appends find any amount."""

    def __init__(self, seed: int, first: Gate = lambda request, position: None, **more: Any) -> None:
        """What `first` holds is held."""
        super().__init__(gate=lambda request, position: first(request, position) or self._pace(), **more)
        self._random = random.Random(seed)
        self._timers: set[asyncio.TimerHandle] = set()

    def _pace(self) -> asyncio.Event | None:
        if self._random.random() < 0.7:
            return None
        event = asyncio.Event()
        self._timers.add(asyncio.get_running_loop().call_later(self._random.random() * 0.006, event.set))
        return event


class UnlikeAssessor(FakeAssessor):
    """Finds another likeness between any two answers, always the same between the same two."""

    async def similarities(self, run: str, agents: Sequence[str]) -> list[float]:
        await super().similarities(run, agents)
        pairs = [(a, b) for at, a in enumerate(agents) for b in agents[at + 1 :]]
        return [random.Random("".join(sorted(pair))).random() for pair in pairs]

    async def ballots(self, answers: Sequence[str], kind: BallotKind) -> list[int | None]:
        """One vote in five is none, most of the others are the same."""
        return [(None, 0, 0, 0, 1)[random.Random(answer).randrange(5)] for answer in answers]


def configured(agents: Sequence[AgentConfig], **more: Any) -> Tree:
    differently = msgspec.structs.replace(PROPOSE, system="You differ.")
    templates = {"propose": PROPOSE, "differ": differently, "aggregate": AGGREGATE}
    return build_tree(TreeConfig(name="t", agents=tuple(agents), templates=templates, **more))


def wide(**more: Any) -> Tree:
    """Five proposers of one cluster, two of them of a later stage, and a chain behind their reader."""
    proposers = [agent(f"p{number}", max_new_tokens=16 + 4 * number) for number in range(1, 6)]
    staged = [msgspec.structs.replace(each, stage=1 if each.id in ("p4", "p5") else 0) for each in proposers]
    return configured([*staged, agent("a1", [each.id for each in staged]), agent("root", ["a1"])], **more)


async def record_run(
    service: Service, seed: int = 0, *, conversation: Sequence[Message] = QUESTION, **options: Any
) -> Recorded:
    """A run from its beginning to its end, as an experiment would keep it: through JSON."""
    request = RunRequest(tree="t", conversation=tuple(conversation), options=RunOptions(**options), seed=seed)
    run = service.start(request)
    log = [event async for event in run.events()]
    record = msgspec.json.decode(msgspec.json.encode(run.record()), type=RunRecord)
    return Recorded(
        name=f"run-{seed}", record=record, log=msgspec.json.decode(msgspec.json.encode(log), type=tuple[Event, ...])
    )


def assert_replayed(run: Recorded) -> None:
    result = replay(run.record, run.log)
    assert result.missing is None
    assert result.differences == []


EXITS: dict[str, ExitOverride] = {
    "off": ExitOverride(mode="off"),
    "default": ExitOverride(mode="default"),
    "paper": ExitOverride(mode="paper"),
    "threshold": ExitOverride(mode="threshold", threshold=0.55),
    "never": ExitOverride(mode="threshold", threshold=1.0),
    "vote": ExitOverride(mode="vote", ballots="text"),
}


@pytest.mark.parametrize("exit_", EXITS)
@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_runs_are_replayed_bit_for_bit(mode: str, exit_: str) -> None:
    exits = chunks = 0
    for seed in range(8):
        of = (tree_4_2_1(), wide())[seed % 2]
        service = fake_service(UnevenEngine(seed), of, assessor=UnlikeAssessor())
        options: dict[str, Any] = {
            "mode": mode,
            "early_exit": EXITS[exit_],
            "slots": ("completion", "fixed")[seed % 3 == 0],
            "chunks": (ChunkPolicy(), ChunkPolicy(min_tokens=9), ChunkPolicy(max_tokens=4))[seed % 3],
        }
        run = await record_run(service, seed, **options)
        assert run.record.state == "done"
        assert_replayed(run)
        exits += sum(1 for check in run.record.checks if check.cancelled)
        chunks += sum(len(each.chunks) for each in run.record.agents)
    assert bool(chunks) is (mode == "spliced")
    assert bool(exits) is (exit_ not in ("off", "never"))


@pytest.mark.parametrize("seed", range(12))
async def test_failures_drops_resumes_and_deadlines_are_replayed(seed: int) -> None:
    chance = random.Random(seed)
    broken = {f"p{number}" for number in range(1, 6) if chance.random() < 0.4} | ({"a1"} if seed % 3 == 0 else set())
    attempts = chance.randint(1, 3)

    def fail_at(request: GenerateRequest) -> int | None:
        name = request.request_id
        return chance.randrange(8) if any(f"-{each}" in name for each in broken) and chance.random() < 0.6 else None

    failures = FailurePolicy(
        missing="drop", attempts=attempts, root_fallback=True, layer_deadline_s=0.05 if seed % 2 else None
    )
    of = wide(failures=failures, early_exit=ExitPolicy(mode="default"))
    service = fake_service(UnevenEngine(seed, fail_at=fail_at), of, assessor=UnlikeAssessor())
    run = await record_run(service, seed, deadline_s=0.3)
    assert run.record.state in ("done", "failed")
    assert_replayed(run)


async def test_failures_are_of_all_kinds() -> None:
    engine = FakeEngine(fail_at=lambda request: 5 if request.request_id.endswith("-p1") else None)
    resumed = await record_run(fake_service(engine))
    assert resumed.record.agents[0].resumed_tokens == 5
    assert_replayed(resumed)
    engine = FakeEngine(fail_at=lambda request: 3 if "-p2" in request.request_id else None)
    dropped = await record_run(fake_service(engine, wide(failures=FailurePolicy(missing="drop"))))
    assert dropped.record.degraded
    assert_replayed(dropped)
    failed = await record_run(fake_service(engine))
    assert failed.record.state == "failed"
    assert_replayed(failed)


async def test_a_given_order_and_a_left_out_answer_are_replayed() -> None:
    of = configured([*(agent(f"p{n}") for n in range(1, 5)), agent("root", ["p1", "p2", "p3", "p4"])])
    for order in (("p3", "p1", "p4", "p2"), ("p4", "p2")):
        run = await record_run(fake_service(UnevenEngine(1), of), slot_orders={"root": order})
        assert run.record.agents[-1].slot_order == order
        assert_replayed(run)


async def test_what_was_taken_back_is_replayed() -> None:
    """A cancelled answer that had been appended: the tokens of its slot are in no prompt and yet in the sizes."""
    never = asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        if request.request_id.endswith("-p1"):
            return never if position >= 20 else None
        if request.request_id.endswith(("-p2", "-p3")) and position == 10:
            # Long enough for appends of what the first has said.
            event = asyncio.Event()
            timers.append(asyncio.get_running_loop().call_later(0.05, event.set))
            return event
        return None

    timers: list[asyncio.TimerHandle] = []
    taken_back = 0
    for seed in range(6):
        engine = UnevenEngine(seed, first=gate)
        # On the fake engine equal prompts have equal answers, and nothing would have to be taken back.
        proposers = [agent(f"p{n}", max_new_tokens=40) for n in range(1, 4)]
        proposers[0] = msgspec.structs.replace(proposers[0], template="differ")
        of = configured([*proposers, agent("root", ["p1", "p2", "p3"])])
        service = fake_service(engine, of, assessor=FakeAssessor(likeness=0.7))
        early = ExitOverride(mode="threshold", threshold=0.0)
        run = await record_run(service, seed, slots="fixed", early_exit=early)
        taken_back += run.record.agents[-1].taken_back_tokens
        assert_replayed(run)
    assert taken_back > 0


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_answers_of_another_tokenizer_are_replayed_in_the_prompts(mode: str) -> None:
    models = {"p1": "m", "p2": "other", "p3": "m"}
    of = tree(*(agent(each, model=model) for each, model in models.items()), agent("root", [*models], model="other"))
    tokenizers = {"m": ByteTokenizer(), "other": WordTokenizer()}
    for seed in range(6):
        engine = UnevenEngine(seed)
        service = fake_service(engine, of, tokenizers=tokenizers, assessor=FakeAssessor(likeness=0.7))
        run = await record_run(service, seed, mode=mode, early_exit=ExitOverride(mode="default"))
        root = run.record.agents[-1]
        assert root.replay is not None
        assert set(root.replay.read_again) <= {"p1", "p3"}
        assert replay(run.record, run.log).unchecked == ("root",)
        assert_replayed(run)


async def test_answers_without_ids_are_replayed() -> None:
    capabilities = {"m": Capabilities(token_ids=False, logprobs=True, abort="by_disconnect", appends=False)}
    assert_replayed(await record_run(fake_service(TextEngine(), capabilities=capabilities)))


async def test_a_cancelled_run_is_replayed() -> None:
    engine = FakeEngine(gate=lambda request, position: asyncio.Event() if position == 3 else None)
    service = fake_service(engine)
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    await until(lambda: len(run.log) >= 8)
    assert run.record().agents[0].replay is None, "only a run that has ended is told of"
    await service.cancel(run, "enough")
    recorded = Recorded(name="run", record=run.record(), log=tuple(run.log))
    assert recorded.record.state == "cancelled"
    assert_replayed(recorded)


async def test_prompts_are_recorded_once() -> None:
    service = fake_service(UnevenEngine(0), wide())
    run = await record_run(service, conversation=[Message("user", "why? " * 100)])
    for each in run.record.agents:
        assert each.replay is not None
        assert len(each.replay.unused_ids) < 60, "the question stands in the prompt"
        assert each.prompt_ids


def tampered(run: Recorded) -> Mapping[str, Sequence[Event]]:
    """Logs of `run` that someone has changed."""
    log = list(run.log)

    def first(kind: type[Any], agent_id: str | None = None) -> int:
        return next(
            at for at, e in enumerate(log) if isinstance(e, kind) and agent_id in (None, getattr(e, "agent", None))
        )

    def changed(place: int, **fields: Any) -> list[Event]:
        return [*log[:place], msgspec.structs.replace(log[place], **fields), *log[place + 1 :]]

    def without(at: int) -> list[Event]:
        return [*log[:at], *log[at + 1 :]]

    tokens, append = first(Tokens, "p1"), first(Appended)
    said = log[tokens]
    assert isinstance(said, Tokens)
    swapped = changed(first(Assessed), likeness=(0.1,))
    return {
        "a token less": without(tokens),
        "another token": changed(tokens, ids=(said.ids[0] + 1,)),
        "another text": changed(tokens, text="x"),
        "another log-probability": changed(tokens, logprobs=(-0.6,)),
        "another likeness": swapped,
        "a later end": changed(first(Finished, "p1"), at=99.0),
        "another count": changed(first(Finished, "p1"), completion_tokens=1),
        "no settling": without(max(at for at, e in enumerate(log[: append + 1]) if isinstance(e, Settled))),
        "an append too many": [*log[:append], log[append], *log[append:]],
        "no append": without(append),
        "a check that nobody made": [*log[:2], Assessed(at=0.1, cluster=0, step=3, likeness=()), *log[2:]],
        "a strange cluster": [*log[:2], Assessed(at=0.1, cluster=9, step=2, likeness=(1.0,)), *log[2:]],
        "a strange agent": changed(tokens, agent="p9"),
        "too many likenesses": changed(first(Assessed), likeness=(0.1, 0.2)),
        "an early end": log[: len(log) // 2],
        "no beginning": log[1:],
        "nothing": [],
    }


async def test_a_tampered_log_is_detected() -> None:
    service = fake_service(UnevenEngine(3), wide(), assessor=UnlikeAssessor())
    run = await record_run(service, early_exit=ExitOverride(mode="threshold", threshold=1.0))
    assert_replayed(run)
    for what, log in tampered(run).items():
        assert replay(run.record, log).differences, what


async def test_a_tampered_record_is_detected() -> None:
    run = await record_run(fake_service(UnevenEngine(3), wide()))
    record = run.record
    *others, root = record.agents
    changes: list[RunRecord] = [
        msgspec.structs.replace(record, tokens_saved=1),
        msgspec.structs.replace(record, answered_by="p1"),
        msgspec.structs.replace(record, agents=(*others, msgspec.structs.replace(root, slot_order=()))),
        msgspec.structs.replace(
            record, agents=(*others, msgspec.structs.replace(root, prompt_ids=root.prompt_ids[1:]))
        ),
    ]
    for changed in changes:
        result = replay(changed, run.log)
        assert result.differences or result.missing, changed


async def test_a_record_of_an_older_router_lacks_something_and_can_still_be_decided_again() -> None:
    service = fake_service(UnevenEngine(3), wide(), assessor=UnlikeAssessor())
    run = await record_run(service, early_exit=EXITS["never"])
    document = json.loads(msgspec.json.encode(run.record))
    del document["chunk_policy"]
    for each in document["agents"]:
        del each["replay"]
    older = Recorded(name="old", record=msgspec.convert(document, RunRecord), log=run.log)
    missing = replay(older.record, older.log).missing
    assert missing is not None
    assert "`replay`" in missing
    override = ExitOverride(threshold=0.3)
    expected = redecide(run, override)
    assert expected.certainty != "unknown"
    assert msgspec.structs.replace(redecide(older, override), run="run-0") == expected
    report = make_report([older], [override])
    assert not report.ok
    assert len(report.settings[0].decisions) == 1


# Other settings


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
@pytest.mark.parametrize("exit_", EXITS)
async def test_the_recorded_setting_changes_nothing(mode: str, exit_: str) -> None:
    for seed in range(6):
        of = (tree_4_2_1(), wide())[seed % 2]
        service = fake_service(UnevenEngine(seed), of, assessor=UnlikeAssessor())
        run = await record_run(service, seed, mode=mode, early_exit=EXITS[exit_])
        decision = redecide(run, ExitOverride())
        exits = sum(1 for check in run.record.checks if check.cancelled)
        assert decision == Decision(run=run.name, certainty="exact", exits=exits)


def by_hand(of: Tree, policy: ExitPolicy, events: Sequence[Event]) -> Recorded:
    """The run of which `events` are the log, with times that one can count with."""
    plan = Plan(of, segments(of), PlanOptions(mode="blocking", early_exit=policy), page_sizes={})
    head = RunHead(id="run-1", mode="blocking", seed=0, created=0.0, question="why?")
    sessions = ResendSessions(FakeEngine())
    request = GenerateRequest(request_id="r", model="m", input_ids=(), sampling=Sampling())
    run = Run(head, plan, {each.id: sessions(request, max_prompt_tokens=9) for each in of.agents}, FakeAssessor())
    for event in events:
        plan.step(event)
    recorded = Recorded(name="run-1", record=run.record(), log=tuple(events))
    assert recorded.record.state == "done"
    assert_replayed(recorded)
    return recorded


def said(agent_id: str, *times: tuple[float, int]) -> list[Event]:
    """An answer that came in pieces, each of so many tokens at a time, and ended with the last, of which none is."""
    *pieces, (end, none) = times
    assert none == 0
    count = sum(tokens for _, tokens in pieces)
    return [
        *(Tokens(at=at, agent=agent_id, ids=(7,) * n, logprobs=(0.0,) * n, text="x" * n) for at, n in pieces),
        Finished(
            at=end, agent=agent_id, reason="length", prompt_tokens=9, completion_tokens=count, cached_tokens=0
        ),
    ]  # fmt: skip


NEVER = ExitPolicy(mode="threshold", threshold=1.0)
PROPOSERS: list[Event] = [
    *said("p1", (1.0, 4), (2.0, 0)),
    *said("p2", (1.0, 3), (3.0, 0)),
    Assessed(at=3.5, cluster=0, step=2, likeness=(0.5,)),
    *said("p3", (1.0, 2), (4.0, 5), (6.0, 3), (7.0, 0)),
]


def in_order(events: Sequence[Event]) -> list[Event]:
    return [Started(at=0.0), *sorted(events, key=lambda each: each.at)]


def three() -> Recorded:
    """Two of three proposers are compared at 3.5 s and found half alike; the third is waited for until 7 s."""
    of = tree(*(agent(f"p{n}") for n in (1, 2, 3)), agent("root", ["p1", "p2", "p3"]))
    return by_hand(of, NEVER, in_order([*PROPOSERS, *said("root", (8.0, 6), (10.0, 0))]))


def saved(run: Recorded, override: ExitOverride) -> tuple[str, int, int, float]:
    each = redecide(run, override)
    return (each.certainty, each.exits, each.tokens_saved, each.seconds_saved)


def test_a_sweep_is_what_one_gets_by_hand() -> None:
    # All are sure of themselves (C = 1), so Q is the root of B = 1 - |0.5 - tau| / max(tau, 1 - tau).
    # tau 0.6, 0.7: B = 1 - 0.1/0.6 = 0.833, 1 - 0.2/0.7 = 0.714, so Q = 0.91, 0.85: at least 0.8, an exit at 3.5 s.
    # tau 0.8, 0.9: B = 0.625, 0.556, so Q = 0.79, 0.75.
    # At 3.5 s the third has 2 of its 10 tokens, and the root starts 3.5 s earlier than at 7 s.
    settings = parse_settings(['{"threshold": 0.8}'], ["tau=0.6:0.9:0.1"])
    assert [describe(each) for each in settings] == [f"tau={tau} threshold=0.8" for tau in (0.6, 0.7, 0.8, 0.9)]
    run = three()
    exits, stays = ("exact", 1, 8, 3.5), ("exact", 0, 0, 0.0)
    assert [saved(run, each) for each in settings] == [exits, exits, stays, stays]
    report = make_report([run, run], settings)
    assert report.ok
    sums = [(each.exact.runs, each.exact.tokens_saved, each.exact.seconds_saved) for each in report.settings]
    assert sums == [(2, 16, 7.0), (2, 16, 7.0), (2, 0, 0.0), (2, 0, 0.0)]
    assert [each.tokens_generated for each in report.settings] == [2 * (4 + 3 + 10 + 6)] * 4


def test_another_mode_draws_as_the_run_would_have() -> None:
    run = three()
    quality = (1 - 0.2 / 0.7) ** 0.5
    drawn = draw(0, 0, 2)
    assert saved(run, ExitOverride(mode="default"))[1] == (1 if drawn < quality else 0)
    # In mode `paper` one answer is checked by itself: Q = (1 - 0.3 / 0.7) ** 0.5.
    alone, both = draw(0, 0, 1), (1 - (2.5 / 3 - 0.7) / 0.7) ** 0.5
    expected = ("exact", 1, 13, 5.0) if alone < (1 - 0.3 / 0.7) ** 0.5 else ("exact", int(drawn < both), 8, 3.5)
    assert saved(run, ExitOverride(mode="paper"))[:2] == expected[:2]


def test_beyond_what_was_recorded_nothing_is_known() -> None:
    early = [*PROPOSERS[:5], *said("p3", (1.0, 2), (9.0, 0))[:1], *said("root", (5.0, 6), (7.0, 0))]
    of = tree(*(agent(f"p{n}") for n in (1, 2, 3)), agent("root", ["p1", "p2", "p3"]))
    run = by_hand(of, ExitPolicy(mode="threshold"), in_order(early))
    assert run.record.checks[0].cancelled == ("p3",)
    assert saved(run, ExitOverride()) == ("exact", 1, 0, 0.0)
    decision = redecide(run, ExitOverride(threshold=0.9))
    assert decision.certainty == "unknown"
    assert decision.reason == "cluster 0 would have gone on with 2 answers, and the run exited there"
    vote = redecide(three(), ExitOverride(mode="vote", ballots="text"))
    assert (vote.certainty, vote.reason) == ("unknown", "cluster 0: p1, p2 were not compared")
    unseen = [event for event in PROPOSERS if not isinstance(event, Assessed)]
    blind = by_hand(of, ExitPolicy(), in_order([*unseen, *said("root", (8.0, 6), (10.0, 0))]))
    assert redecide(blind, ExitOverride(mode="default")).reason == "cluster 0: p1, p2 were not compared"


def test_a_root_that_would_be_left_out() -> None:
    bypass = BypassPolicy(agreement=0.4)
    # The root is not asked at all: its 6 tokens, and all after 3.5 s.
    assert saved(three(), ExitOverride(threshold=0.8, bypass=bypass)) == ("exact", 1, 8 + 6, 6.5)
    # Without an exit all three are compared at the end, which the run had no use for.
    decision = redecide(three(), ExitOverride(bypass=bypass))
    assert decision.reason == "cluster 0: p1, p2, p3 were not compared"
    # But for a run that was made to compare them, at 7.2 s.
    of = tree(*(agent(f"p{n}") for n in (1, 2, 3)), agent("root", ["p1", "p2", "p3"]))
    compared = Assessed(at=7.2, cluster=0, step=3, likeness=(0.5, 0.5, 0.5))
    events = in_order([*PROPOSERS, compared, *said("root", (8.0, 6), (10.0, 0))])
    never = msgspec.structs.replace(NEVER, bypass=BypassPolicy(agreement=1.0, confidence=1.0))
    run = by_hand(of, never, events)
    certainty, exits, tokens, seconds = saved(run, ExitOverride(bypass=bypass))
    assert (certainty, exits, tokens) == ("exact", 1, 6)
    assert seconds == pytest.approx(2.8)
    # And one that has no use for it does not wait for the comparison.
    assert saved(run, ExitOverride(bypass=None))[:3] == ("exact", 0, 0)
    assert saved(run, ExitOverride(bypass=None))[3] == pytest.approx(0.2)


def test_what_reads_less_is_assumed_to_be_as_alike() -> None:
    names = ["p1", "p2", "p3"]
    middle = [agent(f"a{n}", names) for n in (1, 2, 3)]
    of = tree(*map(agent, names), *middle, agent("root", ["a1", "a2", "a3"]))
    later = [
        *said("a1", (8.0, 2), (9.0, 0)),
        *said("a2", (8.0, 2), (10.0, 0)),
        Assessed(at=10.5, cluster=1, step=2, likeness=(0.5,)),
        *said("a3", (9.0, 1), (11.0, 1), (12.0, 0)),
        *said("root", (13.0, 3), (14.0, 0)),
    ]
    run = by_hand(of, NEVER, in_order([*PROPOSERS, *later]))
    # The aggregators start 3.5 s earlier, and the second exit spares the root 1.5 s more.
    decision = redecide(run, ExitOverride(threshold=0.8))
    assert (decision.certainty, decision.exits, decision.earlier) == ("assumed", 2, ("p3", "a3"))
    assert (decision.tokens_saved, decision.seconds_saved) == (8 + 1, 5.0)
    assert decision.reason == "cluster 1 was checked, of which a1, a2 would have read less"


async def test_an_earlier_exit_is_the_exit_of_a_run_with_that_setting() -> None:
    """What is foretold of a run that went through all checks is what the same run does when it may exit."""
    foretold = 0
    for seed in range(10):
        of = configured(
            [
                *(agent(f"p{n}", max_new_tokens=14 + 4 * n) for n in range(1, 6)),
                agent("root", [f"p{n}" for n in range(1, 6)]),
            ]
        )
        runs = []
        for threshold in (1.0, 0.5):
            engine = FakeEngine()
            service = fake_service(engine, of, assessor=UnlikeAssessor())
            options = ExitOverride(mode="threshold", threshold=threshold)
            runs.append(await record_run(service, seed, mode="blocking", early_exit=options))
        whole, short = runs
        decision = redecide(whole, ExitOverride(threshold=0.5))
        assert decision.certainty == "exact"
        likeness = [check.likeness for check in short.record.checks]
        assert likeness == [check.likeness for check in whole.record.checks][: len(likeness)]
        assert decision.exits == sum(1 for check in short.record.checks if check.cancelled)
        foretold += decision.exits
    assert foretold > 0


@pytest.mark.parametrize("seed", range(6))
async def test_after_a_run_through_all_checks_no_setting_is_unknown(seed: int) -> None:
    mode = ("blocking", "spliced")[seed % 2]
    service = fake_service(UnevenEngine(seed), wide(), assessor=UnlikeAssessor())
    run = await record_run(service, seed, mode=mode, early_exit=EXITS["never"])
    modes = [f'{{"mode": "{each}"}}' for each in ("default", "paper", "threshold")]
    settings = parse_settings(modes, ["tau=0:1:0.25", "gamma=0:1:0.5"])
    decisions = [redecide(run, each) for each in settings]
    assert {each.certainty for each in decisions} == {"exact"}
    assert any(each.tokens_saved for each in decisions)
    assert all(each.tokens_saved >= 0 and each.seconds_saved >= 0 for each in decisions)


# The command


def keep(folder: Path, *runs: Recorded) -> None:
    """What `graft run` leaves behind of `runs`, and of one that never began."""
    (folder / "events").mkdir(parents=True)
    lines: list[Any] = [{"order": 0, "step": {"name": "lost", "warmup": False}, "record": None}]
    for number, run in enumerate(runs):
        record = msgspec.structs.replace(run.record, id=f"run-{number}")
        lines.append({"order": number, "step": {"name": f"q{number}", "warmup": number == 0}, "record": record})
        log = b"".join(msgspec.json.encode(event) + b"\n" for event in run.log)
        (folder / "events" / f"run-{number}.jsonl").write_bytes(log)
    (folder / "runs.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def test_a_folder_is_replayed_and_swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path / "runs", three(), three(), three())
    arguments = ["replay", str(tmp_path / "runs"), "--early-exit", '{"threshold": 0.8}', "--sweep", "tau=0.7:0.8:0.1"]
    assert cli.main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    assert sum(line.endswith("bit for bit") for line in table) == 3
    report = json.loads(last)
    assert report["ok"] is True
    assert [each["name"] for each in report["runs"]] == ["q0", "q1", "q2"]
    first, second = report["settings"]
    assert first["early_exit"] == {"tau": 0.7, "threshold": 0.8}
    assert first["exact"] == {"runs": 2, "exits": 2, "tokens_saved": 16, "seconds_saved": 7.0}, "without the warm-up"
    assert second["exact"]["exits"] == 0


def test_a_record_with_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = three()
    record, log = tmp_path / "run.json", tmp_path / "log.txt"
    record.write_bytes(msgspec.json.encode(run.record))
    # As `curl` gets it from `/v1/runs/{id}/events`.
    stream = [b"data: " + msgspec.json.encode(event) + b"\n\n" for event in run.log]
    log.write_bytes(b"".join(stream) + b"data: [DONE]\n\n")
    assert main([str(record), "--events", str(log)]) == 0
    log.write_bytes(b"".join(stream[:-1]))
    assert main([str(record), "--events", str(log)]) == 1
    out = capsys.readouterr().out
    assert "run-1 differs:" in out
    assert "the log ends after" in out
    assert json.loads(out.splitlines()[-1])["ok"] is False
    assert main([str(record)]) == 2
    assert "run.jsonl: No such file" in capsys.readouterr().err


async def test_a_run_of_a_router() -> None:
    service = fake_service(FakeEngine())
    run = service.start(RunRequest(tree="t", conversation=QUESTION))
    async with serving_service(service) as client:
        (recorded,) = await fetch(client.url, run.head.id, None)
        with pytest.raises(ClientError, match="there is no run 'run-x'"):
            await fetch(client.url, "run-x", None)
    assert_replayed(recorded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a folder or a record"),
        (["x", "--url", "http://h"], "name a folder or a record"),
        (["--url", "http://h"], "--url and --run go together"),
        (["--url", "http://h", "--run", "r", "--events", "e"], "--events goes with a record"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "sweeps", "message"),
    [
        (["{"], [], "--early-exit {"),
        (['{"taw": 1}'], [], "unknown field `taw`"),
        (['{"tau": 2}'], [], "<= 1.0"),
        ([], ["mode=0:1:1"], "a sweep is over tau, gamma, threshold"),
        ([], ["tau=0:1"], "FIRST:LAST:STEP"),
        ([], ["tau=0:1:0"], "FIRST:LAST:STEP"),
        ([], ["tau=0:x:1"], "FIRST:LAST:STEP"),
        ([], ["tau=0.9:0.3:0.1"], "it must go up"),
        ([], ["tau=0.3:0.9:-0.1"], "it must go up"),
        ([], ["tau=0:2:0.1"], "it must go up"),
        ([], ["tau=0:1:0.0001"], "too many"),
        ([], ["tau=0:1:0.01", "gamma=0:1:0.01"], "too many"),
    ],
)
def test_wrong_settings(overrides: list[str], sweeps: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parse_settings(overrides, sweeps)
    assert message in str(refused.value)


def test_sweeps_make_a_grid() -> None:
    settings = parse_settings(['{"mode": "default"}', '{"mode": "paper"}'], ["tau=0.1:0.3:0.1", "gamma=0.5:0.5:1"])
    assert [(each.mode, each.tau, each.gamma) for each in settings] == [
        (mode, tau, 0.5) for mode in ("default", "paper") for tau in (0.1, 0.2, 0.3)
    ]
    assert parse_settings([], []) == ()


def test_no_runs(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "runs.jsonl: No such file"), (tmp_path / "x.json", "x.json: No such file")):
        with pytest.raises(SourceError, match=message):
            load(path)
    (tmp_path / "runs.jsonl").write_bytes(b'{"step": {"name": "q", "warmup": false}, "record": null}\n')
    with pytest.raises(SourceError, match="it has no run with a record"):
        load(tmp_path)
    (tmp_path / "runs.jsonl").write_bytes(b"{}")
    with pytest.raises(SourceError, match="missing required field `step`"):
        load(tmp_path)
    with pytest.raises(SourceError, match="one JSON document"):
        load(tmp_path / "runs.jsonl")
