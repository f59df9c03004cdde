"""A run's log, fed to a plan made of its record, comes to that record, and to no other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest

from experiments.replay.source import Recorded
from shell_router.core.early_exit import ExitOverride, ExitPolicy
from shell_router.core.events import Appended, Assessed, Event, Finished, Settled, Tokens
from shell_router.core.messages import Message
from shell_router.core.plan import ChunkPolicy
from shell_router.core.tree import FailurePolicy
from shell_router.prepare import RunRequest
from shell_router.record import RunRecord
from shell_router.replay.verify import replay
from shell_router.transport.base import GenerateRequest
from shell_router.transport.capabilities import Capabilities
from shell_router.transport.fake import FakeEngine
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.recorded_runs import (
    EXITS,
    QUESTION,
    UnevenEngine,
    UnlikeAssessor,
    assert_replayed,
    configured,
    record_run,
    wide,
)
from tests.shell_router.scripted import agent_of
from tests.shell_router.serving import fake_service
from tests.shell_router.test_run_exits import TextEngine, WordTokenizer
from tests.shell_router.trees import ByteTokenizer, agent, tree, tree_4_2_1
from tests.waiting import until


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
            "chunks": (ChunkPolicy(), ChunkPolicy(policy="paying", min_tokens=9), ChunkPolicy(max_tokens=4))[seed % 3],
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
        return chance.randrange(8) if agent_of(request) in broken and chance.random() < 0.6 else None

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
        # All of them: one that came while an append was in flight asked for nothing.
        "no settling": [e for e in log if not isinstance(e, Settled)],
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
