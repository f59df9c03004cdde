"""Early exit, failures and time in whole runs on the fake engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import pytest

from shell_router.config import ConfigError, LimitsConfig
from shell_router.core.early_exit import BypassPolicy, ExitOverride, ExitPolicy
from shell_router.core.events import Event, Finished
from shell_router.core.messages import Message
from shell_router.core.tree import FailurePolicy, SamplingOverride, Tree, TreeConfig, build_tree
from shell_router.errors import DeadlineExceeded, RequestError
from shell_router.options import RunOptions
from shell_router.prepare import RunRequest
from shell_router.replay import replay
from shell_router.run import Run
from shell_router.service import Service
from shell_router.transport.base import Delta, GenerateRequest
from shell_router.transport.capabilities import SGLANG
from shell_router.transport.fake import FakeEngine
from tests.fakes.assessor import FakeAssessor
from tests.shell_router.serving import fake_service
from tests.shell_router.trees import AGGREGATE, PROPOSE, ByteTokenizer, agent, tree, tree_4_2_1
from tests.shell_router.verdicts import judged_again
from tests.waiting import until

QUESTION = (Message("user", "why?"),)
EXIT = ExitOverride(mode="threshold", threshold=0.0)


def hold(*agents: str) -> Any:
    """A gate that holds these agents for ever, from their fifth token on."""
    never = asyncio.Event()

    def gate(request: GenerateRequest, position: int) -> asyncio.Event | None:
        return never if position >= 4 and request.request_id.endswith(agents) else None

    return gate


def with_policies(of: Tree, exit_: ExitPolicy, failures: FailurePolicy) -> Tree:
    configs = [agent(each.id, each.precursors) for each in of.agents]
    templates = {"propose": PROPOSE, "aggregate": AGGREGATE}
    return build_tree(
        TreeConfig(name="t", agents=tuple(configs), templates=templates, early_exit=exit_, failures=failures)
    )


def tree_3_1() -> Tree:
    return tree(agent("p1"), agent("p2"), agent("p3"), agent("root", ["p1", "p2", "p3"]))


async def finish(run: Run) -> str:
    return "".join([piece async for piece in run.text()])


def start(service: Service, **options: Any) -> Run:
    return service.start(RunRequest(tree="t", conversation=QUESTION, options=RunOptions(**options), seed=3))


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_an_exit_frees_the_engine_and_the_run_ends_without_the_rest(mode: str) -> None:
    engine, assessor = FakeEngine(gate=hold("-p3")), FakeAssessor(likeness=0.7)
    run = start(fake_service(engine, tree_3_1(), assessor=assessor), mode=mode, early_exit=EXIT)
    await finish(run)
    record = run.record()
    assert (record.state, record.answered_by, record.degraded) == ("done", "root", False)
    by_id = {each.id: each for each in record.agents}
    assert by_id["p3"].state == "cancelled"
    assert any(name.endswith("-p3") for name in engine.aborted)
    assert engine.running == set()
    assert by_id["p3"].tokens_saved == 24 - by_id["p3"].output_tokens == record.tokens_saved
    assert by_id["p3"].kv_freed_tokens == by_id["p3"].prompt_tokens + by_id["p3"].output_tokens
    assert sorted(by_id["root"].slot_order) == ["p1", "p2"]
    (check,) = record.checks
    assert check.cancelled == ("p3",)
    assert check.verdict is not None
    assert check.verdict.exits
    assert (assessor.texts, assessor.ended) == ({}, set()), "nothing is kept of a run that is over"


async def test_answers_are_embedded_as_they_stream_and_ended_once() -> None:
    assessor = FakeAssessor(likeness=0.1, gate=asyncio.Event())
    engine = FakeEngine(gate=hold("-p3"))
    run = start(fake_service(engine, tree_3_1(), assessor=assessor), early_exit=EXIT)
    await until(lambda: bool(assessor.compared))
    texts = {name: text for (_, name), text in assessor.texts.items()}
    assert {name for _, name in assessor.ended} == {"p1", "p2"}
    record = run.record()
    assert texts == {each.id: each.text for each in record.agents if each.text}
    assert assessor.gate is not None
    assessor.gate.set()
    await finish(run)


async def test_a_failed_check_is_told_and_is_no_exit() -> None:
    assessor = FakeAssessor(error="the model is gone")
    run = start(fake_service(FakeEngine(), tree_3_1(), assessor=assessor), early_exit=EXIT)
    await finish(run)
    record = run.record()
    assert [each.state for each in record.agents] == ["done"] * 4
    assert {check.error for check in record.checks} <= {"the model is gone"}


async def test_votes_go_by_the_text() -> None:
    # Proposers with equal prompts answer alike on the fake engine.
    engine = FakeEngine(gate=hold("-p3"))
    override = ExitOverride(mode="vote", ballots="text")
    run = start(fake_service(engine, tree_3_1()), early_exit=override)
    await finish(run)
    (check,) = run.record().checks
    assert check.ballots == (0, 0)
    assert check.cancelled == ("p3",)


async def test_a_root_that_is_left_out_costs_nothing() -> None:
    engine = FakeEngine()
    policy = ExitPolicy(mode="threshold", threshold=0.0, bypass=BypassPolicy(agreement=0.9))
    service = fake_service(engine, with_policies(tree_4_2_1(), policy, FailurePolicy()))
    run = start(service)
    text = await finish(run)
    record = run.record()
    assert record.answered_by in ("a1", "a2")
    assert text == next(each.text for each in record.agents if each.id == record.answered_by)
    assert next(each.state for each in record.agents if each.id == "root") in ("skipped", "cancelled")
    assert not any(request.request_id.endswith("-root") for request in engine.requests)
    assert record.ttft_s == record.duration_s is not None
    assert run.finish_reason in ("stop", "length")
    assert engine.running == set()


@pytest.mark.parametrize("mode", ["default", "paper", "threshold"])
async def test_decisions_can_be_made_again_from_the_record_and_from_the_log(mode: str) -> None:
    exits = 0
    for seed in range(12):
        service = fake_service(FakeEngine(), tree_3_1(), assessor=FakeAssessor(likeness=0.6))
        options = RunOptions(early_exit=ExitOverride(mode=mode, threshold=0.7))  # type: ignore[arg-type]
        run = service.start(RunRequest(tree="t", conversation=QUESTION, options=options, seed=seed))
        log = [event async for event in run.events()]
        record = msgspec.json.decode(msgspec.json.encode(run.record()), type=type(run.record()))
        for check in record.checks:
            verdict = judged_again(record, check)
            assert verdict == check.verdict
            exits += verdict.exits
        again = replay(record, msgspec.json.decode(msgspec.json.encode(log), type=list[Event]))
        assert again.differences == []
        assert again.plan is not None
        assert [check.verdict for check in again.plan.checks] == [check.verdict for check in record.checks]
        assert [check.cancelled for check in again.plan.checks] == [check.cancelled for check in record.checks]
    assert exits > 0


async def test_early_exit_that_cannot_work_is_refused() -> None:
    blind = fake_service(FakeEngine(), tree_3_1(), compares=False)
    with pytest.raises(RequestError, match="no embedding model") as refused:
        start(blind, early_exit=EXIT)
    assert refused.value.param == "graft.early_exit"
    mute = fake_service(FakeEngine(), tree_3_1(), capabilities={"m": _without_logprobs()})
    with pytest.raises(RequestError, match="needs log-probabilities, and the server of model 'm' gives none"):
        start(mute, early_exit=EXIT)
    chain = fake_service(FakeEngine(), tree(agent("p1"), agent("root", ["p1"])))
    with pytest.raises(RequestError, match="bypass"):
        start(chain, early_exit=ExitOverride(mode="vote", ballots="text", bypass=BypassPolicy()))
    always = with_policies(tree_4_2_1(), ExitPolicy(mode="default"), FailurePolicy())
    with pytest.raises(ConfigError, match=r"tree 't': \$\.early_exit: mode 'default' needs log-probabilities"):
        fake_service(FakeEngine(), always, capabilities={"m": _without_logprobs()})


def _without_logprobs() -> Any:
    return type(SGLANG)(token_ids=True, logprobs=False, abort="by_disconnect", appends=False)


async def test_models_that_take_no_appends_run_blocking() -> None:
    service = fake_service(FakeEngine(), capabilities={"m": _without_logprobs()})
    run = start(service, mode="spliced")
    await finish(run)
    assert not any(each.chunks for each in run.record().agents)


@pytest.mark.parametrize("fallback", [False, True])
async def test_a_deadline_ends_a_run_and_frees_the_engines(fallback: bool) -> None:
    engine = FakeEngine(gate=hold("-a1", "-root"))
    policies = with_policies(tree_4_2_1(), ExitPolicy(), FailurePolicy(root_fallback=fallback))
    run = start(fake_service(engine, policies), deadline_s=0.3)
    if fallback:
        text = await finish(run)
        assert run.record().answered_by == "a2"
        assert text
    else:
        with pytest.raises(DeadlineExceeded, match=r"deadline of 0\.3 s has passed"):
            await finish(run)
        assert run.record().state == "failed"
    async for _ in run.events():
        pass
    assert engine.running == set()


async def test_the_shortest_of_all_deadlines_holds() -> None:
    of = with_policies(tree_4_2_1(), ExitPolicy(), FailurePolicy(deadline_s=7.0))
    for limit, asked, expected in ((None, None, 7.0), (None, 3.0, 3.0), (2.0, 3.0, 2.0), (9.0, None, 7.0)):
        service = fake_service(FakeEngine(), of, limits=LimitsConfig(deadline_s=limit))
        run = start(service, deadline_s=asked)
        assert run.record().failures.deadline_s == expected
        await finish(run)


async def test_a_late_agent_is_dropped_and_the_run_is_degraded() -> None:
    engine = FakeEngine(gate=hold("-p1"))
    policy = FailurePolicy(layer_deadline_s=0.2, missing="drop")
    run = start(fake_service(engine, with_policies(tree_4_2_1(), ExitPolicy(), policy)))
    await finish(run)
    record = run.record()
    assert (record.state, record.degraded, record.missing) == ("done", True, {"a1": ("p1",)})
    late = record.agents[0]
    assert (late.state, late.error) == ("failed", "its answer was not there 0.2 s after its last precursor's")
    assert engine.running == set()


async def test_a_broken_answer_is_gone_on_with_and_read_whole() -> None:
    engine = FakeEngine(fail_at=lambda request: 5 if request.request_id.endswith("-p1") else None)
    run = start(fake_service(engine), mode="blocking")
    await finish(run)
    p1 = run.record().agents[0]
    assert (p1.state, p1.attempts, p1.resumed_tokens) == ("done", 2, 5)
    (again,) = [each for each in engine.requests if each.request_id.endswith("-p1-again1")]
    assert tuple(again.input_ids) == (*p1.prompt_ids, *p1.output_ids[:5])
    a1 = next(each for each in run.record().agents if each.id == "a1")
    assert bytes(token % 256 for token in p1.output_ids) in bytes(token % 256 for token in a1.prompt_ids)


async def test_sampling_can_be_replaced_for_all_agents() -> None:
    engine = FakeEngine()
    service = fake_service(engine)
    options = RunOptions(sampling=SamplingOverride(temperature=1.5, max_new_tokens=9))
    run = service.start(
        RunRequest(tree="t", conversation=QUESTION, options=options, root_sampling=SamplingOverride(max_new_tokens=4))
    )
    await finish(run)
    limits = {request.request_id.rpartition("-")[2]: request.sampling for request in engine.requests}
    assert limits["p1"].max_new_tokens == 9
    assert limits["p1"].temperature == limits["root"].temperature == 1.5
    assert limits["root"].max_new_tokens == 4


class WordTokenizer(ByteTokenizer):
    """Another vocabulary: all ids are shifted by 1000."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        return [token + 1000 for token in super().encode(text, special=special)]

    def pieces(self, text: str) -> Any:
        pieces = super().pieces(text)
        return pieces._replace(ids=[token + 1000 for token in pieces.ids])

    @property
    def fingerprint(self) -> str:
        return "shifted"


@pytest.mark.parametrize("mode", ["blocking", "spliced"])
async def test_between_two_tokenizers_answers_pass_as_text(mode: str) -> None:
    of = tree(agent("p1"), agent("p2", model="other"), agent("root", ["p1", "p2"], model="other"))
    tokenizers = {"m": ByteTokenizer(), "other": WordTokenizer()}
    run = start(fake_service(FakeEngine(), of, tokenizers=tokenizers), mode=mode, slots="fixed")
    await finish(run)
    p1, p2, root = run.record().agents
    expected = WordTokenizer().encode(p1.text, special=False)
    whole = list(root.prompt_ids)
    assert any(whole[at : at + len(expected)] == expected for at in range(len(whole))), "p1 is tokenized again"
    own = list(p2.output_ids)
    assert any(whole[at : at + len(own)] == own for at in range(len(whole))), "p2 is spliced as it is"


class TextEngine(FakeEngine):
    """Gives no token ids, like most servers that are not SGLang."""

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        async for delta in super().generate(request):
            yield Delta((), delta.logprobs, delta.text, delta.finish)


async def test_answers_without_ids_pass_as_text() -> None:
    capabilities = {"m": type(SGLANG)(token_ids=False, logprobs=True, abort="by_disconnect", appends=False)}
    run = start(fake_service(TextEngine(), capabilities=capabilities), early_exit=EXIT)
    text = await finish(run)
    record = run.record()
    assert record.state == "done"
    assert text == record.agents[-1].text != ""
    a1 = next(each for each in record.agents if each.id == "a1")
    known = {each.id: each.text for each in record.agents}
    for precursor in a1.slot_order:
        assert known[precursor] in ByteTokenizer().decode(a1.prompt_ids)
    assert all(each.output_tokens for each in record.agents if each.state == "done"), "the engine counts"


async def test_a_broken_answer_without_ids_cannot_be_gone_on_with() -> None:
    engine = TextEngine(fail_at=lambda request: 5 if "-p1" in request.request_id else None)
    capabilities = {"m": type(SGLANG)(token_ids=False, logprobs=True, abort="by_disconnect", appends=False)}
    run = start(fake_service(engine, capabilities=capabilities))
    log = [event async for event in run.events()]
    assert run.record().state == "failed"
    assert not any(isinstance(event, Finished) and event.agent == "p1" for event in log)
