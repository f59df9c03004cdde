"""A second layer as runs of the router's own service, against a pair that answers at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from experiments.kernel.engine import PairClient
from experiments.overlap import layer, stats
from experiments.overlap.layer import Case, LayerBench, LayerParameters, spliced_case
from experiments.overlap.stats import MODES, Mode, Sample
from shell_router.config import ConfigError
from shell_router.milestones import PARTS
from tests.experiments.overlap.served import PAGE, TOKENS, served
from tests.fakes.pair import PAGE_BYTES


async def take(client: PairClient, parameters: LayerParameters, *cases: Case) -> list[Sample]:
    return [sample async for sample in LayerBench(client, TOKENS, parameters).run(cases)]


def ends_with(ids: Sequence[int], answers: Sequence[Sequence[int]]) -> bool:
    """Whether `ids` end with all of `answers`, in any order."""
    tail = list(ids[-sum(map(len, answers)) :])
    return sorted(tail) == sorted(token for answer in answers for token in answer)


@pytest.mark.parametrize("precursors", [1, 3])
async def test_the_second_layer_reads_every_answer(precursors: int) -> None:
    parameters = LayerParameters(input_range=(1, 64), answer=2, modes=MODES, repetitions=1)
    async with served(pace_s=0.002) as (pair, client):
        samples = await take(client, parameters, Case(name="layer", answers=(20,) * precursors))
        assert [s.error for s in samples] == [None] * 6
        # All modes of a repetition read prompts of the same length.
        assert len({s.prompt_tokens for s in stats.measured(samples)}) == 1
        whole = Counter(len(ids) for _, ids in pair.prompts)
        for one in samples:
            assert whole[one.prompt_tokens or 0] >= 1
            assert one.run_ttft_s is not None
            assert one.total_s is not None
            assert one.ttft_s is not None
            assert one.layer_s is not None
            assert 0 < one.ttft_s <= one.layer_s
            assert one.run_ttft_s <= one.total_s
            assert one.hidden_prefill_fraction is not None
            assert 0 <= one.hidden_prefill_fraction < 1
            if one.mode == "blocking":
                assert (one.hidden_prefill_s, one.hidden_prefill_fraction, one.append_s) == (0, 0, ())
        assert pair.sessions == 0


@pytest.mark.parametrize("mode", ["incremental", "paying"])
async def test_appends_are_the_plans(mode: Mode) -> None:
    """Precursors that take their time are read while they decode, over a session."""
    parameters = LayerParameters(input_range=(8, 8), answer=2, modes=(mode,), repetitions=1, warmups=0)
    async with served(pace_s=0.005) as (pair, client):
        (sample,) = await take(client, parameters, Case(name="chain", answers=(60,)))
        assert sample.append_s
        assert sample.hidden_prefill_s is not None
        assert sample.hidden_prefill_s > 0
        assert [kind for kind, _ in pair.prompts] == ["run", "session"]
        assert client.engine.started == 1


async def test_bytes_of_a_layer_are_those_of_the_successors_prompts() -> None:
    """Not those of the precursors' prompts, and of runs at once the share of each."""
    parameters = LayerParameters(input_range=(64, 64), answer=2, modes=MODES, repetitions=1, concurrency=3)
    async with served(pace_s=0.001) as (pair, client):
        samples = await take(client, parameters, spliced_case(100, 2))
        assert len(samples) == 2 * 3 * 3
        assert sorted({s.run for s in samples}) == [0, 1, 2]
        pages = -(-(64 + 100) // PAGE)
        for one in samples:
            assert (one.error, one.prompt_tokens) == (None, 164)
            assert one.bytes_before_commit is not None
            assert one.bytes_after_commit is not None
            if one.mode == "blocking":
                assert (one.bytes_before_commit, one.bytes_after_commit) == (0, pages * PAGE_BYTES)
            if one.mode == "incremental":
                assert one.bytes_before_commit + one.bytes_after_commit == pages * PAGE_BYTES
            if one.mode == "resend":
                # The last page of each probe is moved once more.
                assert one.bytes_before_commit + one.bytes_after_commit >= pages * PAGE_BYTES
        assert pair.sessions == 0


async def test_answers_that_leave_no_time_for_an_append_are_moved_after_the_commit() -> None:
    parameters = LayerParameters(input_range=(64, 64), answer=2, modes=("incremental",), repetitions=1, warmups=0)
    async with served() as (_, client):
        (sample,) = await take(client, parameters, Case(name="layer", answers=(1,)))
        assert (sample.append_s, sample.bytes_before_commit) == ((), 0)
        assert sample.bytes_after_commit == -(-65 // PAGE) * PAGE_BYTES


async def test_the_way_to_the_first_token_is_told_step_by_step() -> None:
    parameters = LayerParameters(input_range=(8, 8), answer=2, modes=MODES, repetitions=2, warmups=0)
    async with served(pace_s=0.005) as (_, client):
        samples = await take(client, parameters, Case(name="chain", answers=(20,)))
        for sample in samples:
            assert list(sample.steps_s) == list(PARTS)
            assert sum(sample.steps_s.values()) == pytest.approx(sample.ttft_s)
        assert set(layer.steps(samples)["chain"]) == set(MODES)
        assert [each.name.partition(":")[0] for each in layer.goals(samples)] == ["blocking", "incremental"]


def test_what_is_spliced_is_shared_out_to_the_last_token() -> None:
    assert spliced_case(1024, 3).answers == (342, 341, 341)
    assert spliced_case(8, 8).answers == (1,) * 8


async def test_a_prompt_that_the_pool_cannot_hold_is_told_before_anything_is_sent() -> None:
    parameters = LayerParameters(input_range=(64, 64), modes=MODES, repetitions=1)
    async with served() as (pair, client):
        with pytest.raises(
            ConfigError, match=r"4096 tokens: a prompt and its answer may have 4176 tokens, .* has 2048"
        ):
            await take(client, parameters, spliced_case(100, 2), spliced_case(4096, 2))
        assert pair.prompts == []


async def test_a_precursor_that_fails_ends_the_sample() -> None:
    """It is not asked for again, as the router does for its users: that would be another run."""
    parameters = LayerParameters(input_range=(1, 8), modes=("incremental",), repetitions=1)
    async with served(fail=Counter({"run": 1})) as (pair, client):
        samples = await take(client, parameters, Case(name="layer", answers=(4, 4, 4)))
        assert [s.error is None for s in samples] == [False, True]
        assert "no more room" in (samples[0].error or "")
        assert pair.sessions == 0


async def test_a_run_that_falls_back_leaves_those_beside_it() -> None:
    parameters = LayerParameters(input_range=(8, 8), modes=("incremental",), repetitions=1, warmups=0, concurrency=3)
    async with served(fail=Counter({"commit": 1}), pace_s=0.005) as (pair, client):
        samples = await take(client, parameters, Case(name="layer", answers=(40,)))
        assert sorted(s.error or "" for s in samples) == ["", "", "it fell back to plain requests (lost)"]
        # What the failed one had moved is not known.
        assert {s.bytes_after_commit for s in samples} == {None}
        assert pair.sessions == 0
